"""The index of runs: one row each, read from the store and kept until files change."""

import hashlib
import json
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from flows.service.facts import TABLES, Facts, facts
from flows.service.folders import Entry, read_output, run_folders
from flows.service.states import OUTPUTS, Counted, Progress, State, finished, holding, unfinished
from schemas.config import Execution
from tasks.store.leases import LeaseManager
from tasks.store.listing import WORKERS
from tasks.store.references import REFERENCES, first_references
from tasks.store.store import Store, StoreError

KINDS = {"diagnose": "diagnosis", "rank": "ranking", "validate": "validation"}
PAGES = ("report.html", "validation.html")
_TYPES = ("html", "json", "parquet")
_LEAST_SECONDS = 1.0
"""Between two looks at the store, however many browsers ask."""
_PAUSE = 9.0
"""Pause after a look, in multiples of what it took: a tenth of the time at most goes into looking."""
_AWAY = 60.0
"""Seconds in which nobody asked, after which artefacts are counted anew: runs may have come and gone meanwhile."""
_UNCLEAR = (
    "a process of another machine holds its name; whether that still runs shows once its lease is renewed or expires"
)
_INTERRUPTED = "it ended before it wrote its outputs, killed or with an error; the same command or Retry resumes it"
_OUTDATED = "what is shown is of an earlier run with another configuration"


class Snapshot(NamedTuple):
    """The rows as JSON, and a tag that differs once they do."""

    body: bytes
    tag: str


class Index:
    """The rows of all runs of a store."""

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store, self._lock = store, threading.Lock()
        self._leases = LeaseManager(store, Execution().lease)
        self._facts: dict[tuple[str, str], tuple[str, Facts]] = {}
        self._counted, self._asked = Counted(store), -math.inf
        self._last, self._due = Snapshot(b"", ""), 0.0

    def snapshot(self) -> Snapshot:
        """The current rows, or those of a moment ago.

        Raises:
            OSError, StoreError: the store cannot be read.
        """
        with self._lock:
            started = time.monotonic()
            if started > self._asked + _AWAY:
                self._counted = Counted(self._store)
            self._asked = started
            if not self._last.body or started >= self._due:
                body = json.dumps({"store": self._store.url, "runs": self.rows()}, allow_nan=False).encode()
                self._last = Snapshot(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
                now = time.monotonic()
                self._due = now + max(_LEAST_SECONDS, _PAUSE * (now - started))
            return self._last

    def rows(self) -> list[dict[str, Any]]:
        """One row for each run, by name."""
        before = self._leases.present()
        folders = run_folders(self._store)
        self._read(folders)
        self._counted.forget(folders)
        found = holding(self._leases, before, folders)
        return [self._row(run, files, found.get(run, {})) for run, files in sorted(folders.items())]

    def _read(self, folders: Mapping[str, Mapping[str, Entry]]) -> None:
        """Read what was written since the last time."""
        known, new = {}, []
        for run, files in folders.items():
            for flow, name in OUTPUTS.items():
                if name in files:
                    before = self._facts.get((run, flow))
                    if before is not None and before[0] == _version(files, flow):
                        known[run, flow] = before
                    else:
                        new.append((run, flow))
        self._facts = known
        # many small objects: requests wait for each other elsewhere, files on a disk do not
        with ThreadPoolExecutor(1 if self._store.is_local else WORKERS) as pool:
            for place, told in zip(new, pool.map(self._told, new), strict=True):
                version = "" if told is None else _version(folders[place[0]], place[1])
                self._facts[place] = version, told or Facts(f"{OUTPUTS[place[1]]} cannot be read now")

    def _told(self, place: tuple[str, str]) -> Facts | None:
        """What an output says; None if the store does not give it now."""
        (run, flow), name = place, OUTPUTS[place[1]]
        read = partial(read_output, self._store, run)
        try:
            told = facts(name, read(name) or b"", read)
            listed = None if told.references is None else read(first_references(flow))
            return told._replace(outdated=listed is not None and hashlib.sha256(listed).hexdigest() != told.references)
        except (OSError, StoreError):
            return None

    def _row(self, run: str, files: Mapping[str, Entry], live: Mapping[str, State]) -> dict[str, Any]:
        told = {flow: self._facts[run, flow][1] for flow, name in OUTPUTS.items() if name in files}
        behind = {}
        for flow in OUTPUTS:
            if flow in live or unfinished(flow, files, told.get(flow)):
                behind[flow] = self._counted.progress(run, flow, files, live=flow in live)
        state, shown = _state(told, live, behind)
        by_time = sorted(told, key=lambda flow: files[OUTPUTS[flow]].changed, reverse=True)
        best = next((told[flow].best for flow in by_time if told[flow].best is not None), None)
        whole = [of_flow for of_flow in told.values() if not of_flow.damaged]
        written = [entry.changed for entry in files.values()]
        return {
            "name": run,
            "when": _time(max(written)) if written else None,
            "kinds": [KINDS[flow] for flow in OUTPUTS if flow in told or flow in behind],
            "student": next((f.student for f in told.values() if f.student is not None), None),
            "questions": max((f.questions for f in told.values() if f.questions is not None), default=None),
            "best": None if best is None else best._asdict(),
            "state": state.value,
            "remarks": _remarks(state, told),
            "progress": None if shown is None else {"flow": KINDS[shown], **behind[shown]._asdict()},
            "tokens": sum(f.tokens for f in whole) if whole else None,
            "seconds": round(sum(f.seconds for f in whole), 1) if whole else None,
            "pages": [name for name in PAGES if name in files],
            "files": [
                name
                for name in sorted(files)
                if name.rpartition(".")[2] in _TYPES and name not in PAGES and not name.startswith(REFERENCES)
            ],
        }


def _time(seconds: float) -> str | None:
    """A time in UTC; None for one that no calendar has, as anyone can give a file."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return None


def _version(files: Mapping[str, Entry], flow: str) -> str:
    """Differs once an output, or what is read with it, is another one."""
    read = (OUTPUTS[flow], *TABLES, first_references(flow))
    return " ".join(f"{file} {files[file].version}" for file in read if file in files)


def _state(
    told: Mapping[str, Facts], live: Mapping[str, State], behind: Mapping[str, Progress]
) -> tuple[State, str | None]:
    """The state of a run, and the flow whose progress is shown."""
    for state in (State.RUNNING, State.UNCLEAR):
        # a validation holds its name while it ranks and diagnoses, so the inner flow is named first
        if (flow := next((flow for flow in OUTPUTS if live.get(flow) is state), None)) is not None:
            return state, flow
    over = finished(list(told.values()))
    missing = [f for f, progress in behind.items() if progress.stage or f not in told or told[f].outdated]
    if missing and over is not State.DAMAGED:
        return State.INTERRUPTED, missing[0]
    return over, None


def _remarks(state: State, told: Mapping[str, Facts]) -> list[str]:
    """What explains a state, a sentence each."""
    out = [_UNCLEAR] if state is State.UNCLEAR else [_INTERRUPTED] if state is State.INTERRUPTED else []
    for flow, of_flow in told.items():
        kind = KINDS[flow] if of_flow.students == 1 else f"{KINDS[flow]} of {of_flow.students} students"
        if of_flow.damaged:
            out.append(of_flow.damaged)
        if of_flow.outdated:
            out.append(f"{kind}: {_OUTDATED}")
        if of_flow.failed:
            out.append(f"{kind}: {_questions(of_flow.failed)} failed; run again to retry")
        if (only := of_flow.left_out - of_flow.failed) > 0:
            out.append(f"{kind}: {_questions(only)} left out")
        if of_flow.figures:
            out.append(f"{kind}: {of_flow.passed} of {of_flow.figures} figures pass")
    return out


def _questions(n: int) -> str:
    return "1 question" if n == 1 else f"{n:,} questions"
