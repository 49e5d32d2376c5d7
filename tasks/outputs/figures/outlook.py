"""Charts of what training will bring, and on which tokens: forecasts, teachers' own success, selections, predictors."""

import altair as alt
import polars as pl

from schemas.text import BETWEEN
from tasks.outputs.figures.charts import FIT, SOURCES_ALONG, Layers, Names, Rows, in_order, intervals
from tasks.outputs.figures.style import COLUMN, Marked, rule

PREDICTORS = {
    "kl": "KL(student || teacher)",
    "js": "Jensen-Shannon div.",
    "entropy": "student's entropy",
    "position": "place in the rollout",
    "student_prob": "student's probability",
    "teacher_prob": "teacher's probability",
    "teacher_lead": "log-ratio of teacher",
    "signal_norm": "|d| of the signal",
}
SUCCESS = {"own": "own success", "handover": "handover"}


def forecasts(table: pl.DataFrame, names: Names) -> Layers | None:
    """Success after training on each signal, the best first, and before as a line."""
    rows = names.shown(table.filter(pl.col("forecast").is_not_null()))
    if rows.is_empty():
        return None
    title = ["success after training", "(line: before)"]
    marked = names.marked("loss", rows)
    return intervals(_rows(rows, "source", "forecast", "loss"), title, marked, line=rows["base"][0], domain=(0, 1))


def success(table: pl.DataFrame, base: float | None) -> Layers | None:
    """Teachers' own success, and the student's that goes on from just before their answers.

    Args:
        base: the student's, a line; None where it is not known.
    """
    if table.is_empty():
        return None
    every = Names(in_order(table.select(source=pl.concat_str("teacher", pl.lit(BETWEEN), "context")), "source"), [])
    rows = every.shown(table)
    told = [{**row, "kind": kind} for name, kind in SUCCESS.items() for row in _rows(rows, "source", name)]
    shown = [kind for kind in SUCCESS.values() if any(row["kind"] == kind and row["value"] is not None for row in told)]
    title = "success" if base is None else ["success", "(line: the student's)"]
    return intervals(told, title, Marked("kind", shown, list(SUCCESS.values())), line=base, domain=(0, 1))


def selection(table: pl.DataFrame, loss: str, names: Names) -> Layers | None:
    """What training on some tokens alone would gain beside training on all."""
    known = table.filter((pl.col("loss") == loss) & pl.col("additional_gain").is_not_null())
    rows = names.shown(known, SOURCES_ALONG).with_columns(tokens=pl.col("tokens").str.replace_all("_", " "))
    if rows.is_empty():
        return None
    title = ["gain less that of all tokens", f"by {loss}"]
    told = _rows(rows, "tokens", "additional_gain", "source")
    return intervals(told, title, names.marked("source", rows), line=0.0)


def predictors(table: pl.DataFrame, loss: str, names: Names) -> Layers | None:
    """How well what is known of a token without any draw tells its alignment."""
    known = table.filter((pl.col("loss") == loss) & pl.col("correlation").is_not_null())
    rows = names.shown(known, SOURCES_ALONG).with_columns(predictor=pl.col("predictor").replace(PREDICTORS))
    if rows.is_empty():
        return None
    title = ["rank correlation with alignment", f"by {loss}"]
    told = _rows(rows, "predictor", "correlation", "source")
    return intervals(told, title, names.marked("source", rows), line=0.0, domain=(-1, 1))


def gain_against_forecast(summary: pl.DataFrame, table: pl.DataFrame, names: Names) -> Layers | None:
    """What a first step brings, and where training levels off, for every signal."""
    gains = summary.filter((pl.col("group") == "all") & pl.col("gain").is_not_null())
    by_signal = ["teacher", "context", "loss"]
    forecast = table.filter(pl.col("change").is_not_null())
    both = gains.select(*by_signal, "gain").join(forecast, on=by_signal, maintain_order="left")
    rows = names.shown(both, SOURCES_ALONG)
    if rows.height < 2:
        return None
    sources, losses = names.marked("source", rows), names.marked("loss", rows)
    title, axis = "forecast change of success", alt.Axis(grid=False, tickCount=5)
    base = alt.Chart().encode(x=alt.X("gain:Q", title="gain of a unit step", axis=axis), color=sources.color())
    bars = base.mark_rule(strokeWidth=0.7, opacity=0.5)
    bars = bars.encode(y=alt.Y("change_low:Q", title=title, axis=axis), y2="change_high:Q")
    points = base.mark_point(filled=True, size=22, opacity=1)
    points = points.encode(y=alt.Y("change:Q", title=title), shape=losses.shape(orient="bottom"))
    zero = rule([{"at": 0}])
    values = rows.select("source", "loss", "gain", "change", "change_low", "change_high").to_dicts()
    layers = [zero.encode(x=alt.X("at:Q")), zero.encode(y=alt.Y("at:Q")), bars, points]
    return alt.layer(*layers, data=alt.Data(values=values)).properties(width=COLUMN, height=150, autosize=FIT)


def _rows(table: pl.DataFrame, name: str, value: str, *more: str) -> Rows:
    """Rows for `tasks.outputs.figures.charts.intervals`."""
    return table.select(*more, name=name, value=value, low=f"{value}_low", high=f"{value}_high").to_dicts()
