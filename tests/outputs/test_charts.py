"""Figures: what is undefined is not drawn, names are shown as they are, and drawings are the same every time."""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any

import altair as alt
import polars as pl
import pytest

from schemas.tables import FORECASTS, SUMMARY
from tasks.outputs.figures import charts, outlook, style
from tasks.outputs.figures.charts import LOSSES_SHOWN, SOURCES_ALONG, SOURCES_SHOWN, Names, along, domain_of, forest
from tasks.outputs.figures.drawing import figures, left_out
from tasks.outputs.figures.style import COLUMN, PALETTE, SHAPES, ChartError, drawn
from tasks.stages.aggregate.tables import frame

HOSTILE = ["<script>alert(1)</script>", "a & b \" ' <", "معلّم", "מורה", "\\n{{x}}", "datum.x", "x" * 100, "a.b[0]"]
HALVES = ("0-50 %", "50-100 %")
SIGNAL = {"teacher": "t", "context": "none", "loss": "kl"}


def names_of(rows: pl.DataFrame) -> Names:
    return Names.of(rows, frame([], FORECASTS))


def left_out_of(rows: pl.DataFrame) -> list[str]:
    return left_out({"summary": rows, "forecasts": frame([], FORECASTS)})


def table(columns: Mapping[str, Any], *rows: dict[str, Any]) -> pl.DataFrame:
    """Rows that differ from a plain one."""
    kinds = {name: pl.String if isinstance(value, str) else pl.Float64 for name, value in columns.items()}
    return pl.DataFrame([{**columns, **row} for row in rows], schema=kinds)


def estimate(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def summary(*rows: dict[str, Any]) -> pl.DataFrame:
    plain = {"group": "all", "bin": "all", **SIGNAL, **estimate("alignment", 0.5), "gain": 0.1, "d_sq": 1.0}
    return table(plain, *rows)


def forecasts(*rows: dict[str, Any]) -> pl.DataFrame:
    return table({**SIGNAL, "base": 0.5, **estimate("forecast", 0.7), **estimate("change", 0.2)}, *rows)


LOST: dict[str, Any] = dict.fromkeys(("alignment", "alignment_low", "alignment_high"))
SUCCESS = {"teacher": "t", "context": "none", **estimate("own", 0.8), **estimate("handover", 0.6)}
SELECTION = {**SIGNAL, "tokens": "likely_positive", **estimate("additional_gain", 0.02)}
PREDICTOR = {**SIGNAL, "predictor": "kl", **estimate("correlation", 0.4)}


def svg(chart: alt.TopLevelMixin | None) -> str:
    assert chart is not None
    return drawn(chart, "svg").decode()


def marks(chart: alt.TopLevelMixin | None) -> int:
    """Points that are drawn."""
    return len(re.findall(r'aria-roledescription="point"', svg(chart)))


def rules(chart: alt.TopLevelMixin | None) -> int:
    """Intervals and lines that are drawn."""
    return len(re.findall(r'aria-roledescription="rule mark"', svg(chart)))


def of(rows: pl.DataFrame, group: str = "entropy", loss: str = "kl") -> alt.TopLevelMixin | None:
    return along(rows, group, loss, "x", names_of(summary(*({"loss": name} for name in ("kl", "jsd")))))


def test_without_a_known_score_there_is_no_chart() -> None:
    for empty in (summary(), summary(LOST, {**LOST, "group": "outcome", "bin": "correct"})):
        names = names_of(empty)
        assert forest(empty, names) is None and of(empty) is None
    names = names_of(summary({}))
    assert outlook.forecasts(forecasts({"forecast": None}), names) is None
    assert outlook.success(table(SUCCESS), None) is None
    assert outlook.success(table(SUCCESS, {"own": None, "handover": None}), 0.5) is None
    assert outlook.selection(table(SELECTION, {"additional_gain": None}), "kl", names) is None
    assert outlook.predictors(table(PREDICTOR, {"loss": "other"}), "kl", names) is None
    assert outlook.gain_against_forecast(summary({"gain": None}, {"loss": "jsd"}), forecasts({}), names) is None


def test_undefined_scores_are_not_drawn_as_0() -> None:
    rows = summary({}, {"loss": "jsd", **LOST}, {"group": "outcome", "bin": "correct"})
    assert marks(forest(rows, names_of(rows))) == 2 and "correct rollouts" in svg(forest(rows, names_of(rows)))
    found = of(summary(*({"group": "entropy", "bin": f"{b}-{b + 1} %", **({} if b != 1 else LOST)} for b in range(3))))
    assert marks(found) == 2


def test_without_an_interval_there_is_a_point_alone() -> None:
    whole, ends = table(SUCCESS, {}), dict.fromkeys(("own_low", "own_high", "handover_low", "handover_high"))
    bare = table(SUCCESS, ends)
    assert marks(outlook.success(whole, 0.5)) == marks(outlook.success(bare, 0.5)) == 2
    assert (rules(outlook.success(whole, 0.5)), rules(outlook.success(bare, 0.5))) == (3, 1)
    assert rules(outlook.success(whole, None)) == 2
    no_handover = table(SUCCESS, {"handover": None})
    assert marks(outlook.success(no_handover, 0.5)) == 1 and ">handover<" not in svg(outlook.success(no_handover, 0.5))


def test_one_bin_is_no_chart_along_bins() -> None:
    assert of(summary({"group": "entropy", "bin": "0-100 %"})) is None
    two = summary({"group": "entropy", "bin": HALVES[0]}, {"group": "entropy", "bin": HALVES[1], "loss": "jsd"})
    assert of(two) is None  # of each loss one


def test_other_groups_and_losses_are_not_in_a_chart() -> None:
    rows = [
        {"group": g, "bin": b, "loss": loss} for g in ("entropy", "position") for b in HALVES for loss in ("kl", "jsd")
    ]
    assert marks(of(summary(*rows))) == 2
    assert marks(forest(summary({}, *rows), names_of(summary({}, *rows)))) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_a_chart_and_nothing_else(name: str) -> None:
    every = summary({"teacher": name}, {"teacher": "other", "loss": "jsd"})
    bins = summary(*({"group": "entropy", "bin": b, "teacher": name} for b in HALVES))
    names = names_of(every)
    forecast = outlook.forecasts(forecasts({"teacher": name}), names)
    for chart in (forest(every, names), along(bins, "entropy", "kl", "entropy", names), forecast):
        found = svg(chart)
        assert "<script" not in found
        tree = ET.fromstring(found)  # noqa: S314 - of our own
        texts = [str(e.text) for e in tree.iter() if e.tag.endswith(("text", "tspan")) and e.text]
        cut = [text.removesuffix("…") for text in texts]  # long names are
        assert any(len(text) >= 5 and f"{name} / none".startswith(text) for text in cut), texts
        assert not [element for element in tree.iter() if element.tag.rpartition("}")[2] in ("script", "image", "a")]
    loss = along(bins.with_columns(loss=pl.lit(name)), "entropy", name, "x", Names(names.sources, [name]))
    assert "<script" not in svg(loss)


def test_colours_and_shapes_are_the_same_in_every_chart() -> None:
    every = summary({"teacher": "a"}, {"teacher": "b", "d_sq": 0.0}, {"teacher": "c"}, {"teacher": "d"})
    names = names_of(every)
    assert names.sources == ["a / none", "c / none", "d / none"]  # nothing is learned from b
    marked = names.marked("source", pl.DataFrame({"source": ["d / none", "c / none"]}))
    assert marked.shown == ["c / none", "d / none"]
    colors: Any = marked.color().to_dict()
    shapes: Any = marked.shape().to_dict()
    assert colors["scale"] == {"domain": list(marked.shown), "range": PALETTE[1:3]}
    assert shapes["scale"]["range"] == SHAPES[1:3]
    assert len(set(PALETTE)) == len(PALETTE) == len(set(SHAPES)) >= SOURCES_ALONG


@pytest.mark.parametrize(
    ("lows", "domain"),
    [([0.1], [0.0, 1.0]), ([-0.5, 0.2], [-0.5, 1.0]), ([-7.0], [-1.0, 1.0]), ([], [0.0, 1.0])],
)
def test_axes_reach_to_what_a_cosine_can_be(lows: list[float], domain: list[float]) -> None:
    rows = pl.DataFrame({"low": lows, "value": [0.5] * len(lows)}, schema={"low": pl.Float64, "value": pl.Float64})
    assert domain_of(rows) == domain


def test_charts_hold_the_first_sources_and_losses() -> None:
    rows = [{"teacher": f"t{t}", "loss": f"l{i}"} for t in range(SOURCES_SHOWN + 2) for i in range(LOSSES_SHOWN + 2)]
    names = names_of(summary(*rows))
    shown = names.shown(summary(*rows))
    assert shown.height == SOURCES_SHOWN * LOSSES_SHOWN
    assert charts.in_order(shown, "source") == [f"t{t} / none" for t in range(SOURCES_SHOWN)]
    assert "first 30 of 32 teachers with contexts" in left_out_of(summary(*rows))[0]
    assert left_out_of(summary({})) == []


def test_a_drawing_that_fails_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: object) -> str:
        raise ValueError("Vega is\nill")

    monkeypatch.setattr("tasks.outputs.figures.style.vlc.vegalite_to_svg", fails)
    with pytest.raises(ChartError, match=r"^Vega is$"):
        svg(forest(summary({}), names_of(summary({}))))


BINS = [{"group": group, "bin": b} for group in ("position", "entropy", "divergence", "difficulty") for b in HALVES]
RUN = {
    "summary": summary({}, {"loss": "jsd", "gain": 0.2}, *BINS),
    "forecasts": forecasts({}, {"loss": "jsd", "change": 0.3}),
    "success": table(SUCCESS, {}),
    "selection": table(SELECTION, {}, {"tokens": "first 0.333"}),
    "predictors": table(PREDICTOR, {}, {"predictor": "entropy"}),
}


def test_every_figure_of_a_run_is_a_column_or_a_page_wide_and_the_same_every_time() -> None:
    found = list(figures(RUN))
    assert len(found) == len({figure.name for figure in found}) == 10
    for figure in found:
        first, again = (svg(figure.chart) for _ in range(2))
        assert first == again
        assert ' id="' not in first  # two in one page have no name in common
        size = re.search(r'<svg [^>]*width="([0-9.]+)pt" height="[0-9.]+pt"', first)
        assert size is not None
        assert float(size[1]) <= (style.TEXT + 10 if figure.name == "alignment" else COLUMN)


def test_pictures_have_300_dots_an_inch_and_text_stays_text() -> None:
    chart = outlook.forecasts(RUN["forecasts"], names_of(RUN["summary"]))
    assert chart is not None
    png, pdf = drawn(chart, "png"), drawn(chart, "pdf")
    assert png == drawn(chart, "png")
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(COLUMN * 300 / 72, abs=1)
    assert pdf.startswith(b"%PDF") and b"/FontFile" in pdf and f"MediaBox [0 0 {COLUMN}".encode() in pdf
    assert ">t / none<" in svg(chart)


Changed = Callable[[dict[str, pl.DataFrame]], dict[str, pl.DataFrame]]


@pytest.mark.parametrize(
    ("name", "changed", "missing"),
    [
        ("no forecast", lambda run: {"forecasts": run["forecasts"].clear()}, {"forecast", "gain-forecast"}),
        ("no teacher answers", lambda run: {"success": run["success"].clear()}, {"success"}),
        ("nothing", lambda run: {name: frame.clear() for name, frame in run.items()}, {f.name for f in figures(RUN)}),
    ],
)
def test_what_cannot_be_drawn_is_said(name: str, changed: Changed, missing: set[str]) -> None:
    found = list(figures(RUN | changed(RUN)))
    assert {figure.name for figure in found if figure.chart is None} == missing, name
    assert all(figure.lacking for figure in found)
    assert all(list(figure.files(["svg"])) == [] for figure in found if figure.chart is None)


def test_bins_stand_from_low_to_high_whichever_signal_lacks_some() -> None:
    other = {"teacher": "u"}
    places = [({}, (40, 50)), ({}, (90, 100)), (other, (20, 30)), (other, (40, 50)), (other, (5, 10))]
    rows = summary({}, other, *({"group": "divergence", "bin": f"{a}-{b} %", **of} for of, (a, b) in places))
    chart = along(rows, "divergence", "kl", "x", names_of(rows))
    assert chart is not None
    found = chart.to_dict()["layer"][1]["encoding"]["x"]["sort"]
    assert found == ["5-10 %", "20-30 %", "40-50 %", "90-100 %"]


def test_forecasts_are_drawn_without_a_node() -> None:
    told = {"forecast": 0.8, "forecast_low": 0.7, "forecast_high": 0.9, "base": 0.5}
    rows = pl.DataFrame([{**dict.fromkeys(FORECASTS), **SIGNAL, **told}]).cast(
        {name: getattr(pl, column.dtype) for name, column in FORECASTS.items()}
    )
    empty = frame([], SUMMARY)
    assert outlook.forecasts(rows, Names.of(empty, rows)) is not None
