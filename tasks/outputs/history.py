"""Scores over the nights: tonight's against previous measurements, and which moved beyond their intervals."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl

from schemas.tables import HISTORY
from tasks.stages.aggregate.tables import headline

SCORE = ["run", "teacher", "context", "loss", "rollouts"]
MOVED = ("up", "down", "lost")
SCHEMA = {
    name: getattr(pl, c.dtype)("us", "UTC") if c.dtype == "Datetime" else getattr(pl, c.dtype)()
    for name, c in HISTORY.items()
}


def no_history() -> pl.DataFrame:
    """A history before the first night."""
    return pl.DataFrame(schema=SCHEMA)


def tonight(
    night: datetime, run: str, key: str, summary: pl.DataFrame, stages: Mapping[str, Any], machine: str
) -> pl.DataFrame:
    """The scores of a run as rows of the history, not yet compared.

    Args:
        summary: the run's `summary.parquet`.
        stages: what its stages did, as in `run.json`.
    """
    trees = stages.get("trees", {})
    decoded, seconds = trees.get("decoded_tokens", 0), trees.get("seconds", 0.0)
    speed = decoded / seconds if decoded and seconds else None
    same = {"night": night, "run": run, "key": key, "tokens_per_second": speed, "machine": machine}
    rows = [
        {
            **same,
            **{name: signal[name] for name in ("teacher", "context", "loss")},
            "rollouts": rollouts,
            **{name: signal[rollouts][name] for name in ("alignment", "alignment_low", "alignment_high")},
        }
        for signal in headline(summary)
        for rollouts in ("all", "correct", "incorrect")
        if signal[rollouts] is not None
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def compared(history: pl.DataFrame, rows: pl.DataFrame, nights: int) -> pl.DataFrame:
    """Tonight's rows with the reference of each and how it changed.

    A night that computed nothing is not a measurement. The reference is the mean of the last `nights` measurements; its
    half-width is their mean half-width, as they share their questions. A score has moved where it differs from the
    reference by more than both half-widths, added in quadrature.
    """
    before = (
        history.filter(pl.col("change") != "unchanged")
        .sort("night")
        .group_by(SCORE, maintain_order=True)
        .agg(
            pl.col("alignment").drop_nulls().tail(nights).mean().alias("reference"),
            ((pl.col("alignment_high") - pl.col("alignment_low")) / 2)
            .filter(pl.col("alignment").is_not_null())
            .tail(nights)
            .mean()
            .alias("reference_error"),
        )
    )
    joined = rows.drop("reference", "reference_error", "change").join(before, on=SCORE, how="left")
    own = (pl.col("alignment_high") - pl.col("alignment_low")) / 2
    difference = pl.col("alignment") - pl.col("reference")
    limit = (own**2 + pl.col("reference_error") ** 2).sqrt()
    change = (
        pl.when(pl.col("reference").is_null())
        .then(pl.lit("new"))
        .when(pl.col("alignment").is_null())
        .then(pl.lit("lost"))
        .when(difference > limit)
        .then(pl.lit("up"))
        .when(difference < -limit)
        .then(pl.lit("down"))
        .otherwise(pl.lit("steady"))
    )
    return joined.with_columns(change.alias("change")).select(list(SCHEMA))


def unchanged(history: pl.DataFrame, run: str, key: str, night: datetime) -> pl.DataFrame | None:
    """The last night's rows of a run, for a night with nothing to compute; None where there is something to compute."""
    before = history.filter(pl.col("run") == run)
    if before.is_empty():
        return None
    last = before.filter(pl.col("night") == before["night"].max())
    if last["key"].unique().to_list() != [key]:
        return None
    return last.with_columns(
        pl.lit(night).cast(SCHEMA["night"]).alias("night"),
        pl.lit("unchanged").alias("change"),
        pl.lit(None, dtype=pl.Float64).alias("tokens_per_second"),
    )


def slower(history: pl.DataFrame, rows: pl.DataFrame, nights: int, limit: float) -> str | None:
    """By how much decoding is slower than the median of the last nights on the same machine; None within the limit."""
    speeds = rows["tokens_per_second"].drop_nulls()
    if speeds.is_empty():
        return None
    now, run, machine = float(speeds[0]), rows["run"][0], rows["machine"][0]
    before = (
        history.filter(
            (pl.col("run") == run) & (pl.col("machine") == machine) & pl.col("tokens_per_second").is_not_null()
        )
        .unique("night")
        .sort("night")["tokens_per_second"]
        .tail(nights)
    )
    usual = before.median()
    if not isinstance(usual, float) or now >= (1 - limit) * usual:
        return None
    return (
        f"{run}: {now:,.0f} tokens/s on {machine}, {100 * (1 - now / usual):.0f} % below the last nights' {usual:,.0f}"
    )
