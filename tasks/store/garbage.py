"""Garbage collection: removes artefacts that no run refers to any more."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

from tasks.store.leases import FOLDER as LEASES
from tasks.store.listing import WORKERS, Stored, folders, stored
from tasks.store.references import reachable
from tasks.store.store import MARKER, Store, StoreError

_BATCH = 10_000
"""Objects removed before the references of runs are read again."""


def check_marked(store: Store) -> None:
    """Refuse to delete anything from a place that is not marked as a store.

    Raises:
        StoreError: the marker is missing.
    """
    if store.format() is None:
        raise StoreError(
            f"{store.url!r} has no {MARKER}, so it may not be a store and nothing is removed; "
            "if it is one, any run or plan on it (--store) marks it"
        )


def unreachable(store: Store, older: float) -> list[Stored]:
    """Objects of artefacts that no kept run refers to and of which nothing was written in the last `older` seconds.

    Raises:
        StoreError: a run's references cannot be read, so it is unknown what can be deleted.
    """
    items = [item for stage in folders() for item in stored(store, stage)]
    # references are read after listing, because a run writes them before its artefacts
    kept, now = reachable(store), time.time()
    young = {item.artefact for item in items if now - item.changed < older}
    return [item for item in items if item.artefact not in kept and item.artefact not in young]


def sweep(store: Store, items: Iterable[Stored], report_progress: Callable[[int], None] = lambda count: None) -> int:
    """Remove objects unless a run refers to them by now; returns the number of artefacts removed.

    Raises:
        StoreError: a run's references cannot be read, or the store is not marked as one.
    """
    check_marked(store)
    remaining, removed = iter(items), set()
    while batch := list(islice(remaining, _BATCH)):
        kept = reachable(store)
        unreferenced = [item for item in batch if item.artefact not in kept]
        remove(store, unreferenced, report_progress)
        report_progress(len(batch) - len(unreferenced))
        removed |= {item.artefact for item in unreferenced}
    return len(removed)


def remove(store: Store, items: Iterable[Stored], report_progress: Callable[[int], None] = lambda count: None) -> None:
    """Remove objects, and folders that become empty."""

    def remove_one(item: Stored) -> None:
        store.remove(item.stage, item.key, item.name)
        if store.is_local:
            with suppress(OSError):  # not empty, or already deleted
                Path(store.path(item.stage, item.key)).rmdir()
        report_progress(1)

    with ThreadPoolExecutor(1 if store.is_local else WORKERS) as pool:
        for _ in pool.map(remove_one, items):
            pass


def leases(store: Store) -> list[str]:
    """Names of the leases that processes hold, or held when they were killed."""
    return [name for name in store.names(LEASES) if not name.startswith(".")]
