"""How figures look, and how they become SVG, PNG and PDF. One unit of length is a point, 1/72 inch."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import vl_convert as vlc

from schemas.text import reason

COLUMN, TEXT = 238, 486
"""Widths of a column and of a page's text, 3.3 and 6.75 inches."""
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888"]
"""Colours that the colour-blind tell apart (Okabe and Ito 2008), and a grey in place of their yellow."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
FORMATS = ("svg", "png", "pdf")
LABELS = 105
"""Length of the names beside a chart; of longer ones the end is left out."""
_FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_SIZE = 8
_INK, _FAINT, _RULE = "#222222", "#dddddd", "#777777"
_INCH = 300
"""Dots an inch of a PNG."""
_LETTER, _SYMBOL = 3.7, 16
"""Widths of a letter, on average, and of a symbol of a legend with what is around it."""


class ChartError(ValueError):
    """A chart that cannot be drawn."""


class Marked(NamedTuple):
    """Names that have a colour and a shape each, the same in every figure of a run.

    Attributes:
        field: that they stand in.
        shown: those of this chart.
        every: those of all charts, in order.
        room: width of the legend.
    """

    field: str
    shown: Sequence[str]
    every: Sequence[str]
    room: int = COLUMN - 45

    def color(self, **legend: Any) -> alt.Color:
        """Their colours."""
        return alt.Color(f"{self.field}:N", sort=list(self.shown), **self._legend(PALETTE, legend))

    def shape(self, **legend: Any) -> alt.Shape:
        """Their shapes; the legend is one with that of the colours."""
        return alt.Shape(f"{self.field}:N", sort=list(self.shown), **self._legend(SHAPES, legend))

    def _legend(self, marks: Sequence[str], legend: dict[str, Any]) -> dict[str, Any]:
        given = [marks[self.every.index(name) % len(marks)] for name in self.shown]
        widths = {c: sum(length(self.shown[i::c]) + _SYMBOL for i in range(c)) for c in (4, 3, 2)}
        columns = next((c for c, width in widths.items() if width <= self.room), 1)
        fitting = {"title": None, "columns": columns, "labelLimit": self.room - _SYMBOL}
        return {
            "scale": alt.Scale(domain=list(self.shown), range=given),
            "legend": alt.Legend(**{**fitting, **legend}),
        }


def length(names: Sequence[str]) -> int:
    """Length of the longest of some names, about."""
    return int(_LETTER * max(map(len, names), default=0))


def rule(values: Sequence[dict[str, float]]) -> alt.Chart:
    """A line across a chart, to be placed by `x` or `y`."""
    line: alt.Chart = alt.Chart(alt.Data(values=values)).mark_rule(color=_RULE, strokeDash=[3, 2], strokeWidth=0.8)
    return line


def drawn(chart: alt.TopLevelMixin, form: str) -> bytes:
    """A chart as a file of one of the `FORMATS`; the same SVG and PNG every time.

    Raises:
        ChartError: it cannot be drawn.
    """
    spec = (
        chart.configure(font=_FONT, background="white", padding=2)
        .configure_view(stroke=None)
        .configure_axis(
            **{"labelFontSize": _SIZE, "titleFontSize": _SIZE, "titleFontWeight": "normal", "titlePadding": 4},
            **{"labelColor": _INK, "titleColor": _INK, "gridColor": _FAINT, "gridWidth": 0.5, "labelPadding": 3},
            **{"domainColor": _RULE, "tickColor": _RULE, "domainWidth": 0.7, "tickWidth": 0.7, "tickSize": 3},
            **{"labelFlush": False, "titleLimit": COLUMN - 60, "labelLimit": LABELS},
        )
        .configure_legend(
            **{"orient": "top", "labelFontSize": _SIZE, "titleFontSize": _SIZE, "titleFontWeight": "normal"},
            **{"labelColor": _INK, "symbolSize": 25, "symbolStrokeWidth": 1, "symbolOpacity": 1, "columnPadding": 6},
            **{"offset": 4, "padding": 0, "rowPadding": 1, "labelOffset": 2},
        )
        .to_dict()
    )
    try:
        if form == "png":
            return bytes(vlc.vegalite_to_png(spec, ppi=_INCH))
        if form == "pdf":
            return bytes(vlc.vegalite_to_pdf(spec))
        return _in_points(str(vlc.vegalite_to_svg(spec))).encode()
    except ValueError as error:
        raise ChartError(reason(error)) from error


def _in_points(svg: str) -> str:
    """The drawing with its width and height in points."""
    return re.sub(r'(<svg [^>]*?width="[0-9.]+)(" height="[0-9.]+)"', r'\g<1>pt\g<2>pt"', svg, count=1)
