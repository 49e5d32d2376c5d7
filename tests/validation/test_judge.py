"""What trainings say of forecasts, on made results whose answers are known."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.config import Selection
from schemas.signals import POLICY, Signal
from schemas.training_tables import PREDICTIONS, TRAININGS, VALIDATION
from tasks.validation.judge import cells, correlation, figures, interval, ordered, over_cells, predictor_rows, regret
from tasks.validation.page import validation_page
from tasks.validation.results import Student, trainings_table, validation_table
from tasks.validation.trainings import UNTRAINED, Training

SIGNALS = [Signal(f"t{i}", "none", loss) for i in range(6) for loss in ("kl", "jsd")]
SUCCESS = {signal: 0.2 + 0.06 * i for i, signal in enumerate(SIGNALS)}
QUESTIONS = 50


def result(success: float, seed: int) -> Any:
    """Of two logged steps, the first half way."""
    rng = np.random.default_rng(seed)
    of_question = np.stack([rng.random(QUESTIONS) < rate for rate in ((0.5 + success) / 2, success)])
    of_question = of_question - of_question.mean(axis=1, keepdims=True) + [[(0.5 + success) / 2], [success]]
    return {
        "step": np.array([3, 20], dtype=np.int32),
        "success": of_question.astype(np.float32),
        "decoded": np.array([100, 700], dtype=np.int64),
        "scored": np.array([300, 2100], dtype=np.int64),
    }


def student(name: str = "s", noise: float = 0.0, changed: dict[int, dict[str, Any]] | None = None) -> Student:
    """Predictions are right, but for the mean cosine, which is the reverse; `changed` are others, by signal."""
    trained: dict[Training, Any] = {
        UNTRAINED: {
            **result(0.5, 99),
            "step": np.zeros(1, np.int32),
            "success": np.full((1, QUESTIONS), 0.5, np.float32),
        }
    }
    for signal in [*SIGNALS, POLICY]:
        for seed in range(2):
            rng = np.random.default_rng([seed, len(trained)])
            rate = SUCCESS.get(signal, 0.8) + noise * rng.standard_normal()
            trained[Training(signal, None, "adamw", seed)] = result(rate, seed)
    known: dict[Signal, dict[str, Any]] = {}
    for signal, rate in SUCCESS.items():
        known[signal] = {**dict.fromkeys(PREDICTIONS, rate), "mean_cosine": -rate, "kl": None, "remark": ""}
        known[signal] |= {"forecast_low": rate - 0.1, "forecast_high": rate + 0.1}
        known[signal]["verdict"] = "helps" if rate > 0.6 else "harms" if rate < 0.4 else "unclear"
    for place, change in (changed or {}).items():
        known[SIGNALS[place]] |= change
    return Student(name, trained, known, {(SIGNALS[0], "all"): 0.1, (SIGNALS[0], "tip 0.333"): 0.2})


def judged(table: pl.DataFrame) -> dict[str, Any]:
    rows = [f.row for f in figures(table, 0.9, 3, (1, 40))]
    found = {str(row["figure"]): row for row in rows}
    assert len(found) == len(rows)
    return found


_LATE = "rank correlation of the forecast with success at the end"


def test_tables_have_every_training_and_its_interval() -> None:
    one = student()
    trainings, validation = trainings_table([one]), validation_table([one])
    assert trainings.columns == list(TRAININGS) and validation.columns == list(VALIDATION)
    assert trainings.height == 13 * 2 * 2 and validation.height == 13 * 2
    last = validation.filter(pl.col("step") == 20)
    assert last["measured"].to_list()[:12] == pytest.approx(list(SUCCESS.values()), abs=1e-6)
    assert (last["base"] == 0.5).all() and (last["seeds"] == 2).all()
    worst = trainings.filter((pl.col("teacher") == "t0") & (pl.col("step") == 20))
    assert (worst["change"] < -0.2).all() and (worst["change_high"] < 0).all()
    reward = last.filter(pl.col("teacher") == "reward")
    assert reward["forecast"].is_null().all() and reward["measured"][0] == pytest.approx(0.8, abs=1e-6)


def test_right_predictions_pass_and_reversed_ones_do_not() -> None:
    table = validation_table([student("s"), student("u")])
    rows = {row["predictor"]: row for row in predictor_rows(table, 3)}
    assert "kl" not in rows  # nothing is known of it
    assert rows["forecast"]["late"] == rows["forecast"]["early"] == pytest.approx(1)
    assert rows["forecast"]["regret"] == 0 and rows["forecast"]["ordered"] == 1
    assert rows["mean_cosine"]["late"] == pytest.approx(-1) and rows["mean_cosine"]["ordered"] == 0
    assert rows["mean_cosine"]["regret"] == pytest.approx(0.66, abs=1e-6)
    found = judged(table)
    assert found[_LATE]["verdict"] == "pass"
    assert (
        found["the same, less that of the mean cosine"]["value"] == pytest.approx(2)
        and found["the same, less that of the mean cosine"]["verdict"] == "pass"
    )
    assert found["clear forecasts with the right sign"] == {
        "figure": "clear forecasts with the right sign",
        "value": 1.0,
        "error": 0.0,
        "of": 2 * 9,
        "must be": "all",
        "verdict": "pass",
    }
    assert found["tokens of the forecast / of one training on each signal"]["value"] == 0.025
    assert found["success at the end by training on the reward itself"]["value"] == pytest.approx(0.8, abs=1e-6)
    assert found["error of forecasts"]["value"] == pytest.approx(0, abs=1e-6)


def test_wrong_signs_missed_intervals_and_copies_are_counted() -> None:
    copying = {"verdict": "helps", "remark": "copies what it is shown", "forecast": 0.6}
    found = judged(validation_table([student(changed={0: copying | {"forecast_low": 0.5, "forecast_high": 0.7}})]))
    assert found["clear forecasts with the right sign"]["value"] == pytest.approx(8 / 9)
    assert found["forecasts whose interval holds the measured success"]["value"] == pytest.approx(11 / 12)
    assert found["error of forecasts where answers are copied"]["value"] == pytest.approx(0.4, abs=1e-6)
    assert found["error of forecasts where answers are copied"]["verdict"] == "fail"


def test_nothing_known_is_said_as_nothing() -> None:
    nothing = {"forecast": None, "mean_cosine": None}
    found = judged(validation_table([student(changed=dict.fromkeys(range(12), nothing))]))
    assert found["forecasts whose interval holds the measured success"]["of"] == 0
    assert found[_LATE]["value"] is None and found[_LATE]["verdict"] is None


def test_selections_are_ordered_by_their_predicted_gain() -> None:
    one = student()
    chosen = Selection(kind="tip")
    for rule, rate in ((chosen, 0.9), (Selection(kind="first"), 0.4)):
        one.trainings[Training(SIGNALS[0], rule, "adamw", 0)] = result(rate, 5)  # type: ignore[index]
    one.selected[SIGNALS[0], "first 0.333"] = 0.15  # type: ignore[index]
    found = judged(validation_table([one]))["rank correlation of selections' gains with success at the start"]
    assert found["value"] == pytest.approx(1) and found["of"] == 1


def test_pairs_within_the_noise_of_seeds_do_not_count() -> None:
    (cell,) = cells(validation_table([student(noise=0.02)]), None)
    assert np.isfinite(cell.error).all() and 0.9 < ordered(cell, "forecast") <= 1
    same = cell._replace(measured=np.full(12, 0.5), error=np.full(12, 0.01))
    assert np.isnan(ordered(same, "forecast"))
    tied = cell._replace(predicted={"forecast": np.zeros(12)}, error=np.zeros(12))
    assert ordered(tied, "forecast") == 0.5


def test_statistics_of_single_values() -> None:
    x = np.array([1.0, 2.0, 3.0])
    assert correlation(x, 10 * x) == pytest.approx(1) and np.isnan(correlation(x * 0, x))
    assert np.isnan(correlation(np.array([1.0, np.nan, 2.0]), x))
    assert regret(np.array([np.nan, 2.0, 1.0]), x) == 1.0 and regret(np.array([2.0, np.nan, 2.0]), x) == 1.0
    assert np.isnan(regret(np.full(3, np.nan), x))


def test_intervals_leave_out_sources_not_signals() -> None:
    late = cells(validation_table([student(noise=0.1)]), None)
    assert sorted(set(late[0].source.tolist())) == [1, 2, 3, 4, 5, 6]
    value, error, n = over_cells(late, "forecast", correlation)
    assert n == 6 and 0 < error < 0.3
    low, high = interval(value, error, n, -1, 1)
    assert low < value < high <= 1 and high - value <= 2.58 * error  # t of 5 degrees of freedom
    (cell,) = late
    few = cell._replace(source=np.ones(12))
    assert np.isnan(over_cells([few], "forecast", correlation)[1])


def test_the_page_shows_what_was_found_and_escapes_names() -> None:
    hostile = "<script>alert(1)</script>"
    one = student(hostile)
    tables = {"trainings": trainings_table([one]), "validation": validation_table([one])}
    result = {
        "name": hostile,
        "students": [hostile],
        "advice": {hostile: hostile},
        "configuration": {"validation": {"seeds": 2, "steps": 20, "batch": 8, "rollouts": 1}},
        "predictors": predictor_rows(tables["validation"], 3),
        "figures": [f.row for f in figures(tables["validation"], 0.9, 3, (1, 40))],
    }
    page = validation_page(result, tables)
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("<svg") == 2
    assert "Learning curves" in page and "at least .9" in page and "src=" not in page and "href=" not in page
