"""Teachers' own success, and what of it the student can go on from, with intervals by question."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.arrays import Arrays
from schemas.config import Scores
from schemas.config.success import BEFORE_ANSWER
from schemas.signals import Source
from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, resample
from tasks.statistics.csr import Floats

_RATES = ("own", "handover")


class Answered(NamedTuple):
    """One question: success rate of the student's rollouts, and by teacher with context its answers and handover."""

    student: float
    answers: Mapping[Source, Arrays]
    handover: Mapping[Source, Arrays]


def success_rows(questions: Sequence[Answered], scores: Scores, seed: int) -> list[dict[str, Any]]:
    """Rows of `schemas.tables.SUCCESS`, one for each teacher with its context; differences are paired by question."""
    rows = []
    student = np.array([q.student for q in questions])
    counts = resample(len(questions), scores.bootstrap, seed)
    handover = handover_rates(questions)
    for source, own in own_rates(questions).items():
        cut = np.array([float(np.mean(q.answers[source]["truncated"])) for q in questions])
        handed = handover[source]
        row: dict[str, Any] = {
            **source._asdict(),
            "questions": len(questions),
            "answers": sum(len(q.answers[source]["success"]) for q in questions),
            "truncated": float(cut.mean()),
        }
        values = {"own": own, "gap": own - student, "handover": handed, "copied": own - handed}
        rows.append(row | mean_estimates(values, counts, scores.level))
    return rows


def handover_rows(questions: Sequence[Answered], scores: Scores, seed: int) -> list[dict[str, Any]]:
    """Rows of `schemas.tables.HANDOVERS`, one for each teacher with its context and part of its answers."""
    rows = []
    counts = resample(len(questions), scores.bootstrap, seed)
    for source in questions[0].handover:
        parts = sorted({part for q in questions for part in q.handover[source]["part"].tolist()})
        for part in parts:
            values = {"handover": np.array([rate(q.handover[source], part) for q in questions])}
            rows.append({**source._asdict(), "part": part} | mean_estimates(values, counts, scores.level))
    return rows


def own_rates(questions: Sequence[Answered]) -> dict[Source, Floats]:
    """Success rate of each teacher with its context on every question, [Q]."""
    return {
        source: np.array([float(np.mean(q.answers[source]["success"])) for q in questions])
        for source in questions[0].answers
    }


def handover_rates(questions: Sequence[Answered]) -> dict[Source, Floats]:
    """Success rate of the student from just before its answers, [Q]; NaN where it is not known."""
    return {
        source: np.array([rate(q.handover[source], BEFORE_ANSWER) for q in questions])
        for source in questions[0].handover
    }


def rate(handover: Arrays, part: float) -> float:
    """Success rate of the continuations after a part of the answers; NaN where there are none."""
    of_part = np.asarray(handover["part"]) == part
    draws = int(np.asarray(handover["draws"])[of_part].sum())
    return float(np.asarray(handover["successes"])[of_part].sum() / draws) if draws else np.nan


def mean_estimates(values: Mapping[str, Floats], counts: Floats, level: float) -> dict[str, float]:
    """Means over questions with bootstrap intervals; questions where a value is not known are left out."""
    out: dict[str, float] = {}
    for name, of_questions in values.items():
        known = np.isfinite(of_questions)
        if not known.any():
            out |= {f"{name}{end}": np.nan for end in ("", "_low", "_high")}
            continue
        value, units = float(of_questions[known].mean()), int(known.sum())
        if np.ptp(of_questions[known]) == 0:
            low, high = _of_no_spread(value, units, level) if name in _RATES else (np.nan, np.nan)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                replicates = counts[:, known] @ of_questions[known] / counts[:, known].sum(axis=1)
            low, high = bootstrap_interval(replicates, units, level)
            low, high = max(low, 0.0 if name in _RATES else -1.0), min(high, 1.0)
        out |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return out


def _of_no_spread(rate: float, units: int, level: float) -> tuple[float, float]:
    """Interval of a rate that is 0 or 1 in every question (Clopper and Pearson 1934); unknown for another.

    As if each question had one answer, since those to one question are alike.
    """
    reach = ((1 - level) / 2) ** (1 / units)
    if units < LEAST_UNITS or rate not in (0.0, 1.0):
        return np.nan, np.nan
    return (0.0, 1 - reach) if rate == 0 else (reach, 1.0)
