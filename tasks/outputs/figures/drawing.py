"""The figures of a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import altair as alt
import polars as pl

from tasks.outputs.figures import charts, outlook
from tasks.outputs.figures.charts import LOSSES_SHOWN, SOURCES_ALONG, SOURCES_SHOWN, Names
from tasks.outputs.figures.style import drawn

TABLES = ("summary", "forecasts", "success", "selection", "predictors")
"""The run's tables that figures are made from."""
_ALONG = {
    "position": "place in the rollout",
    "entropy": "student's entropy",
    "divergence": "KL(student || teacher)",
    "difficulty": "question's success rate",
}


class Figure(NamedTuple):
    """A figure: its name, how it is drawn, None where there is nothing to draw, and what would have to be known."""

    name: str
    chart: alt.TopLevelMixin | None
    lacking: str

    def files(self, forms: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Its files, by name.

        Raises:
            ChartError: it cannot be drawn.
        """
        if self.chart is not None:
            for form in forms:
                yield f"{self.name}.{form}", drawn(self.chart, form)


def figures(tables: Mapping[str, pl.DataFrame]) -> Iterator[Figure]:
    """All figures of a run; those by one loss are of its first."""
    summary, forecasts, success = tables["summary"], tables["forecasts"], tables["success"]
    names = Names.of(summary, forecasts)
    loss = names.losses[0] if names.losses else ""
    base = forecasts["base"][0] if forecasts.height else None
    yield Figure("forecast", outlook.forecasts(forecasts, names), "no signal has a forecast")
    yield Figure("alignment", charts.forest(summary, names), "no alignment is resolved")
    for group, title in _ALONG.items():
        made = charts.along(summary, group, loss, title, names)
        yield Figure(f"alignment-{group}", made, f"fewer than two bins of {title} have a resolved alignment")
    yield Figure("success", outlook.success(success, base), "no teacher answers the questions")
    made = outlook.gain_against_forecast(summary, forecasts, names)
    yield Figure("gain-forecast", made, "fewer than two signals have both")
    yield Figure("selection", outlook.selection(tables["selection"], loss, names), "no gain of a selection is known")
    made = outlook.predictors(tables["predictors"], loss, names)
    yield Figure("predictors", made, "no correlation is known")


def left_out(tables: Mapping[str, pl.DataFrame]) -> list[str]:
    """Lines on what figures do not show."""
    names = Names.of(tables["summary"], tables["forecasts"])
    lines = []
    if len(names.sources) > SOURCES_ALONG or len(names.losses) > LOSSES_SHOWN:
        lines.append(
            f"figures show the first {min(SOURCES_SHOWN, len(names.sources))} of {len(names.sources)} teachers with "
            f"contexts, the first {min(SOURCES_ALONG, len(names.sources))} where each has a colour, and the first "
            f"{min(LOSSES_SHOWN, len(names.losses))} of {len(names.losses)} losses"
        )
    if len(names.losses) > 1:
        lines.append(f"selection, predictors and alignment along bins are by {names.losses[0]}")
    return lines
