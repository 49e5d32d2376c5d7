"""What a store holds, and whether it is whole."""

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
from tasks.store.codec import is_whole
from tasks.store.store import OBJECT, Store


def folders() -> list[str]:
    """Folders of artefacts."""
    first, *others = PIPELINE
    return [first, "rounds", *others, "calibration"]


WORKERS = 32


_AT_ONCE = 1000


_KEY = re.compile(r"[0-9a-f]{64}")


_NAMES = {
    "rounds": r"(round-\d{4,}|part-\d{4,}-\d{9,})\.zarr\.zip",
    "calibration": r"rows\.parquet",
}


def is_ours(stage: str, key: str, name: str) -> bool:
    """True for what a run may have written; all else in a folder called like a stage is somebody's own.

    Names are those of a stage's objects, and of what a killed process leaves of one that it was writing.
    """
    ours = _NAMES.get(stage, re.escape(OBJECT))
    return _KEY.fullmatch(key) is not None and re.fullmatch(rf"{ours}|\.{ours}\.[0-9a-f]{{32}}", name) is not None


@dataclass(frozen=True)
class Stored:
    """One object of an artefact.

    Attributes:
        size: bytes.
        changed: seconds since 1970, by the store's own clock.
    """

    stage: str
    key: str
    name: str
    size: int
    changed: float

    @property
    def artefact(self) -> str:
        """As runs refer to it."""
        return f"{self.stage}/{self.key}"


def stored(store: Store, stage: str) -> Iterator[Stored]:
    """Every object of a stage; what is not ours, or goes while it is listed, is not there."""
    if store.is_local:
        yield from _local(Path(store.path(stage)), stage)
        return
    for path, info in store.find(stage).items():
        key, _, name = path.partition("/")
        if is_ours(stage, key, name):
            yield Stored(stage, key, name, int(info["size"]), _seconds(info))


def _local(folder: Path, stage: str) -> Iterator[Stored]:
    """As above, without the many calls that a file system for everything makes; links are not followed."""
    for key in () if folder.is_symlink() else _entries(folder):
        if _KEY.fullmatch(key.name) and key.is_dir(follow_symlinks=False):
            for entry in _entries(key.path):
                if is_ours(stage, key.name, entry.name) and entry.is_file(follow_symlinks=False):
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


def _seconds(info: dict[str, Any]) -> float:
    """When an object was written, as file systems differ in telling."""
    for name in ("LastModified", "mtime", "created", "updated", "last_modified"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()  # unknown: as if just written


@dataclass
class Holding:
    """What a stage holds: artefacts, objects and bytes."""

    stage: str
    artefacts: int = 0
    objects: int = 0
    size: int = 0


def holdings(store: Store) -> list[Holding]:
    """What every stage holds."""
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


def damaged(store: Store, told: Callable[[int], None] = lambda done: None) -> list[Stored]:
    """Every object that does not verify; nothing is removed.

    Args:
        told: hears how many objects more have been looked at.
    """
    out: list[Stored] = []

    def bad(item: Stored) -> bool:
        data = store.get_bytes(item.stage, item.key, item.name)
        return data is not None and not is_whole(data)

    with ThreadPoolExecutor(WORKERS) as pool:
        every = (item for stage in folders() for item in stored(store, stage) if item.name.endswith(".zarr.zip"))
        while part := list(islice(every, _AT_ONCE)):
            out += [item for item, is_bad in zip(part, pool.map(bad, part), strict=True) if is_bad]
            told(len(part))
    return out
