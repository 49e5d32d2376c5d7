"""Charts of scores with their intervals. They show only names from the configuration, never model output.

What is not known is not drawn. Every chart is None where there is nothing to show.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from schemas.text import BETWEEN
from tasks.outputs.figures.style import COLUMN, LABELS, TEXT, Marked, length, rule

ROLLOUTS = {"all": "all rollouts", "correct": "correct rollouts", "incorrect": "incorrect rollouts"}
SOURCES_SHOWN, LOSSES_SHOWN, SOURCES_ALONG = 30, 12, 8
"""Maximum number of teachers with contexts, and of losses, in a chart, and of the former in one with a colour for each:
the first ones. More take minutes to draw and are unreadable; the tables contain all."""
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")

_BETWEEN = 12

Rows = list[dict[str, Any]]
Layers = alt.LayerChart | alt.FacetChart
"""What Altair makes of layers, by its types."""


class Names(NamedTuple):
    """The names that a run's figures have colours for, in order: of teachers with contexts, and of losses."""

    sources: Sequence[str]
    losses: Sequence[str]

    @classmethod
    def of(cls, summary: pl.DataFrame, forecasts: pl.DataFrame) -> "Names":
        """Those of signals that anything is learned from: with a direction, or, without nodes, with a forecast."""
        names = ["teacher", "context", "loss"]
        taught = summary.filter((pl.col("group") == "all") & (pl.col("d_sq") > 0)).select(names)
        known = forecasts.filter(pl.col("forecast").is_not_null()).select(names)
        every = _named(pl.concat([taught, known]))
        return cls(in_order(every, "source"), in_order(every, "loss"))

    def shown(self, table: pl.DataFrame, most: int = SOURCES_SHOWN) -> pl.DataFrame:
        """The rows of the first sources and losses, with teacher and context as one name, `source`."""
        rows = _named(table).filter(pl.col("source").is_in(self.sources[:most]))
        return rows.filter(pl.col("loss").is_in(self.losses[:LOSSES_SHOWN])) if "loss" in rows.columns else rows

    def marked(self, field: str, rows: pl.DataFrame) -> Marked:
        """Colours and shapes of those in a table, by `source` or `loss`."""
        every = self.sources if field == "source" else self.losses
        present = set(rows[field])
        return Marked(field, [name for name in every if name in present], every)


def _named(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(source=pl.concat_str("teacher", pl.lit(BETWEEN), "context"))


def in_order(table: pl.DataFrame, column: str) -> list[str]:
    """Names in a column, in their order."""
    return table[column].unique(maintain_order=True).to_list()


class Panel(NamedTuple):
    """One of several charts beside each other.

    Attributes:
        names: what all of them have beside them, in order.
        beside: whether this one has.
        width: of the panel, without the names.
    """

    names: Sequence[str]
    beside: bool
    width: int


def intervals(
    rows: Rows,
    title: str | list[str],
    marked: Marked,
    *,
    line: float | None,
    domain: Sequence[float] | None = None,
    panel: Panel | None = None,
) -> Layers | None:
    """Values with their intervals from left to right, under each other.

    Args:
        rows: each with `name`, what stands beside the chart; `value`, `low` and `high`; and what is marked, by which
            rows of one name have a place of their own.
        title: of the axis.
        line: a value that has a line.
        domain: of the axis, beyond which an interval is cut.
        panel: where the chart is one of several.
    """
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return None
    names = list(panel.names if panel else dict.fromkeys(row["name"] for row in known))
    scale = alt.Scale(domain=list(domain), nice=False, clamp=True) if domain else alt.Scale(zero=False)
    in_two = length(names) > LABELS
    marked = marked._replace(room=(COLUMN if panel is None else TEXT) - beside(names))
    labels: dict[str, Any] = {"labels": panel is None or panel.beside}
    if in_two:
        labels |= {"labelExpr": f"split(datum.label, '{BETWEEN}')", "labelOffset": -4}  # names have none
    axis = alt.Axis(grid=True, tickBand="extent", ticks=False, **labels)
    y = alt.Y("name:N", sort=names, title=None, scale=alt.Scale(domain=names, padding=0), axis=axis)
    offset = alt.YOffset(f"{marked.field}:N", sort=list(marked.shown), scale=alt.Scale(paddingOuter=0.4))
    base = alt.Chart().encode(y=y, yOffset=offset)
    x = alt.X("low:Q", title=title, scale=scale, axis=alt.Axis(grid=False, tickCount=4))
    bars = base.mark_rule(strokeWidth=1).encode(x=x, x2="high:Q", color=marked.color())
    points = base.mark_point(filled=True, size=18, opacity=1)
    points = points.encode(x=alt.X("value:Q", title=title, scale=scale), color=marked.color(), shape=marked.shape())
    layers = [bars.properties(data=_whole(known)), points.properties(data=alt.Data(values=known))]
    if line is not None:
        layers.insert(0, rule([{"at": line}]).encode(x=alt.X("at:Q", title=title, scale=scale)))
    height = max(22.0 if in_two else 12.0, 5.5 * len(marked.shown) + 4) * len(names)
    chart = alt.layer(*layers).properties(height=height)
    if panel is None:
        return chart.properties(width=COLUMN, autosize=FIT)
    return chart.properties(width=panel.width)


def beside(names: Sequence[str]) -> int:
    """Width of names beside a chart, about: where they are long, teacher and context are under each other."""
    parts = [part for name in names for part in name.split(BETWEEN)] if length(names) > LABELS else names
    return min(LABELS, length(parts)) + 10


def _whole(rows: Rows) -> alt.Data:
    """Those with an interval."""
    return alt.Data(values=[row for row in rows if row["low"] is not None])


def forest(summary: pl.DataFrame, names: Names) -> alt.HConcatChart | None:
    """Alignment with its interval for every signal: all, correct and incorrect rollouts side by side."""
    rows = names.shown(summary.filter(pl.col("group").is_in(["all", "outcome"]) & pl.col("alignment").is_not_null()))
    if rows.is_empty():
        return None
    rows = rows.select("bin", "loss", name="source", low="alignment_low", value="alignment", high="alignment_high")
    losses = names.marked("loss", rows)
    sources = [name for name in names.sources if name in set(rows["name"])]
    present = [name for name in ROLLOUTS if name in set(rows["bin"])]
    panels: list[Layers] = []
    for name in present:
        of = rows.filter(pl.col("bin") == name).to_dicts()
        width = (TEXT - beside(sources) - _BETWEEN * (len(ROLLOUTS) - 1) - 16) // len(ROLLOUTS)
        panel, title = Panel(sources, name == present[0], width), ["alignment", ROLLOUTS[name]]
        chart = intervals(of, title, losses, line=0.0, domain=domain_of(rows), panel=panel)
        panels += [chart] if chart is not None else []
    return alt.hconcat(*panels, spacing=_BETWEEN)


def along(summary: pl.DataFrame, group: str, loss: str, title: str, names: Names) -> Layers | None:
    """Alignment over the bins of a grouping, one colour for each teacher and context."""
    of_group = summary.filter(pl.col("group") == group)
    known = of_group.filter((pl.col("loss") == loss) & pl.col("alignment").is_not_null())
    rows = names.shown(known, SOURCES_ALONG)
    if rows["bin"].n_unique() < 2:
        return None
    rows = rows.select("source", "bin", low="alignment_low", value="alignment", high="alignment_high")
    sources, domain = names.marked("source", rows), domain_of(rows)
    scale = alt.Scale(domain=domain, nice=False, clamp=True)
    axis = alt.Axis(labelAngle=0, labelLimit=60, grid=False)
    offset = alt.XOffset("source:N", sort=list(sources.shown), scale=alt.Scale(paddingOuter=0.4))
    x = alt.X("bin:N", sort=from_low_to_high(in_order(of_group, "bin")), title=title, axis=axis)
    base = alt.Chart().encode(x=x, xOffset=offset, color=sources.color())
    y = alt.Y("low:Q", title=["alignment", f"by {loss}"], scale=scale, axis=alt.Axis(tickCount=5, titleLimit=120))
    bars = base.mark_rule(strokeWidth=1).encode(y=y, y2="high:Q")
    points = base.mark_point(filled=True, size=18, opacity=1)
    points = points.encode(y=alt.Y("value:Q", scale=scale), shape=sources.shape())
    values = rows.to_dicts()
    layers = [
        rule([{"at": 0}]).encode(y=alt.Y("at:Q", scale=scale)),
        bars.properties(data=_whole(values)),
        points.properties(data=alt.Data(values=values)),
    ]
    return alt.layer(*layers).properties(width=COLUMN, height=120, autosize=FIT)


def from_low_to_high(bins: Sequence[str]) -> list[str]:
    """Labels of bins in order; a signal without nodes in one has no row for it."""
    return sorted(bins, key=lambda label: [float(end) for end in label.removesuffix(" %").split("-")])


def domain_of(rows: pl.DataFrame) -> list[float]:
    """Noise can extend an alignment beyond -1 or 1; the axis ends there."""
    low = min((end for name in ("low", "value") for end in rows[name].drop_nulls()), default=0.0)
    return [max(-1.0, min(0.0, low)), 1.0]
