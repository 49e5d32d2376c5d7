"""What a store holds, whether it is whole, and what of it nothing refers to any more."""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from schemas.pipeline import PIPELINE
from schemas.text import reason, shown
from tasks.store.codec import is_whole
from tasks.store.keys import digest
from tasks.store.leases import FOLDER as CLAIMS
from tasks.store.outages import StoreAwayError
from tasks.store.store import MARKER, OBJECT, Store, StoreError

STAGES = (*PIPELINE, "rounds", "calibration")
"""Folders of artefacts."""
REFERENCES = "references-"
"""How the names of files in a run's folder begin that say what the run needs of the store."""
_WORKERS = 32
_AT_ONCE = 1000
_BETWEEN = 10_000
"""Objects removed between two looks at what runs refer to."""

_KEY = re.compile(r"[0-9a-f]{64}")
_ARTEFACT = re.compile(r"[a-z][a-z_-]*/[0-9a-f]{64}")
_NAMES = {
    "rounds": r"(round-\d{4,}|part-\d{4,}-\d{9,})\.zarr\.zip",
    "calibration": r"rows\.parquet",
}
_OURS = {
    stage: re.compile(rf"{name}|\.{name}\.[0-9a-f]{{32}}")
    for stage, name in {**dict.fromkeys(STAGES, re.escape(OBJECT)), **_NAMES}.items()
}
"""Names of a stage's objects, and of what a killed process leaves of one that it was writing."""


def is_ours(stage: str, key: str, name: str) -> bool:
    """True for what a run may have written; all else in a folder called like a stage is somebody's own."""
    return _KEY.fullmatch(key) is not None and _OURS[stage].fullmatch(name) is not None


def check_marked(store: Store) -> None:
    """Refuse to delete where nothing says that this is a store.

    Raises:
        StoreError: there is no marker.
    """
    if store.format() is None:
        raise StoreError(
            f"{store.url!r} has no {MARKER}, so it may be no store and nothing is removed; "
            "if it is one, any run or plan on it (--store) marks it"
        )


def refer(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
    """Tell the clean-up what a run needs, as `stage/key`, before it has made it.

    What an earlier run of the name needed is forgotten, unless it was this: then another may be at work beside it.
    """
    data = json.dumps(list(needed)).encode()
    if store.get_bytes("runs", run, f"{REFERENCES}{flow}.json") == data:
        return
    store.put_bytes(data, "runs", run, f"{REFERENCES}{flow}.json")
    for name in store.names("runs", run):
        if name.startswith(f"{REFERENCES}{flow}-"):
            store.remove("runs", run, name)


def refer_also(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
    """Add to what a run needs, as its keys have changed on the way."""
    listed = list(needed)
    name = f"{REFERENCES}{flow}-{digest(listed)[:16]}.json"  # one of its own: none is lost where two add at once
    store.put_bytes(json.dumps(listed).encode(), "runs", run, name)


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
        every = (item for stage in STAGES for item in stored(store, stage) if item.name.endswith(".zarr.zip"))
        while part := list(islice(every, _AT_ONCE)):
            out += [item for item, is_bad in zip(part, pool.map(bad, part), strict=True) if is_bad]
            told(len(part))
    return out


def referred(store: Store) -> set[str]:
    """Everything that a kept run may need: what it said when it began, and what it was made from.

    Raises:
        StoreError: what a run needs cannot be read, so nothing is known to be free.
    """
    out: set[str] = set()
    for run in _listed(store, "runs"):
        for name in _listed(store, "runs", run):
            read = _written_as(name)
            if read is None:
                continue
            with _needed(store, "runs", run, name):
                data = store.get_bytes("runs", run, name)
                if data is not None:
                    out.update(read(json.loads(data)))
                else:
                    _check_gone(store, "runs", run, name)
    return out


def _written_as(name: str) -> Callable[[Any], list[str]] | None:
    """How a file of a run says what the run needs; None where it does not."""
    if name.startswith(REFERENCES) and name.endswith(".json"):
        return _of_references
    return _of_run if name == "run.json" else None


def _of_references(content: Any) -> list[str]:
    if not isinstance(content, list):
        raise ValueError(f"{shown(content)} is no list of stage/key")
    return [_artefact(named) for named in content]


def _of_run(content: Any) -> list[str]:
    made = content.get("artefacts") if isinstance(content, dict) else None
    if not isinstance(made, dict):
        raise ValueError(f"{shown(content)} names no artefacts")
    return [_artefact("/".join(pair)) for pairs in made.values() for pair in pairs]


def _artefact(named: Any) -> str:
    if not isinstance(named, str) or _ARTEFACT.fullmatch(named) is None:
        raise ValueError(f"{shown(named)} is no stage/key")
    return named


def _listed(store: Store, *parts: str) -> list[str]:
    """Names in a folder; what is no folder has none."""
    with _needed(store, *parts):
        if store.is_local and not Path(store.path(*parts)).is_dir():
            if parts == ("runs",) or Path(store.path(*parts)).is_symlink():
                _check_gone(store, *parts)
            return []
        return store.names(*parts)


def _check_gone(store: Store, *parts: str) -> None:
    """What a store gives nothing of must not be there: a link whose target is away is."""
    if store.is_local and os.path.lexists(store.path(*parts)):
        raise ValueError("a link to what is not there" if Path(store.path(*parts)).is_symlink() else "no folder")


@contextmanager
def _needed(store: Store, *parts: str) -> Iterator[None]:
    """Whatever cannot be read there may be what a run needs."""
    try:
        yield
    except StoreAwayError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        run = "/".join(parts[:2])
        raise StoreError(
            f"{'/'.join(parts)} in {store.url!r} cannot be read ({reason(error)}), so what runs need is not known; "
            f"{f'remove {run} if it is not needed' if len(parts) > 1 else 'mend it'}"
        ) from error


def unreferred(store: Store, older: float) -> list[Stored]:
    """Objects of artefacts that no kept run refers to and none of which was written in the last `older` seconds.

    Raises:
        StoreError: a run's references cannot be read, so nothing is known to be free.
    """
    every = [item for stage in STAGES for item in stored(store, stage)]
    kept, now = referred(store), time.time()  # after what is there, as a run refers to what it makes before it is there
    young = {item.artefact for item in every if now - item.changed < older}
    return [item for item in every if item.artefact not in kept and item.artefact not in young]


def sweep(store: Store, free: Iterable[Stored], told: Callable[[int], None] = lambda done: None) -> int:
    """Remove what is free, but for what a run has come to need since; gives how many artefacts went.

    Raises:
        StoreError: a run's references cannot be read, or this is not known to be a store.
    """
    check_marked(store)
    left, removed = iter(free), set()
    while part := list(islice(left, _BETWEEN)):
        kept = referred(store)
        still = [item for item in part if item.artefact not in kept]
        remove(store, still, told)
        told(len(part) - len(still))
        removed |= {item.artefact for item in still}
    return len(removed)


def remove(store: Store, items: Iterable[Stored], told: Callable[[int], None] = lambda done: None) -> None:
    """Remove objects, and folders that this leaves empty."""

    def one(item: Stored) -> None:
        store.remove(item.stage, item.key, item.name)
        if store.is_local:
            with suppress(OSError):  # not empty, or gone
                Path(store.path(item.stage, item.key)).rmdir()
        told(1)

    with ThreadPoolExecutor(1 if store.is_local else _WORKERS) as pool:
        for _ in pool.map(one, items):
            pass


def claims(store: Store) -> list[str]:
    """What processes work on now, or did when they were killed."""
    return [name for name in store.names(CLAIMS) if not name.startswith(".")]
