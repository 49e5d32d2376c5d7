"""The tables of a validation: every training, and each signal's success beside what was forecast."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from schemas.arrays import Arrays
from schemas.signals import Signal
from schemas.training_tables import PREDICTIONS, TRAININGS, VALIDATION
from tasks.stages.aggregate.tables import frame
from tasks.statistics.bootstrap import bootstrap_interval, resample
from tasks.statistics.csr import Floats
from tasks.validation.trainings import UNTRAINED, Training

LEVEL = 0.95
"""Of the intervals of what was measured."""
_REPLICATES = 2000


class Student(NamedTuple):
    """What is known of one student.

    Attributes:
        name: in tables.
        trainings: results, in the layout `schemas.arrays.TRAININGS`; the student as it was among them.
        predictions: what was known of each signal beforehand: columns of `PREDICTIONS`, and the forecast's others.
        selected: gain of training on some tokens alone, by signal and their name.
    """

    name: str
    trainings: Mapping[Training, Arrays]
    predictions: Mapping[Signal, Mapping[str, Any]]
    selected: Mapping[tuple[Signal, str], float]


def trainings_table(students: Sequence[Student]) -> pl.DataFrame:
    """One row for each training and logged step."""
    return frame([row for student in students for row in _training_rows(student)], TRAININGS)


def _training_rows(student: Student) -> list[dict[str, Any]]:
    base = _success(student.trainings[UNTRAINED], 0)
    counts = resample(len(base), _REPLICATES, 0)
    rows = []
    for training, arrays in student.trainings.items():
        if training.signal is None:
            continue
        for e, step in enumerate(arrays["step"].tolist()):
            success = _success(arrays, e)
            low, high = _interval(success - base, counts)
            rows.append(
                {
                    **_names(student, training),
                    "seed": training.seed,
                    "step": step,
                    "success": float(success.mean()),
                    "change": float((success - base).mean()),
                    "change_low": low,
                    "change_high": high,
                    "decoded": int(arrays["decoded"][e]),
                    "scored": int(arrays["scored"][e]),
                }
            )
    return rows


def validation_table(students: Sequence[Student]) -> pl.DataFrame:
    """One row for each student, signal, selection of tokens, optimiser and logged step, over all seeds."""
    return frame([row for student in students for row in _validation_rows(student)], VALIDATION)


def _validation_rows(student: Student) -> list[dict[str, Any]]:
    base = _success(student.trainings[UNTRAINED], 0)
    counts = resample(len(base), _REPLICATES, 0)
    of_seeds: dict[Training, list[Arrays]] = {}
    for training, arrays in student.trainings.items():
        of_seeds.setdefault(training._replace(seed=0), []).append(arrays)
    rows = []
    for training, results in of_seeds.items():
        if training.signal is None:
            continue
        known = student.predictions.get(training.signal, {})
        for e, step in enumerate(results[0]["step"].tolist()):
            success = np.stack([_success(arrays, e) for arrays in results])
            by_seed = success.mean(axis=1)
            low, high = _interval(success.mean(axis=0) - base, counts)
            rows.append(
                {
                    **_names(student, training),
                    "step": step,
                    "seeds": len(results),
                    "measured": float(by_seed.mean()),
                    "measured_error": float(by_seed.std(ddof=1) / np.sqrt(len(results))) if len(results) > 1 else None,
                    "base": float(base.mean()),
                    "change_low": low,
                    "change_high": high,
                    **{
                        name: known.get(name)
                        for name in (*PREDICTIONS, "forecast_low", "forecast_high", "verdict", "remark")
                    },
                    "selected_gain": student.selected.get((training.signal, training.tokens)),
                }
            )
    return rows


def _names(student: Student, training: Training) -> dict[str, Any]:
    if training.signal is None:
        raise ValueError("the student as it was is no training")
    names = {**training.signal._asdict(), "tokens": training.tokens, "optimiser": training.optimiser}
    return {"student": student.name, **names}


def _success(arrays: Arrays, e: int) -> Floats:
    return np.asarray(arrays["success"][e], dtype=np.float64)


def _interval(differences: Floats, counts: Floats) -> tuple[float, float]:
    """Interval of a mean difference over questions; NaN where there is none in any."""
    if np.ptp(differences) == 0:
        return np.nan, np.nan
    return bootstrap_interval(counts @ differences / len(differences), len(differences), LEVEL)
