"""What a store holds, whether it is whole, and what of it nothing refers to any more."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tasks.store.artefact import Store, is_whole
from tasks.store.claims import FOLDER as CLAIMS

STAGES = (
    "rollouts",
    "rounds",
    "trees",
    "ideal",
    "prior",
    "distillation",
    "alignment",
    "values",
    "ranking",
    "calibration",
)
REFERENCES = "references-"
"""How the names of files in a run's folder begin that say what the run needs of the store."""
_WORKERS = 32
_AT_ONCE = 1000


def refer(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
    """Tell the clean-up what a run needs, as `stage/key`, before it has made it."""
    store.put_bytes(json.dumps(list(needed)).encode(), "runs", run, f"{REFERENCES}{flow}.json")


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
    """Every object of a stage."""
    if isinstance(store.fs, LocalFileSystem):
        yield from _local(Path(store.path(stage)), stage)
        return
    root = store.path(stage)
    try:
        found: dict[str, dict[str, Any]] = store.fs.find(root, detail=True)
    except FileNotFoundError:
        return
    for path, info in found.items():
        key, _, name = path.rsplit(f"{root.rsplit('/', 1)[-1]}/", 1)[-1].partition("/")
        if name:
            yield Stored(stage, key, name, int(info["size"]), _seconds(info))


def _local(folder: Path, stage: str) -> Iterator[Stored]:
    """As above, without the many calls that a file system for everything makes."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as keys:
        for key in keys:
            if key.is_dir():
                with os.scandir(key.path) as objects:
                    for entry in objects:
                        info = entry.stat()
                        yield Stored(stage, key.name, entry.name, info.st_size, info.st_mtime)


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
    for stage in STAGES:
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

    with ThreadPoolExecutor(_WORKERS) as pool:
        every = (item for stage in STAGES for item in stored(store, stage) if item.name.endswith(".zip"))
        while part := list(islice(every, _AT_ONCE)):
            out += [item for item, is_bad in zip(part, pool.map(bad, part), strict=True) if is_bad]
            told(len(part))
    return out


def referred(store: Store) -> set[str]:
    """Everything that a kept run may need: what it said when it began, and what it was made from."""
    out: set[str] = set()
    for run in store.names("runs"):
        for name in store.names("runs", run):
            if name.startswith(REFERENCES) and name.endswith(".json"):
                out.update(json.loads(store.get_bytes("runs", run, name) or b"[]"))
            elif name == "run.json":
                content = json.loads(store.get_bytes("runs", run, name) or b"{}")
                out.update(f"{stage}/{key}" for pairs in content.get("artefacts", {}).values() for stage, key in pairs)
    return out


def unreferred(store: Store, older: float) -> list[Stored]:
    """Objects of artefacts that no kept run refers to and none of which was written in the last `older` seconds.

    Raises:
        ValueError: a run's references cannot be read, so nothing is known to be free.
    """
    kept, now = referred(store), time.time()
    young: set[str] = set()
    free: list[Stored] = []
    for stage in STAGES:
        for item in stored(store, stage):
            if item.artefact in kept:
                continue
            if now - item.changed < older:
                young.add(item.artefact)
            free.append(item)
    return [item for item in free if item.artefact not in young]


def remove(store: Store, items: Iterable[Stored], told: Callable[[int], None] = lambda done: None) -> None:
    """Remove objects, and folders that this leaves empty."""

    def one(item: Stored) -> None:
        if isinstance(store.fs, LocalFileSystem):
            path = Path(store.path(item.stage, item.key, item.name))
            path.unlink(missing_ok=True)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        else:
            store.fs.rm_file(store.path(item.stage, item.key, item.name))
        told(1)

    with ThreadPoolExecutor(1 if isinstance(store.fs, LocalFileSystem) else _WORKERS) as pool:
        for _ in pool.map(one, items):
            pass


def claims(store: Store) -> list[str]:
    """What processes work on now, or did when they were killed."""
    return store.names(CLAIMS)
