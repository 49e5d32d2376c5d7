"""References of runs to artefacts: each run writes what it needs before making it, so that clean-up keeps it."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.text import quoted, reason
from tasks.store.keys import digest
from tasks.store.outages import StoreAwayError
from tasks.store.store import Store, StoreError

REFERENCES = "references-"
"""Prefix of the files in a run's folder that list the artefacts it needs."""


_ARTEFACT = re.compile(r"[a-z][a-z_-]*/[0-9a-f]{64}")


def pin(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
    """Write what a run needs, as `stage/key`, before it makes it.

    References of an earlier run of this name are dropped, unless they are the same: then it may still be running.
    """
    data, name = json.dumps(list(needed)).encode(), first_references(flow)
    if store.get_bytes("runs", run, name) == data:
        return
    store.put_bytes(data, "runs", run, name)
    for name in store.names("runs", run):
        if name.startswith(f"{REFERENCES}{flow}-"):
            store.remove("runs", run, name)


def pin_also(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
    """Add to what a run needs, because its keys have changed while it was running."""
    listed = list(needed)
    name = f"{REFERENCES}{flow}-{digest(listed)[:16]}.json"  # a separate file, so that concurrent additions are kept
    store.put_bytes(json.dumps(listed).encode(), "runs", run, name)


def first_references(flow: str) -> str:
    """The file that lists what a flow needs by its start, before questions are left out."""
    return f"{REFERENCES}{flow}.json"


def pinned(store: Store, run: str, flow: str) -> str | None:
    """SHA-256 of what a flow has listed at its start, which outputs name as their origin; None if that is missing.

    A later run of another configuration lists something else, so that outputs tell whose they are until it replaces
    them. Neither questions that are left out, nor a copy of the store, nor clean-up changes it.
    """
    data = store.get_bytes("runs", run, first_references(flow))
    return None if data is None else hashlib.sha256(data).hexdigest()


def reachable(store: Store) -> set[str]:
    """Every artefact that a kept run may need: those it listed at its start, and those it was made from.

    Raises:
        StoreError: a run's references cannot be read, so it is unknown what can be deleted.
    """
    out: set[str] = set()
    for run in _listed(store, "runs"):
        for name in _listed(store, "runs", run):
            parse = _parser(name)
            if parse is None:
                continue
            with _needed(store, "runs", run, name):
                data = store.get_bytes("runs", run, name)
                if data is not None:
                    out.update(parse(json.loads(data)))
                else:
                    _check_missing(store, "runs", run, name)
    return out


def _parser(name: str) -> Callable[[Any], list[str]] | None:
    """The parser of a file that lists what a run needs; None for other files."""
    if name.startswith(REFERENCES) and name.endswith(".json"):
        return _parse_references
    return _parse_run if name == "run.json" else None


def _parse_references(content: Any) -> list[str]:
    if not isinstance(content, list):
        raise ValueError(f"{quoted(content)} is not a list of stage/key")
    return [_artefact(named) for named in content]


def _parse_run(content: Any) -> list[str]:
    made = content.get("artefacts") if isinstance(content, dict) else None
    if not isinstance(made, dict):
        raise ValueError(f"{quoted(content)} names no artefacts")
    return [_artefact("/".join(pair)) for pairs in made.values() for pair in pairs]


def _artefact(named: Any) -> str:
    if not isinstance(named, str) or _ARTEFACT.fullmatch(named) is None:
        raise ValueError(f"{quoted(named)} is not of the form stage/key")
    return named


def _listed(store: Store, *parts: str) -> list[str]:
    """Names in a folder; none if it is not a folder."""
    with _needed(store, *parts):
        if store.is_local and not Path(store.path(*parts)).is_dir():
            if parts == ("runs",) or Path(store.path(*parts)).is_symlink():
                _check_missing(store, *parts)
            return []
        return store.names(*parts)


def _check_missing(store: Store, *parts: str) -> None:
    """Refuse something that exists although the store reads nothing from it, such as a link without a target."""
    if store.is_local and os.path.lexists(store.path(*parts)):
        raise ValueError("a link without a target" if Path(store.path(*parts)).is_symlink() else "not a folder")


@contextmanager
def _needed(store: Store, *parts: str) -> Iterator[None]:
    """Report read errors as a `StoreError`: what cannot be read may list what a run needs."""
    try:
        yield
    except StoreAwayError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        run = "/".join(parts[:2])
        raise StoreError(
            f"{'/'.join(parts)} in {store.url!r} cannot be read ({reason(error)}), so what runs need is not known; "
            f"{f'remove {run} if it is not needed' if len(parts) > 1 else 'repair it'}"
        ) from error
