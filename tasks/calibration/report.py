"""The calibration as a page: its figures, and error against decoded tokens."""

import altair as alt
import polars as pl
import vl_convert as vlc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from schemas.config import CalibrateConfig
from tasks.calibration.comparisons import errors
from tasks.calibration.judge import by_planner, figures, ranking_table

FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def calibration_page(rows: pl.DataFrame, config: CalibrateConfig) -> str:
    """One HTML file without network access or scripts."""
    environment = Environment(
        loader=PackageLoader("tasks.calibration"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    table = errors(rows).sort("length", "signal", "student", "decisions", "planner", "draws")
    return environment.get_template("calibration.html.jinja").render(
        config=config,
        figures=figures(rows),
        planners=by_planner(rows).to_dicts(),
        ranking=ranking_table(rows).to_dicts(),
        errors=table.to_dicts(),
        chart=Markup(error_chart(table)),  # noqa: S704 - made here
    )


def error_chart(table: pl.DataFrame) -> str:
    """Error of pooled alignment against decoded tokens, one panel per family, as SVG."""
    values = table.with_columns(
        family=pl.concat_str(
            "length", pl.lit(" tokens, "), "signal", pl.lit(", "), "student", pl.lit(" "), "decisions"
        ),
        rmse=pl.col("rmse").clip(1e-3, 1.0),
    ).to_dicts()
    families = list(dict.fromkeys(row["family"] for row in values))
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X(
            "tokens:Q",
            scale=alt.Scale(type="log"),
            title="decoded tokens",
            axis=alt.Axis(format="~s", tickCount=3, grid=False),
        ),
        y=alt.Y("rmse:Q", scale=alt.Scale(type="log"), title="error of alignment"),
        color=alt.Color("planner:N", legend=alt.Legend(orient="top", title=None)),
    )
    panels = (base.mark_line(strokeWidth=1.5) + base.mark_point(filled=True, size=40, opacity=1)).properties(
        width=190, height=120
    )
    chart = panels.facet(facet=alt.Facet("family:N", title=None, sort=families), columns=4).resolve_scale(
        x="independent"
    )
    return str(vlc.vegalite_to_svg(chart.configure(font=FONT, background="transparent").to_dict()))
