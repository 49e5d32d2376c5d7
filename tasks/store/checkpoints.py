"""Decodes many draws in units and commits what is done from time to time, so that a kill loses little."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from schemas.arrays import LAYOUTS, AnyArray
from schemas.config import AdaptiveTree
from tasks.operations.progress import report
from tasks.run.session import Job
from tasks.store.store import Artefact

SUFFIX = ".zarr.zip"


class Unit(NamedTuple):
    """What is decoded together: rollouts, branches, or windows, `first:last`."""

    first: int
    last: int


def equal_units(total: int, most: int) -> list[Unit]:
    """Units of at most so many, as equal as can be."""
    n = -(-total // most)
    return [Unit(total * i // n, total * (i + 1) // n) for i in range(n)]


def decoded_round(
    job: Job,
    key: str,
    index: int,
    units: Sequence[Unit],
    decode: Callable[[Unit], Mapping[str, AnyArray]],
    layout: str = "rounds",
    *,
    shown: str = "draws",
    kept: bool = True,
) -> dict[str, AnyArray]:
    """The outcomes of one round, unit after unit; what the store holds of it is not decoded again.

    Args:
        key: under which rounds are kept.
        index: of the round.
        decode: decodes and verifies one unit; its arrays are laid out as `layout` declares.
        shown: what progress calls the draws.
        kept: the finished round is kept, for rounds after it; else what was committed of it stays until the artefact
            that comes of it is committed, and `clear_rounds` called.
    """
    name, total = f"round-{index:04d}", units[-1].last if units else 0
    whole = job.store.load("rounds", key, name=name + SUFFIX, layout=layout) if kept else None
    if whole is not None and whole.meta["last"] == total:
        report(shown, len(whole["success"]))
        return dict(whole.arrays)
    parts = {p.meta["first"]: p for p in _parts(job, key, index, layout)} if len(units) > 1 else {}
    ends = {unit.last for unit in units}
    done: list[Mapping[str, AnyArray]] = []
    pending: list[Mapping[str, AnyArray]] = []
    reached, first, committed = 0, 0, time.monotonic()

    def commit(name: str, outcomes: Sequence[Mapping[str, AnyArray]], first: int, last: int) -> None:
        job.store.commit(
            "rounds", key, joined(outcomes, layout), {"first": first, "last": last}, name=name + SUFFIX, layout=layout
        )

    for unit in units:
        if unit.first < reached:
            continue  # in the part taken before
        part = parts.get(unit.first)
        if part is not None and not pending and part.meta["last"] in ends:
            outcome: Mapping[str, AnyArray] = part.arrays
            reached = first = int(part.meta["last"])
        else:
            outcome = decode(unit)
            pending.append(outcome)
            reached = unit.last
            if reached < total and time.monotonic() - committed >= job.config.execution.round_seconds:
                commit(f"part-{index:04d}-{first:09d}", pending, first, reached)
                pending, first, committed = [], reached, time.monotonic()
        done.append(outcome)
        report(shown, len(outcome["success"]))
    if kept:
        commit(name, done, 0, total)
        _clear(job, key, f"part-{index:04d}-")
    return joined(done, layout)


def joined(outcomes: Sequence[Mapping[str, AnyArray]], layout: str = "rounds") -> dict[str, AnyArray]:
    """Outcomes one after another; offsets of ragged ones go on from each other."""
    out: dict[str, AnyArray] = {}
    for name, declared in LAYOUTS[layout].items():
        parts = [np.asarray(o[name]) for o in outcomes]
        if name == "offsets":
            starts = np.cumsum([0, *(int(p[-1]) for p in parts)])
            parts = [np.zeros(1, dtype=np.int64), *(p[1:] + s for p, s in zip(parts, starts[:-1], strict=True))]
        out[name] = np.concatenate([np.empty(0, dtype=declared.dtype), *parts]).astype(declared.dtype)
    return out


def _parts(job: Job, key: str, index: int, layout: str) -> list[Artefact]:
    names = [name for name in job.store.names("rounds", key) if name.startswith(f"part-{index:04d}-")]
    found = [job.store.load("rounds", key, name=name, layout=layout) for name in names]
    return [part for part in found if part is not None]


def _clear(job: Job, key: str, start: str = "") -> None:
    """Remove rounds, or parts of one, whose names start so."""
    for name in job.store.names("rounds", key):
        if name.startswith(start):
            job.store.remove("rounds", key, name)


def clear_rounds(job: Job, stage: str, question_id: str) -> None:
    """Remove what a finished artefact no longer needs; an adaptive tree keeps its rounds, for a larger budget."""
    extends = stage == "trees" and isinstance(job.config.tree, AdaptiveTree)
    for key in job.rounds_keys(stage, question_id):
        _clear(job, key, "part-" if extends else "")
