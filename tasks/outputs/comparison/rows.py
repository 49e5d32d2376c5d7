"""Runs side by side, as a table."""

import math
from collections.abc import Sequence

import polars as pl

from schemas.question_tables import COMPARISON
from tasks.outputs.comparison.differences import Compared, Difference, Key, Value, differences
from tasks.stages.aggregate.tables import frame

SCORES = ("success", "own", "handover", "forecast", "alignment", "gain")
"""In the order of the table."""
_NAN = math.nan


def comparison_table(runs: Sequence[Compared]) -> pl.DataFrame:
    """Every score of every run, and its difference to the first; columns of `schemas.question_tables.COMPARISON`.

    Scores that one of the runs does not have are null there.
    """
    found: list[dict[Key, Difference]] = [{}, *(differences(runs[0], other) for other in runs[1:])]
    keys = dict.fromkeys(key for run in runs for key in run.values)
    rows = []
    for key in sorted(keys, key=lambda key: SCORES.index(key.score)):
        for run, to_first in zip(runs, found, strict=True):
            value, difference = run.values.get(key, Value(_NAN, _NAN, _NAN)), to_first.get(key)
            at = difference or Difference(_NAN, _NAN, _NAN, 0)
            known = difference is not None and math.isfinite(at.value)
            rows.append(
                {
                    **key._asdict(),
                    "run": run.name,
                    **dict(zip(("value", "value_low", "value_high"), value, strict=True)),
                    **dict(zip(("difference", "difference_low", "difference_high"), at[:3], strict=True)),
                    "paired": at.paired if known else None,
                }
            )
    return frame(rows, COMPARISON)
