"""What is known question by question: pooled scores and forecasts follow from it."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.config import ReverseKL
from schemas.signals import Signal
from tasks.outputs.comparison.differences import columns_by_signal, forecast_replicates
from tasks.stages.aggregate.forecast import Chance, forecast_rows
from tasks.stages.aggregate.updates import Products, crossed
from tasks.statistics.bootstrap import bootstrap_interval
from tests.golden import made
from tests.stages.test_forecast import SCORES, A, B, C, evidence

SIGNAL = ["teacher", "context", "loss"]


@pytest.mark.parametrize("name", ["forced", "adaptive", "windows", "recorded"])
def test_pooled_scores_follow_from_the_sums_of_questions(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    tables = made.run_tables(made.configurations({**settings, "success": {"rollouts": 2}}, tmp_path)[name])
    sums = tables["questions"].group_by(SIGNAL, maintain_order=True).agg(pl.exclude("question_id").sum())
    summary = tables["summary"].filter(pl.col("group") == "all")
    assert sums.select(SIGNAL).equals(summary.select(SIGNAL)) and sums["nodes"].equals(summary["nodes"])
    for by_hand, column in (
        (pl.col("inner") / (pl.col("g_sq") * pl.col("d_sq")).sqrt(), "alignment"),
        (pl.col("inner") / (pl.col("nonempty") * pl.col("d_sq")).sqrt(), "gain"),
    ):
        found = sums.with_columns(by_hand=by_hand, told=summary[column]).filter(pl.col("told").is_not_null())
        assert found.height or column == "alignment" or name == "recorded"
        assert found["by_hand"].to_numpy() == pytest.approx(found["told"].to_numpy(), abs=1e-12)
    if name == "recorded":
        assert tables["questions"]["own"].is_null().all()
        return
    by_source = tables["questions"].group_by(SIGNAL[:2], maintain_order=True).agg(pl.col("own", "handover").mean())
    success = tables["success"].select(*SIGNAL[:2], "own", "handover")
    assert by_source.join(success, on=SIGNAL[:2]).height == success.height > 0
    joined = by_source.join(success, on=SIGNAL[:2], suffix="_told")
    for column in ("own", "handover"):
        assert joined[column].to_list() == pytest.approx(joined[f"{column}_told"].to_list(), abs=1e-12, nan_ok=True)
    rates = (tables["questions"]["correct"] / tables["questions"]["rollouts"]).to_numpy()
    assert rates.mean() == pytest.approx(tables["forecasts"]["base"][0])


def test_columns_by_signal_are_in_the_order_of_the_questions() -> None:
    table = pl.DataFrame(
        {"question_id": ["b", "a", "a"], "teacher": ["s", "s", "t"], "context": "none", "loss": "kl"}
        | {name: [1.0, 2.0, 3.0] for name in ("rollouts", "correct", "truncated", "nonempty", "inner", "g_sq", "d_sq")}
        | {name: [1.0, None, 3.0] for name in ("nodes", "open", "own", "handover", "update_inner")}
    )
    ids, columns = columns_by_signal(table)
    assert ids == ["b", "a"] and columns[Signal("s", "none", "kl")]["inner"].tolist() == [1.0, 2.0]
    assert np.isnan(columns[Signal("t", "none", "kl")]["inner"][0])  # the other has no such row


def test_products_of_a_question_with_the_others() -> None:
    rng = np.random.default_rng(0)
    policy, update = rng.standard_normal((2, 7, 5)) + 0.3
    by_hand = [
        np.mean([(policy[i] @ update[j] + policy[j] @ update[i]) / 2 for j in range(7) if j != i]) for i in range(7)
    ]
    found = crossed(policy, update)
    assert found == pytest.approx(np.array(by_hand))
    whole = Products.of(policy, update).policy_update
    assert found.mean() == pytest.approx(whole.sum() / (7 * 6))
    assert np.isnan(crossed(policy[:1], update[:1])).all()


def test_forecasts_follow_from_questions_but_for_the_second_order() -> None:
    of = evidence(60, {A: 1.0, B: 0.25, C: -1.0})
    rows = {row["teacher"]: row for row in forecast_rows(of, dict.fromkeys((A, B, C), ReverseKL()), SCORES, 0)}
    chance = Chance.of(60, SCORES.bootstrap, 0)
    assert of.policy is not None
    for signal in (A, B, C):
        columns = {"correct": of.base, "rollouts": np.ones(60), "own": of.own[signal.source]}
        columns |= {"handover": of.handover[signal.source]}
        columns |= {"update_inner": crossed(of.policy, of.updates[signal])}
        found = forecast_replicates(columns, ReverseKL(), chance, chance.noise())
        row = rows[signal.teacher]
        assert found.value == pytest.approx(row["forecast"], abs=0.01) and found.units == 60
        low, high = bootstrap_interval(found.drawn, 60, SCORES.forecast_level)
        assert [max(low, 0), min(high, 1)] == pytest.approx([row["forecast_low"], row["forecast_high"]], abs=0.03)
