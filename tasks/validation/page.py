"""A validation as a page: forecast against measured success, learning curves, and where they part."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl
import vl_convert as vlc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
PARTS = 12
"""Signals that are listed where forecast and training part most."""


def validation_page(result: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> str:
    """One HTML file without network access or scripts.

    Args:
        result: content of `validation.json`.
        tables: by name, as `schemas.training_tables` declares them.
    """
    environment = Environment(
        loader=PackageLoader("tasks.validation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    validation = tables["validation"]
    last = validation.filter(pl.col("step") == pl.col("step").max()).with_columns(
        pl.concat_str("teacher", "context", separator="/").alias("source")
    )
    told = last.filter((pl.col("tokens") == "all") & pl.col("forecast").is_not_null())
    apart = told.with_columns((pl.col("measured") - pl.col("forecast")).alias("apart"))
    return environment.get_template("validation.html.jinja").render(
        result=result,
        settings=result["configuration"]["validation"],
        predictors=result["predictors"],
        figures=result["figures"],
        apart=apart.sort(pl.col("apart").abs(), descending=True).head(PARTS).to_dicts(),
        rows=last.sort("student", "optimiser", "measured", descending=[False, False, True]).to_dicts(),
        against=Markup(against(told, _colors(tables))) if len(told) else "",  # noqa: S704 - made here
        curves=Markup(curves(tables["trainings"], _colors(tables))),  # noqa: S704
    )


def _colors(tables: Mapping[str, pl.DataFrame]) -> alt.Color:
    """One colour for each teacher with its context, the same in all charts."""
    names = tables["trainings"].select(pl.concat_str("teacher", "context", separator="/").unique(maintain_order=True))
    legend = alt.Legend(orient="bottom", title=None, columns=4, labelLimit=300)
    return alt.Color("source:N", scale=alt.Scale(domain=names.to_series().to_list()), legend=legend)


def against(told: pl.DataFrame, color: alt.Color) -> str:
    """Measured success against the forecast with its interval, one panel for each student and optimiser, as SVG."""
    values = told.with_columns(cell=pl.concat_str("student", pl.lit(", "), "optimiser")).to_dicts()
    base = alt.Chart(alt.Data(values=values))
    axis = alt.Axis(format=".1f", tickCount=6, grid=True, gridColor="#edf2f7")
    scale = alt.Scale(domain=[0, 1])
    x = alt.X("forecast:Q", scale=scale, axis=axis, title="forecast")
    y = alt.Y("measured:Q", scale=scale, axis=axis, title="measured")
    diagonal = base.transform_calculate(lower="0", upper="1").mark_rule(color="#a0aec0", strokeDash=[4, 3])
    layers = (
        diagonal.encode(x=alt.X("lower:Q", scale=scale), y=alt.Y("lower:Q", scale=scale), x2="upper:Q", y2="upper:Q")
        + base.mark_rule(opacity=0.35).encode(x="forecast_low:Q", x2="forecast_high:Q", y=y, color=color)
        + base.mark_point(filled=True, size=60, opacity=0.9).encode(
            x=x, y=y, color=color, shape=alt.Shape("loss:N", legend=alt.Legend(orient="bottom", title=None))
        )
    ).properties(width=250, height=250)
    return _svg(layers.facet(facet=alt.Facet("cell:N", title=None), columns=2))


def curves(trainings: pl.DataFrame, color: alt.Color) -> str:
    """Success by step, mean over seeds, one panel for each student, optimiser and loss, as SVG."""
    of_all = trainings.filter(pl.col("tokens") == "all")
    start = of_all.with_columns(step=pl.lit(0, pl.Int32), success=pl.col("success") - pl.col("change"))
    mean = (
        pl.concat([start.unique(subset=["student", "teacher", "context", "loss", "optimiser"]), of_all])
        .group_by("student", "teacher", "context", "loss", "optimiser", "step")
        .agg(pl.col("success").mean())
        .with_columns(
            source=pl.concat_str("teacher", "context", separator="/"),
            cell=pl.concat_str("student", pl.lit(", "), "optimiser", pl.lit(", "), "loss"),
        )
        .sort("cell", "source", "step")
    )
    chart = (
        alt.Chart(alt.Data(values=mean.to_dicts()))
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", axis=alt.Axis(grid=False, tickMinStep=1), title="step"),
            y=alt.Y("success:Q", scale=alt.Scale(domain=[0, 1]), title="success"),
            color=color,
        )
        .properties(width=200, height=150)
    )
    return _svg(chart.facet(facet=alt.Facet("cell:N", title=None), columns=4))


def _svg(chart: alt.FacetChart) -> str:
    return str(vlc.vegalite_to_svg(chart.configure(font=FONT, background="transparent").to_dict()))
