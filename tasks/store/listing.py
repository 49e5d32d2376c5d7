"""Lists the objects of a store, and verifies them."""

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from schemas.pipeline import PIPELINE
from tasks.store.atomic import final_name
from tasks.store.codec import is_whole
from tasks.store.store import OBJECT, Store


def folders() -> list[str]:
    """Names of the folders that hold artefacts."""
    first, *others = PIPELINE
    return [first, "rounds", *others, "trainings", "training_states", "calibration"]


WORKERS = 32


_AT_ONCE = 1000


_KEY = re.compile(r"[0-9a-f]{64}")


_NAMES = {
    "rounds": r"(round-\d{4,}|part-\d{4,}-\d{9,})\.zarr\.zip",
    "calibration": r"rows\.parquet",
}


def belongs_to_store(stage: str, key: str, name: str) -> bool:
    """True for objects that a run may have written; anything else in a folder named like a stage is someone else's.

    Accepts the names of a stage's objects, and of the temporary files that a killed process leaves behind.
    """
    pattern = _NAMES.get(stage, re.escape(OBJECT))
    return _KEY.fullmatch(key) is not None and re.fullmatch(pattern, final_name(name)) is not None


@dataclass(frozen=True)
class Stored:
    """One object of an artefact.

    Attributes:
        size: bytes.
        changed: when it was last written, seconds since 1970 by the store's own clock.
    """

    stage: str
    key: str
    name: str
    size: int
    changed: float

    @property
    def artefact(self) -> str:
        """Stage and key, as runs refer to it."""
        return f"{self.stage}/{self.key}"


def stored(store: Store, stage: str) -> Iterator[Stored]:
    """Every object of a stage; objects that do not belong to the store, or vanish while being listed, are skipped."""
    if store.is_local:
        yield from _local(Path(store.path(stage)), stage)
        return
    for path, info in store.find(stage).items():
        key, _, name = path.partition("/")
        if belongs_to_store(stage, key, name):
            yield Stored(stage, key, name, int(info["size"]), changed(info))


def _local(folder: Path, stage: str) -> Iterator[Stored]:
    """Like `stored`, without the many calls of a generic file system; links are not followed."""
    for key in () if folder.is_symlink() else _entries(folder):
        if _KEY.fullmatch(key.name) and key.is_dir(follow_symlinks=False):
            for entry in _entries(key.path):
                if belongs_to_store(stage, key.name, entry.name) and entry.is_file(follow_symlinks=False):
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield Stored(stage, key.name, entry.name, info.st_size, info.st_mtime)


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        yield from entries


def changed(info: dict[str, Any]) -> float:
    """When an object was written; file systems report this under different names."""
    for name in ("LastModified", "mtime", "created", "updated", "last_modified"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()  # unknown: treated as just written


@dataclass
class Holding:
    """Number of artefacts, objects and bytes of a stage."""

    stage: str
    artefacts: int = 0
    objects: int = 0
    size: int = 0


def holdings(store: Store) -> list[Holding]:
    """The holding of every stage."""
    out = []
    for stage in folders():
        holding, keys = Holding(stage), set()
        for item in stored(store, stage):
            keys.add(item.key)
            holding.objects += 1
            holding.size += item.size
        holding.artefacts = len(keys)
        out.append(holding)
    return out


def damaged(store: Store, report_progress: Callable[[int], None] = lambda count: None) -> list[Stored]:
    """Every object that fails verification; nothing is removed.

    Args:
        report_progress: called with the number of objects checked since the last call.
    """
    out: list[Stored] = []

    def fails(item: Stored) -> bool:
        data = store.get_bytes(item.stage, item.key, item.name)
        return data is not None and not is_whole(data)

    with ThreadPoolExecutor(WORKERS) as pool:
        items = (item for stage in folders() for item in stored(store, stage) if item.name.endswith(".zarr.zip"))
        while batch := list(islice(items, _AT_ONCE)):
            out += [item for item, failed in zip(batch, pool.map(fails, batch), strict=True) if failed]
            report_progress(len(batch))
    return out
