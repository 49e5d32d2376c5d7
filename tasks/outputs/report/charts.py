"""Charts of the report, as SVG text. They show only names from the configuration, never model output."""

from collections.abc import Sequence

import altair as alt
import polars as pl
import vl_convert as vlc

from schemas.text import BETWEEN, reason

ROLLOUTS = {"all": "all rollouts", "correct": "correct rollouts", "incorrect": "incorrect rollouts"}
PALETTE = ["#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#718096", "#b7791f", "#0987a0"]
SOURCES_SHOWN, LOSSES_SHOWN = 30, 12
"""Maximum number of teachers with contexts, and of losses, in a chart: the first ones. More take minutes to draw and
are unreadable; the tables contain all."""
FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


class ChartError(ValueError):
    """A chart that cannot be drawn."""


def forest(summary: pl.DataFrame) -> str | None:
    """Alignment with its interval for every signal: all, correct and incorrect rollouts side by side.

    Raises:
        ChartError: it cannot be drawn.
    """
    if not summary["alignment"].is_not_null().any():
        return None
    rows = (
        _with_source(summary.filter(pl.col("group").is_in(["all", "outcome"]) & pl.col("alignment").is_not_null()))
        .with_columns(rollouts=pl.col("bin").replace_strict(ROLLOUTS, default=None))
        .select("source", "loss", "rollouts", "alignment", "alignment_low", "alignment_high")
    )
    losses = rows["loss"].unique(maintain_order=True).to_list()
    base = alt.Chart().encode(
        y=alt.Y("loss:N", title=None, sort=losses, axis=alt.Axis(labels=False, ticks=False, domain=False)),
        color=_color("loss", losses),
    )
    zero = alt.Chart().mark_rule(color="#a0aec0").encode(x=alt.datum(0))
    interval = base.mark_rule(strokeWidth=2, clip=True).encode(
        x=alt.X("alignment_low:Q", title="alignment", scale=_scale(rows)), x2="alignment_high:Q"
    )
    point = base.mark_point(filled=True, size=55, opacity=1, clip=True).encode(x="alignment:Q")
    data = alt.Data(values=rows.to_dicts())
    cell = alt.layer(zero, interval, point, data=data).properties(width=235, height=max(26, 13 * len(losses)))
    chart = cell.facet(
        row=alt.Row(
            "source:N",
            title=None,
            sort=rows["source"].unique(maintain_order=True).to_list(),
            header=alt.Header(labelAngle=0, labelAlign="left", labelLimit=180, labelPadding=16),
        ),
        column=alt.Column("rollouts:N", title=None, sort=list(ROLLOUTS.values())),
        spacing={"row": 6, "column": 16},
    )
    return _svg(chart)


def along(summary: pl.DataFrame, group: str, loss: str, title: str) -> str | None:
    """Alignment over the bins of a grouping, one colour per teacher and context; None where there is nothing to show.

    Raises:
        ChartError: it cannot be drawn.
    """
    rows = _with_source(
        summary.filter((pl.col("group") == group) & (pl.col("loss") == loss) & pl.col("alignment").is_not_null())
    )
    if rows["bin"].n_unique() < 2:
        return None
    order = summary.filter(pl.col("group") == group)["bin"].unique(maintain_order=True).to_list()
    sources = rows["source"].unique(maintain_order=True).to_list()
    values = rows.select("source", "bin", "alignment", "alignment_low", "alignment_high").to_dicts()
    x = alt.X("bin:N", sort=order, title=title, axis=alt.Axis(labelAngle=0, labelLimit=110))
    base = alt.Chart(alt.Data(values=values)).encode(x=x, color=_color("source", sources))
    offset = alt.XOffset("source:N", sort=sources)
    chart = (
        base.mark_rule(strokeWidth=2, clip=True).encode(
            y=alt.Y("alignment_low:Q", title="alignment", scale=_scale(rows)),
            y2="alignment_high:Q",
            xOffset=offset,
        )
        + base.mark_point(filled=True, size=45, opacity=1, clip=True).encode(y="alignment:Q", xOffset=offset)
        + alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(color="#a0aec0").encode(y="y:Q")
    ).properties(width=420, height=170)
    return _svg(chart)


def _with_source(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows to draw, with teacher and context as one name."""
    named = rows.with_columns(source=pl.concat_str("teacher", pl.lit(BETWEEN), "context"))
    first = {
        name: named[name].unique(maintain_order=True).head(most)
        for name, most in (("source", SOURCES_SHOWN), ("loss", LOSSES_SHOWN))
    }
    return named.filter(*(pl.col(name).is_in(values.implode()) for name, values in first.items()))


def _scale(rows: pl.DataFrame) -> alt.Scale:
    """Noise can extend an interval beyond -1 or 1; the axis ends there."""
    low = min(rows["alignment_low"].to_list(), default=0.0)
    return alt.Scale(domain=[max(-1.0, min(0.0, low)), 1.0], nice=False)


def _color(name: str, order: Sequence[str]) -> alt.Color:
    return alt.Color(
        f"{name}:N",
        sort=list(order),
        scale=alt.Scale(domain=list(order), range=PALETTE),
        legend=alt.Legend(title=None, columns=3, labelLimit=200),
    )


def _svg(chart: alt.TopLevelMixin) -> str:
    configured = (
        chart.configure(font=FONT, background="transparent")
        .configure_view(stroke="#e2e8f0")
        .configure_axis(labelFontSize=11, titleFontSize=11, titleFontWeight="normal", gridColor="#edf2f7")
        .configure_header(labelFontSize=12)
        .configure_legend(orient="top", labelFontSize=11)
    )
    try:
        return str(vlc.vegalite_to_svg(configured.to_dict()))
    except ValueError as error:
        raise ChartError(reason(error)) from error
