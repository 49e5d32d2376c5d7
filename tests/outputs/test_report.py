"""The report on hostile and on empty input."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.config import Scores
from schemas.tables import FORECASTS, SUCCESS
from tasks.outputs.diagnosis import make_tables
from tasks.outputs.report.page import FOREST, Told, draw_charts, render
from tasks.stages.aggregate.tables import frame
from tasks.statistics.estimators import pool_rounds
from tasks.statistics.prior import fit
from tests.helpers.oracle import OracleModels, oracle_config, oracle_rollouts, oracle_tree, random_chain, teacher_of
from tests.stages.test_estimators import scored

HOSTILE = "<script>alert(1)</script>\"'&"


def page(texts: str, left_out: dict[str, str], why: str | None = None, lines: Sequence[str] = (), **names: Any) -> str:
    chain = random_chain(3, length=10)
    models = OracleModels(chain, oracle_config(chain, rollouts=6, nodes=30, head=4, tail=2, draws=40))
    rollouts = oracle_rollouts(models)
    q = scored(models, names.get("teacher", teacher_of(chain, 4, 2.0, 0.5)), rollouts, oracle_tree(models, rollouts))
    by_id = dict.fromkeys(range(chain.tokens), texts)
    scores = Scores(bootstrap=200)
    config = models.config.model_copy(update={"scores": scores, "name": "run"})
    tables, facts = make_tables(config, [q], lambda _: by_id, fit([pool_rounds(q.tree).outcomes]))
    assert np.isfinite(tables["tokens"]["weight"].to_numpy()).all()
    tables |= {"success": frame([], SUCCESS), "forecasts": frame([], FORECASTS)}
    return render(config, [q], facts, tables, lambda _: by_id, left_out, Told(why, lines, "train with t/none by kl"))


def test_model_output_is_escaped_and_nothing_is_fetched() -> None:
    html = page(HOSTILE, {f"q {HOSTILE}": "all rollouts hit the length limit"})
    assert "<b>Unresolved:</b> always wrong" in page("x", {}, "always wrong")
    assert "<script" not in html and "alert(1)" in html
    assert "&lt;script&gt;" in html
    assert "default-src 'none'" in html
    for address in ("src=", 'href="http', "@import", "url(http"):
        assert address not in html.replace("xmlns", "")
    assert "1 left out" in html
    assert "<bdi>no signal: [1] &lt;b&gt;</bdi>" in page("x", {}, lines=["no signal: [1] <b>"])


def test_a_page_of_undefined_scores() -> None:
    html = page("x", {}, teacher=random_chain(3, length=10))
    assert "undefined" in html and "nan" not in html.lower().replace("nanum", "")


def summary_of(teachers: int, losses: int) -> pl.DataFrame:
    rows = [
        {"group": group, "bin": bin_, "teacher": f"t{t}", "context": "none", "loss": f"l{i}"}
        | {"alignment": 0.1, "alignment_low": 0.0, "alignment_high": 0.2, "d_sq": 1.0}
        for t in range(teachers)
        for i in range(losses)
        for group, bin_ in (("all", "all"), ("position", "1"), ("position", "2"))
    ]
    return pl.DataFrame(rows)


def test_a_chart_that_cannot_be_drawn_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: object) -> str:
        raise ValueError("Vega is\nill")

    monkeypatch.setattr("tasks.outputs.figures.style.vlc.vegalite_to_svg", fails)
    html = page("x", {})
    assert "The chart of alignment by teacher, context and loss could not be drawn: Vega is." in html
    assert "Token by token" in html


def test_charts_show_the_first_of_very_many_signals() -> None:
    began = time.process_time()
    drawn, notes = draw_charts(summary_of(400, 30), "l0")
    assert time.process_time() - began < 30
    assert len(drawn) == 2 and "t29 / none" in drawn[FOREST] and "t30 / none" not in drawn[FOREST]
    assert notes == [
        "Charts show the first 30 of 400 teachers with contexts and the first 12 of 30 losses; "
        "summary.parquet contains all."
    ]
    assert draw_charts(summary_of(2, 2), "l0")[1] == []
