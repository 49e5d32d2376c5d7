"""Whether a run goes on, has finished or was interrupted, told from the store alone.

* A flow holds a lease on its run's name from before it writes its references until after it has written its outputs. A
  lease that changes, or whose process runs on this machine, is that of a running flow: a process that is stopped runs
  on once it is continued.
* Outputs name the references with which they were made. Where there are others by now, a later run of another
  configuration has not finished. Outputs of older versions name none: there it has not if the references are newer and
  artefacts that it needs are missing. Without a lease it was interrupted, or failed before it had anything to write:
  the store cannot tell these apart. Nor does it show a later run that needs the same artefacts.
* What is damaged or left out is told by the outputs themselves.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from flows.service.facts import Facts
from flows.service.folders import Entry, read_output
from schemas.pipeline import PIPELINE
from tasks.outputs.names import name_lease
from tasks.store.leases import LeaseManager, Rival
from tasks.store.references import REFERENCES
from tasks.store.store import OBJECT, Store

OUTPUTS = {"diagnose": "run.json", "rank": "rank.json", "validate": "validation.json"}
"""The file that each flow writes last."""
_UNCOUNTED = ("rounds", "training_states")
"""What a finished run may have cleared away."""
_ORDER = {name: place for place, name in enumerate([*PIPELINE, "trainings"])}


class State(Enum):
    """The state of a run."""

    RUNNING = "running"
    UNCLEAR = "running or lost"
    INTERRUPTED = "interrupted"
    DAMAGED = "damaged"
    FAILED = "questions failed"
    LEFT_OUT = "questions left out"
    FINISHED = "finished"
    EMPTY = "no outputs"


class Progress(NamedTuple):
    """Artefacts of a flow that are in the store.

    Attributes:
        stage: the first one with missing artefacts; empty if there is none.
        made, needed: artefacts of this stage.
        made_in_all, needed_in_all: of all stages.
    """

    stage: str
    made: int
    needed: int
    made_in_all: int
    needed_in_all: int


def holding(leases: LeaseManager, before: Collection[str], runs: Iterable[str]) -> dict[str, dict[str, State]]:
    """Whether flows run, as far as their leases tell, by run and flow; those that do not are left out.

    Args:
        before: names that had a lease before the runs' folders were read. What was released since may have written its
            outputs since: it is still taken for running.
    """
    names = {name_lease(flow, run): (run, flow) for run in runs for flow in OUTPUTS}
    found = leases.holders(names.keys())
    states = {name: held(rivals) for name, rivals in found.items()}
    states |= dict.fromkeys((names.keys() & set(before)) - found.keys(), State.RUNNING)
    out: dict[str, dict[str, State]] = {}
    for name, state in states.items():
        if state is not None:
            run, flow = names[name]
            out.setdefault(run, {})[flow] = state
    return out


def held(rivals: Sequence[Rival]) -> State | None:
    """Whether a flow runs, as far as its leases tell; None if nobody holds one."""
    if any(rival.here or (rival.alive and not rival.expired) for rival in rivals):
        return State.RUNNING
    return State.UNCLEAR if any(not rival.expired for rival in rivals) else None


def unfinished(flow: str, files: Mapping[str, Entry], told: Facts | None) -> bool:
    """Whether a flow has no outputs, or those of earlier references; by their times if the outputs do not name them."""
    if told is not None and told.references is not None:
        return told.outdated
    references = [entry.changed for name, entry in files.items() if _of_flow(name, flow)]
    written = files.get(OUTPUTS[flow])
    return bool(references) and (written is None or max(references) > written.changed)


def finished(facts: Sequence[Facts]) -> State:
    """The state of a run that does not go on, by what its outputs say."""
    if not facts:
        return State.EMPTY
    if any(told.damaged for told in facts):
        return State.DAMAGED
    if any(told.failed for told in facts):
        return State.FAILED
    return State.LEFT_OUT if any(told.left_out for told in facts) else State.FINISHED


class Counted:
    """Counts artefacts of runs; what a flow needs is read once, and what was found is not looked for again."""

    def __init__(self, store: Store) -> None:
        """Nothing is counted yet."""
        self._store = store
        self._known: dict[tuple[str, str], tuple[str, dict[str, set[str]], dict[str, int]]] = {}
        self._live: set[tuple[str, str]] = set()

    def forget(self, runs: Mapping[str, object]) -> None:
        """Drop all but these runs."""
        self._known = {place: known for place, known in self._known.items() if place[0] in runs}
        self._live = {place for place in self._live if place[0] in runs}

    def progress(self, run: str, flow: str, files: Mapping[str, Entry], *, live: bool) -> Progress:
        """How far a flow is.

        Args:
            live: it goes on. What was missing is looked for again then, and once more after it has ended; else only if
                the flow needs other artefacts than before.
        """
        again = live or (run, flow) in self._live
        (self._live.add if live else self._live.discard)((run, flow))
        names = sorted(name for name in files if _of_flow(name, flow))
        version = " ".join(files[name].version for name in names)
        known = self._known.get((run, flow))
        if known is None or known[0] != version:
            needed = self._needed(run, names)
            known = version, needed, {stage: len(keys) for stage, keys in needed.items()}
            self._known[run, flow], again = known, True
        _, missing, totals = known
        if again:
            for stage, keys in missing.items():
                keys -= self._made(stage, keys) if keys else set()
        first = next((stage for stage in sorted(totals, key=_place) if missing[stage]), "")
        absent, total = sum(len(keys) for keys in missing.values()), sum(totals.values())
        needed_here = totals.get(first, 0)
        return Progress(first, needed_here - len(missing.get(first, ())), needed_here, total - absent, total)

    def _needed(self, run: str, names: Sequence[str]) -> dict[str, set[str]]:
        """Keys by stage; what is not a list of artefacts is skipped."""
        out: dict[str, set[str]] = {}
        for name in names:
            try:
                listed = json.loads(read_output(self._store, run, name) or b"[]")
            except (ValueError, RecursionError):
                continue
            for artefact in listed if isinstance(listed, list) else ():
                stage, _, key = artefact.partition("/") if isinstance(artefact, str) else ("", "", "")
                if stage in _ORDER and key.isalnum():
                    out.setdefault(stage, set()).add(key)
        return out

    def _made(self, stage: str, keys: set[str]) -> set[str]:
        if not self._store.is_local:
            return keys.intersection(self._store.names(stage))  # one request for a thousand
        return {key for key in keys if Path(self._store.path(stage, key, OBJECT)).exists()}


def _of_flow(name: str, flow: str) -> bool:
    """Whether a file lists what a flow needs, from its start or since questions were left out."""
    start = f"{REFERENCES}{flow}"
    return name == f"{start}.json" or (name.startswith(f"{start}-") and name.endswith(".json"))


def _place(stage: str) -> int:
    return _ORDER[stage]
