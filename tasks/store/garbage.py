"""Removes what no run refers to any more."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

from tasks.store.leases import FOLDER as CLAIMS
from tasks.store.listing import WORKERS, Stored, folders, stored
from tasks.store.references import reachable
from tasks.store.store import MARKER, Store, StoreError

_BETWEEN = 10_000
"""Objects removed between two looks at what runs refer to."""


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


def unreachable(store: Store, older: float) -> list[Stored]:
    """Objects of artefacts that no kept run refers to and none of which was written in the last `older` seconds.

    Raises:
        StoreError: a run's references cannot be read, so nothing is known to be free.
    """
    every = [item for stage in folders() for item in stored(store, stage)]
    kept, now = (
        reachable(store),
        time.time(),
    )  # after what is there, as a run refers to what it makes before it is there
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
        kept = reachable(store)
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

    with ThreadPoolExecutor(1 if store.is_local else WORKERS) as pool:
        for _ in pool.map(one, items):
            pass


def claims(store: Store) -> list[str]:
    """What processes work on now, or did when they were killed."""
    return [name for name in store.names(CLAIMS) if not name.startswith(".")]
