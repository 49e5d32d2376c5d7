"""Charts: what is undefined is not drawn, names are shown as they are, and drawings are the same every time."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import polars as pl
import pytest

from tasks.outputs.report import charts
from tasks.outputs.report.charts import LOSSES_SHOWN, PALETTE, SOURCES_SHOWN, ChartError, along, forest

HOSTILE = ["<script>alert(1)</script>", "a & b \" ' <", "معلّم", "מורה", "\\n{{x}}", "datum.x", "x" * 100, "a.b[0]"]


def summary(*rows: dict[str, Any]) -> pl.DataFrame:
    plain = {"group": "all", "bin": "all", "teacher": "t", "context": "none", "loss": "kl"}
    values = {"alignment": 0.5, "alignment_low": 0.4, "alignment_high": 0.6}
    schema = {**dict.fromkeys(plain, pl.String), **dict.fromkeys(values, pl.Float64)}
    return pl.DataFrame([{**plain, **values, **row} for row in rows], schema=schema)


LOST: dict[str, Any] = dict.fromkeys(("alignment", "alignment_low", "alignment_high"))


def marks(svg: str | None) -> int:
    """Points that are drawn."""
    return len(re.findall(r'aria-roledescription="point"', str(svg)))


def test_without_a_known_score_there_is_no_chart() -> None:
    for empty in (summary(), summary(LOST, {**LOST, "group": "outcome", "bin": "correct"})):
        assert forest(empty) is None and along(empty, "entropy", "kl", "entropy") is None


def test_undefined_scores_are_not_drawn_as_0() -> None:
    svg = forest(summary({}, {"loss": "jsd", **LOST}, {"group": "outcome", "bin": "correct"}))
    assert marks(svg) == 2 and "correct rollouts" in str(svg)
    found = along(
        summary(*({"group": "entropy", "bin": f"{b}", **({} if b != 1 else LOST)} for b in range(3))),
        "entropy",
        "kl",
        "x",
    )
    assert marks(found) == 2


def test_one_bin_is_no_chart_along_bins() -> None:
    assert along(summary({"group": "entropy", "bin": "0-100 %"}), "entropy", "kl", "x") is None
    two = summary({"group": "entropy", "bin": "a"}, {"group": "entropy", "bin": "b", "loss": "jsd"})
    assert along(two, "entropy", "kl", "x") is None  # of each loss one


def test_other_groups_and_losses_are_not_in_a_chart() -> None:
    rows = [
        {"group": g, "bin": b, "loss": loss} for g in ("entropy", "position") for b in "ab" for loss in ("kl", "jsd")
    ]
    assert marks(along(summary(*rows), "entropy", "kl", "entropy")) == 2
    assert marks(forest(summary({}, *rows))) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_a_chart_and_nothing_else(name: str) -> None:
    table = summary({"teacher": name}, {"teacher": "other", "loss": "jsd"})
    bins = summary(*({"group": "entropy", "bin": b, "teacher": name} for b in "ab"))
    for svg in (forest(table), along(bins, "entropy", "kl", "entropy")):
        assert svg is not None and "<script" not in svg
        tree = ET.fromstring(svg)  # noqa: S314 - of our own
        texts = [str(element.text) for element in tree.iter() if element.tag.endswith("text") and element.text]
        cut = [text.removesuffix("…") for text in texts]  # long names are
        assert any(len(text) >= 5 and f"{name} / none".startswith(text) for text in cut), texts
        assert not [element for element in tree.iter() if element.tag.rpartition("}")[2] in ("script", "image", "a")]


def test_charts_of_one_page_have_no_name_of_a_part_in_common() -> None:
    """A page would take the first of them for both."""
    bins = summary(*({"group": "entropy", "bin": b} for b in "ab"))
    drawn = forest(summary({})), along(bins, "entropy", "kl", "x")
    parts = [set(re.findall(r'\bid="([^"]+)"', str(svg))) for svg in drawn]
    assert parts[0] and parts[1] and not parts[0] & parts[1]


@pytest.mark.parametrize(
    ("lows", "domain"),
    [([0.1], [0.0, 1.0]), ([-0.5, 0.2], [-0.5, 1.0]), ([-7.0], [-1.0, 1.0]), ([], [0.0, 1.0])],
)
def test_axes_reach_to_what_a_cosine_can_be(lows: list[float], domain: list[float]) -> None:
    table = summary(*({"alignment_low": low} for low in lows))
    assert charts._scale(table).to_dict()["domain"] == domain


def test_charts_hold_the_first_sources_and_losses() -> None:
    rows = [{"teacher": f"t{t}", "loss": f"l{i}"} for t in range(SOURCES_SHOWN + 2) for i in range(LOSSES_SHOWN + 2)]
    shown = charts._with_source(summary(*rows))
    assert shown.height == SOURCES_SHOWN * LOSSES_SHOWN
    assert shown["source"].unique(maintain_order=True).to_list() == [f"t{t} / none" for t in range(SOURCES_SHOWN)]


def test_a_drawing_that_fails_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: object) -> str:
        raise ValueError("Vega is\nill")

    monkeypatch.setattr("tasks.outputs.report.charts.vlc.vegalite_to_svg", fails)
    with pytest.raises(ChartError, match=r"^Vega is$"):
        forest(summary({}))
    assert len(set(PALETTE)) == len(PALETTE)
