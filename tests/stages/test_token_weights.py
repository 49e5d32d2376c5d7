"""Token weights and their rules against the exact oracle, and against brute force."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from schemas.config import Scores
from schemas.token_weights import WEIGHTS
from tasks.stages.aggregate import token_rule_fit
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.token_choice import by_question, by_token
from tasks.stages.aggregate.token_evidence import Evidence, Plan, Setting, posterior, replayed, replays
from tasks.stages.aggregate.token_rule_fit import RULES, Moments, Rule, design, fit, known, length, weights
from tasks.stages.aggregate.token_table import estimated, rule_lengths, table_length
from tasks.stages.aggregate.token_weights import WEIGHTINGS, Gathered, Judged, Judging, Wanted, features_of, folds
from tasks.statistics.csr import Floats
from tasks.statistics.estimators import pool_rounds
from tasks.statistics.prior import fit as fit_prior
from tests.helpers.oracle import (
    Exact,
    OracleModels,
    exact,
    oracle_config,
    oracle_rollouts,
    oracle_tree,
    random_chain,
    teacher_of,
)
from tests.stages.test_estimators import LOSS, SIGNAL, scored, with_seed

LEVEL = 0.95


@dataclass(frozen=True)
class Question:
    """An oracle's question, and its exact values."""

    scores: QuestionScores
    truth: Exact

    @property
    def ratio(self) -> Floats:
        """<g, d> / |d|^2, exact; 0 at the last token, which neither student nor teacher chooses."""
        d_sq = self.truth.d_sq
        return np.divide(self.truth.inner, d_sq, out=np.zeros(len(d_sq)), where=d_sq > 0)

    def gain(self, w: Floats) -> tuple[float, float]:
        """Exact sum w <g, d>, and sum w^2 |d|^2."""
        return float((w * self.truth.inner).sum()), float((w**2 * self.truth.d_sq).sum())


def question(seed: int, strength: float = 3.0) -> Question:
    """A chain of its own, with a teacher that leans towards success."""
    chain = random_chain(seed, length=16)
    teacher = teacher_of(chain, 100 + seed, strength=strength, noise=1.0)
    config = oracle_config(chain, seed=seed, rollouts=6, nodes=24, head=6, tail=2, draws=100, tail_limit=0.0)
    models = OracleModels(chain, config)
    rollouts = oracle_rollouts(models)
    q = scored(models, teacher, rollouts, oracle_tree(models, rollouts))
    return Question(q, exact(chain, teacher, LOSS, rollouts))


def setting(questions: Sequence[QuestionScores], samples: int = 200) -> Setting:
    return Setting(fit_prior([pool_rounds(q.tree).outcomes for q in questions]), 1.0, samples)


def named(q: QuestionScores, name: str) -> QuestionScores:
    return QuestionScores(name, q.rollouts, q.tree, q.ideal, q.distillation, q.alignment)


def test_fitted_weights_gain_most_of_all_weights_of_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rule_fit, "RIDGE", 0.0)
    q = question(0)
    x = design(known(q.scores, SIGNAL), RULES["full"])
    every = np.arange(len(x))
    beta = fit(Moments.of(x, q.truth.d_sq, every, q.truth.inner))
    root = np.sqrt(q.truth.d_sq)
    least_squares = np.linalg.lstsq(x * root[:, None], q.ratio * root, rcond=None)[0]
    assert beta == pytest.approx(least_squares, rel=1e-6)

    def gained(w: Floats) -> float:
        inner, norm = q.gain(w)
        return inner / float(np.sqrt(norm))

    best, rng = gained(x @ beta), np.random.default_rng(0)
    assert best > gained(np.ones(len(x)))
    assert all(gained(x @ (beta + 0.1 * rng.standard_normal(len(beta)))) < best for _ in range(200))


def test_a_ridge_leads_to_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    q = question(0)
    x = design(known(q.scores, SIGNAL), RULES["full"])
    moments = Moments.of(x, q.truth.d_sq, np.arange(len(x)), q.truth.inner)
    monkeypatch.setattr(token_rule_fit, "RIDGE", 1e9)
    rule = Rule.of(RULES["full"], moments)
    assert rule.estimate(x) == pytest.approx(np.ones(len(x)), abs=1e-6)
    monkeypatch.undo()
    rule = Rule.of(RULES["full"], moments)
    _, norm = q.gain(rule.estimate(x))
    assert norm == pytest.approx(q.truth.d_sq.sum())  # the signal stays as long as it was
    assert rule.scale == pytest.approx(1 / length(moments, fit(moments)))


def test_a_signal_without_a_direction_has_no_weight() -> None:
    rule = Rule.of(RULES["student"], Moments(np.zeros((4, 4)), np.zeros(4)))
    assert rule.constant == 0 and rule.coefficients == (0, 0, 0)
    assert weights(np.array([-1.0, np.nan, 3.0, 99.0]), False) == pytest.approx([0, np.nan, 3, 10], nan_ok=True)
    assert weights(np.array([-1.0, np.nan, 3.0, 0.0]), True) == pytest.approx([0, np.nan, 1, 0], nan_ok=True)


def test_sums_are_unbiased_with_weights_by_rule_and_by_draws() -> None:
    chain = random_chain(3, length=16)
    teacher = teacher_of(chain, 4, strength=1.5, noise=1.0)
    config = oracle_config(chain, rollouts=5, nodes=16, head=6, tail=2, draws=24, tail_limit=0.0)
    models = OracleModels(chain, config)
    rollouts = oracle_rollouts(models)
    truth = exact(chain, teacher, LOSS, rollouts)
    errors, by_rule = [], []
    for seed in range(80):
        other = with_seed(models, chain, 500 + seed)
        q = scored(other, teacher, rollouts, oracle_tree(other, rollouts))
        evidence = Evidence.of(q, [SIGNAL])
        tokens = len(truth.inner)
        chosen = np.zeros(tokens, dtype=np.int64)
        plan = Plan(chosen, np.linspace(-0.5, 2.0, tokens), 5.0, False)
        how = setting([q], 100)
        estimate, _ = replayed(q, [SIGNAL], evidence, plan, how, seed)
        used = [w for w, _ in replays(q, [SIGNAL], plan, how, seed)]
        assert estimate[1] == pytest.approx(np.mean([(w**2 * truth.d_sq).sum() for w in used]))
        errors.append(estimate[0] - np.mean([(w * truth.inner).sum() for w in used]))
        w = weights(plan.estimate, False)
        by_rule.append(evidence.sums(chosen, w)[0] - (w * truth.inner).sum())
        assert any((a != w).any() for a in used)
    for found in (errors, by_rule):
        assert abs(np.mean(found)) <= 3 * np.std(found, ddof=1) / np.sqrt(len(found))


@pytest.fixture(scope="module")
def oracle() -> list[Question]:
    return [question(seed) for seed in range(30)]


def judge(oracle: Sequence[Question], wanted: Wanted) -> tuple[Gathered, Judged]:
    gathered, scores = Gathered(wanted), Scores(bootstrap=500)
    judging = Judging(wanted, setting([q.scores for q in oracle]), scores, 0)
    for q in oracle:
        gathered.add(q.scores)
    for held_out, others in folds(len(oracle)):
        fitted = gathered.fit(others, 0)
        for i in held_out:
            judging.add(named(oracle[i].scores, f"q{i}"), gathered.full[i], fitted)
    return gathered, judging.judged()


def test_judged_gains_are_those_on_other_questions(oracle: list[Question]) -> None:
    wanted = Wanted([SIGNAL], "run", False)
    gathered, judged = judge(oracle, wanted)
    rows = {row["tokens"]: row for row in judged.gains}
    assert tuple(rows) == WEIGHTINGS
    assert rows["chosen"]["gain"] == rows["all"]["gain"]
    fresh = [question(1000 + seed) for seed in range(24)]
    rules = gathered.fit(range(len(oracle)), 0).rules
    for name in ("all", *RULES):
        sums = np.zeros(2)
        for q in fresh:
            w = np.ones(len(q.truth.inner))
            if name != "all":
                rule = rules[name]
                w = weights(rule.estimate(design(known(q.scores, SIGNAL), rule.features)), False)
            sums += q.gain(w)
        true = sums[0] / np.sqrt(sums[1] * sum(len(q.scores.rollouts["correct"]) for q in fresh))
        slack = 0.5 * (rows[name]["gain_high"] - rows[name]["gain_low"])  # fresh rollouts differ too
        assert rows[name]["gain_low"] - slack < true < rows[name]["gain_high"] + slack, name
    assert rows["replay"]["additional_gain_low"] > 0 and rows["full"]["additional_gain_low"] > 0
    assert rows["replay"]["gain"] > rows["full"]["gain"]


def test_intervals_of_tokens_hold_their_exact_ratios(oracle: list[Question]) -> None:
    wanted = Wanted([SIGNAL], "run", False)
    gathered, judged = judge(oracle, wanted)
    fitted = gathered.fit(range(len(oracle)), 0)
    how = setting([q.scores for q in oracle])
    parts = [
        estimated(named(q.scores, f"q{i}"), gathered.full[i], fitted, wanted, how, judged.spread, LEVEL, 0)
        for i, q in enumerate(oracle)
    ]
    table = pl.concat([part.rows for part in parts])
    assert table.columns == list(WEIGHTS)
    ratio = np.concatenate([q.ratio for q in oracle]) * fitted.scale
    low, high = (table[f"estimate_{end}"].to_numpy() for end in ("low", "high"))
    held = (low <= ratio) & (ratio <= high)
    drawn = (table["source"] == "drawn").to_numpy()
    d_sq = table["d_sq"].to_numpy()
    assert d_sq == pytest.approx(np.concatenate([q.truth.d_sq for q in oracle]))
    assert 0 < drawn.mean() < 1
    assert held[drawn].mean() == pytest.approx(LEVEL, abs=0.025)
    assert np.average(held[~drawn], weights=d_sq[~drawn]) > LEVEL - 0.05
    w = table["weight"].to_numpy()
    assert w == pytest.approx(np.clip(table["estimate"].to_numpy(), 0, 10), nan_ok=True)
    assert np.array_equal(np.isnan(w), d_sq == 0) and (table["source"] == "none").sum() == np.isnan(w).sum()
    assert table_length(table) == pytest.approx(np.sqrt(np.nansum(w**2 * d_sq) / d_sq.sum()))


@pytest.mark.parametrize("mask", [False, True])
def test_a_signal_that_mostly_harms_has_short_weights_of_the_common_scale(mask: bool) -> None:
    harmful = [question(seed, strength=-3.0) for seed in range(8)]
    wanted = Wanted([SIGNAL], "run", mask)
    gathered = Gathered(wanted)
    for q in harmful:
        gathered.add(q.scores)
    fitted, how = gathered.fit(range(8), 0), setting([q.scores for q in harmful])
    parts = [
        estimated(named(q.scores, f"q{i}"), gathered.full[i], fitted, wanted, how, [1.0], LEVEL, 0)
        for i, q in enumerate(harmful)
    ]
    every = sum(q.truth.d_sq.sum() for q in harmful)
    lengths = rule_lengths(parts)
    for name, rule in fitted.rules.items():
        each = [rule.estimate(design(known(q.scores, SIGNAL), RULES[name])) for q in harmful]
        assert sum(q.gain(v)[1] for q, v in zip(harmful, each, strict=True)) == pytest.approx(every)
        clipped = sum(q.gain(weights(v, mask))[1] for q, v in zip(harmful, each, strict=True))
        assert lengths[name] == pytest.approx(np.sqrt(clipped / every)) and lengths[name] < 0.5
    assert fitted.scale == fitted.rules["full"].scale


def test_draws_tell_single_tokens_better_than_the_rule_does(oracle: list[Question]) -> None:
    q = oracle[0]
    drawn = posterior(q.scores, q.scores.tree, [SIGNAL], setting([q.scores]), 0)
    assert drawn.ratio.shape == (1, 200, len(drawn.node))
    found = drawn.of(np.zeros(len(q.truth.inner), dtype=np.int64)).mean(axis=0)
    error = np.average((found - q.ratio[drawn.node]) ** 2, weights=q.truth.d_sq[drawn.node])
    spread = np.average((q.ratio[drawn.node] - q.ratio[drawn.node].mean()) ** 2, weights=q.truth.d_sq[drawn.node])
    assert error < 0.5 * spread


def test_another_signal_is_chosen_only_where_it_is_clearly_better() -> None:
    rng = np.random.default_rng(0)
    x = np.stack([np.ones((3, 50)), rng.random((3, 50))], axis=-1)  # three signals, one feature
    d_sq = np.ones((3, 50))
    beta = np.array([[1.0, 0.0], [0.0, 2.0], [1.5, 0.0]])
    sure = np.broadcast_to(beta, (200, 3, 2)) + 1e-3 * rng.standard_normal((200, 3, 2))
    expected = np.stack([np.ones(50), 2 * x[1, :, 1], np.full(50, 1.5)])
    assert by_token(x, d_sq, beta, sure, LEVEL) == pytest.approx(expected.argmax(axis=0))
    unsure = beta + 2.0 * rng.standard_normal((200, 3, 2))
    assert not by_token(x, d_sq, beta, unsure, LEVEL).any()
    x[1, :10, 1] = np.nan  # the teacher has no distribution there
    assert (by_token(x, d_sq, beta, sure, LEVEL)[:10] == 2).all()
    moments = Moments.of(x[0], d_sq[0], np.arange(50), d_sq[0])
    stacked = Moments(np.stack([moments.norm] * 3), np.stack([moments.inner] * 3))
    assert by_question(stacked, beta, sure, LEVEL) == 2
    assert by_question(stacked, beta, unsure, LEVEL) == 0
    empty = Moments(np.zeros((3, 2, 2)), np.zeros((3, 2)))
    assert by_question(empty, beta, sure, LEVEL) == 0


def test_features_are_bounded_whatever_the_probabilities(oracle: list[Question]) -> None:
    q = oracle[0].scores
    d = {**q.distillation[SIGNAL], "teacher_token_prob": np.zeros(len(oracle[0].truth.inner))}
    given = QuestionScores("q", q.rollouts, q.tree, q.ideal, {SIGNAL: d}, q.alignment)
    x = design(known(given, SIGNAL), RULES["full"])
    assert np.isfinite(x).all() and (np.abs(x) <= 1).all()
    assert features_of(q, [SIGNAL]).shape == (1, len(x), 6)
