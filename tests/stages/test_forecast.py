"""Forecasts: what a loss can teach of answers that nobody can know, and success after training from evidence."""

from typing import Any

import numpy as np
import pytest

from schemas.config import JSD, ForwardKL, PythonLoss, ReverseKL, Scores, Settings, TotalVariation
from schemas.signals import Signal
from schemas.tables import FORECASTS
from tasks.stages.aggregate.forecast import Evidence, advice, forecast_rows
from tasks.stages.distillation.ambiguity import attainable

A, B, C = (Signal(name, "none", "reverse_kl") for name in "abc")
SCORES = Scores(bootstrap=1000)


@pytest.mark.parametrize("loss", [ReverseKL(), ForwardKL(), JSD(), TotalVariation()])
def test_what_is_agreed_on_can_be_learned_whole(loss: Settings) -> None:
    agreement = np.linspace(0.1, 1, 10)
    found = attainable(loss, agreement)
    assert found[-1] == pytest.approx(1, abs=1e-3)
    assert (found <= agreement + 1e-6).all() and (np.diff(found) > -1e-9).all()


def test_forward_kl_guesses_where_reverse_kl_keeps_to_the_majority() -> None:
    agreement = np.array([0.5, 0.7, 0.9])
    guessed = agreement**2 + (1 - agreement) ** 2 / 15  # the mean of the teachers, in closed form
    assert attainable(ForwardKL(), agreement) == pytest.approx(guessed, abs=0.01)
    assert attainable(ReverseKL(), agreement) == pytest.approx(agreement, abs=0.03)
    assert attainable(JSD(), agreement) == pytest.approx(agreement, abs=0.03)


def rates(rng: np.random.Generator, n: int, mean: float, draws: int = 8) -> Any:
    of_question = rng.beta(2 * mean, 2 * (1 - mean), n) if 0 < mean < 1 else np.full(n, mean)
    return rng.binomial(draws, of_question) / draws


def evidence(n: int = 40, updates: dict[Signal, float] | None = None, **more: Any) -> Evidence:
    """Three teachers of success .9, .9 of which all but .45 is copied, and .3, for a student of .5."""
    rng = np.random.default_rng(0)
    of_a = rates(rng, n, 0.9)
    own = {A.source: of_a, B.source: of_a[::-1], C.source: rates(rng, n, 0.3)}
    handover = {A.source: own[A.source], B.source: rates(rng, n, 0.45), C.source: own[C.source]}
    policy = rng.standard_normal((n, 20)) + 1
    made = {
        signal: policy * 0 + cosine + rng.standard_normal((n, 20)) * 0.3 for signal, cosine in (updates or {}).items()
    }
    fields = {"gain": {A: 0.1, B: 0.09, C: 0.01}, "silent": (), "policy": policy if updates else None}
    return Evidence(rates(rng, n, 0.5), own, handover, **{**fields, "updates": made, **more})


def forecast(of: Evidence, loss: Settings | None = None) -> dict[Signal, dict[str, Any]]:
    rows = forecast_rows(of, dict.fromkeys((A, B, C), loss or ReverseKL()), SCORES, 0)
    assert all(set(row) == set(FORECASTS) for row in rows)
    return {Signal(row["teacher"], row["context"], row["loss"]): row for row in rows}


def test_a_teacher_that_hands_over_helps_and_one_that_copies_does_not() -> None:
    found = forecast(evidence())
    assert found[A]["verdict"] == "helps" and 0.8 < found[A]["forecast"] < 0.95 and found[A]["place"] == 1
    assert found[A]["forecast_low"] < found[A]["forecast"] < found[A]["forecast_high"]
    assert found[B]["forecast"] < 0.55 and found[B]["remark"].startswith("copies 0.")
    assert found[C]["verdict"] == "harms" and found[C]["p_harm"] > 0.95 and found[C]["forecast"] < 0.4
    assert found[A]["p_best"] > 0.99
    assert forecast(evidence(), ForwardKL())[B]["forecast"] < found[B]["forecast"] - 0.1


def test_the_update_gain_decides_whether_success_goes_up() -> None:
    agreeing = forecast(evidence(updates={A: 1.0, B: 1.0, C: 1.0}))
    assert agreeing[A]["verdict"] == "helps" and agreeing[C]["verdict"] == "unclear"
    assert agreeing[C]["forecast"] == pytest.approx(agreeing[C]["base"], abs=0.03)
    against = forecast(evidence(updates={A: -1.0, B: -1.0, C: -1.0}))
    assert against[A]["forecast"] == pytest.approx(against[A]["base"], abs=0.03)
    assert against[A]["remark"] == "lowers success on other questions; though it hands over"
    assert against[C]["verdict"] == "harms"


def test_what_is_not_known_is_not_forecast() -> None:
    few = forecast(evidence(4))
    assert all(
        np.isnan(row["forecast"]) and row["verdict"] == "unclear" and row["place"] is None for row in few.values()
    )
    assert advice(list(few.values()), True).startswith("no forecast")
    silent = forecast(evidence(silent={A}))
    assert np.isnan(silent[A]["forecast"]) and list(silent)[-1] == A
    unknown = evidence()
    lacking = unknown._replace(own={A.source: unknown.own[A.source]})
    assert np.isnan(forecast(lacking)[C]["forecast"]) and forecast(lacking)[A]["place"] == 1


def test_a_verifier_that_does_not_tell_leaves_own_success() -> None:
    known = evidence()
    blind = known._replace(handover={source: np.full(40, np.nan) for source in known.own})
    found = forecast(blind)
    assert found[B]["forecast"] == pytest.approx(found[A]["forecast"], abs=0.05) and not found[B]["remark"]


def test_handover_is_compared_with_own_success_on_the_questions_where_it_is_known() -> None:
    known = evidence()
    few = np.where(np.arange(40) < 10, known.own[A.source], np.nan)
    found = forecast(known._replace(handover={**known.handover, A.source: few}))[A]
    assert not found["remark"] and found["ceiling"] == pytest.approx(forecast(known)[A]["ceiling"], abs=0.02)


def test_a_loss_of_the_users_own_is_not_asked_what_can_be_learned() -> None:
    found = forecast(evidence(), PythonLoss(function="nowhere:nothing"))
    assert found[A]["verdict"] == "helps" and found[B]["forecast"] < 0.6


def test_certain_rates_have_uncertain_forecasts() -> None:
    sure = evidence()._replace(own={s: np.ones(40) for s in (A.source, B.source, C.source)})
    sure = sure._replace(handover=sure.own)
    found = forecast(sure)[A]
    assert found["forecast_low"] < 0.97 and found["forecast_high"] <= 1.0 and found["ceiling"] < 1


def test_intervals_hold_the_end_of_trainings_that_reach_their_ceiling() -> None:
    """Over samples of questions and answers: the truth is the ceiling of the population."""
    held = 0
    for i in range(60):
        rng = np.random.default_rng(i)
        own = {A.source: rates(rng, 24, 0.8, 4)}
        of = Evidence(rates(rng, 24, 0.5), own, own, {A: 0.1}, (), None, {})
        (row,) = forecast_rows(of, {A: ReverseKL()}, SCORES, i)
        held += row["forecast_low"] <= 0.8 <= row["forecast_high"]
    assert held >= 52


def test_advice_is_hedged_as_the_intervals_demand() -> None:
    rows = list(forecast(evidence()).values())
    said = advice(rows, True)
    assert said.startswith("train with a/none by reverse_kl: success is forecast to go from 0.5")
    assert "c/none by reverse_kl" in said and said.endswith(" would do harm") and "may be as good" not in said
    close = evidence()
    close = close._replace(handover={**close.handover, B.source: close.own[B.source]})
    assert "/none by reverse_kl may be as good; c/none by reverse_kl would" in advice(
        list(forecast(close).values()), True
    )
    assert advice(rows, False) == f"{said}; harm that only update gains show is not known (update.dimensions)"
    worse = [{**row, "verdict": "unclear"} for row in rows]
    assert advice(worse, True).startswith("no signal is clearly forecast to raise success from 0.5")
