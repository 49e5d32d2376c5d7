"""What runs need of a store: told to its clean-up by each run, before it makes it."""

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
"""How the names of files in a run's folder begin that say what the run needs of the store."""


_ARTEFACT = re.compile(r"[a-z][a-z_-]*/[0-9a-f]{64}")


def pin(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
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


def pin_also(store: Store, run: str, flow: str, needed: Iterable[str]) -> None:
    """Add to what a run needs, as its keys have changed on the way."""
    listed = list(needed)
    name = f"{REFERENCES}{flow}-{digest(listed)[:16]}.json"  # one of its own: none is lost where two add at once
    store.put_bytes(json.dumps(listed).encode(), "runs", run, name)


def reachable(store: Store) -> set[str]:
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
        raise ValueError(f"{quoted(content)} is no list of stage/key")
    return [_artefact(named) for named in content]


def _of_run(content: Any) -> list[str]:
    made = content.get("artefacts") if isinstance(content, dict) else None
    if not isinstance(made, dict):
        raise ValueError(f"{quoted(content)} names no artefacts")
    return [_artefact("/".join(pair)) for pairs in made.values() for pair in pairs]


def _artefact(named: Any) -> str:
    if not isinstance(named, str) or _ARTEFACT.fullmatch(named) is None:
        raise ValueError(f"{quoted(named)} is no stage/key")
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
