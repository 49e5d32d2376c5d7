"""Prior, signs and intervals of single nodes; predictors and selections; rankings: against exact values."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, rankdata

from schemas.config import ForcedTree, ReverseKL, Scores
from schemas.signals import Signal
from tasks.calibration.chain import Sums, exact_scores, expected
from tasks.calibration.simulate import OracleTeaching, Rolled, roll
from tasks.calibration.suite import Family, OracleQuestion, make_question
from tasks.stages.aggregate.pooling import make_pool
from tasks.stages.aggregate.predictors import PREDICTORS, AtNodes, predictor_rows
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.selection import CHOICES, selection_rows, split, sum_choices, sum_predicted
from tasks.stages.aggregate.tables import differences_table
from tasks.stages.alignment import interval
from tasks.stages.distillation.stage import NO_NODES
from tasks.stages.ranking import RankedQuestion, advantages, contributions, rank
from tasks.stages.trees.forced import ForcedPlanner
from tasks.stages.trees.planner import grow_tree
from tasks.stages.values import boundaries
from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, resample
from tasks.statistics.estimators import Outcomes
from tasks.statistics.prior import CONCENTRATIONS, Prior, fit, responsibilities
from tests.benchmarks.few_units import population, settles
from tests.helpers.drawing import drawn_by
from tests.helpers.oracle import Given, scored_trees

LOSS = ReverseKL()
SCORES = Scores(groupings=[], bootstrap=400, posterior=200)


def siblings(rng: np.random.Generator, nodes: int, spread: float, draws: int = 12) -> Outcomes:
    """Nodes of four branches each; success differs between branches by `spread` in log-odds."""
    base = rng.normal(0, 1, size=(nodes, 1)) + spread * rng.standard_normal((nodes, 4))
    successes = rng.binomial(draws, 1 / (1 + np.exp(-base))).astype(float).reshape(-1)
    prob = np.full(4 * nodes, 0.25)
    offsets = np.arange(nodes + 1) * 4
    no_tail = np.zeros(len(prob), dtype=bool)
    n = np.full(len(prob), float(draws))
    return Outcomes(offsets, prob, no_tail, n, successes, np.full(nodes, 0.25), np.zeros(nodes))


def test_the_prior_tells_no_difference_from_large_ones() -> None:
    rng = np.random.default_rng(0)
    same, apart = siblings(rng, 400, 0.0), siblings(rng, 100, 3.0)
    prior = fit([same, apart])
    assert prior.weight.sum() == pytest.approx(1)
    by_kappa = prior.weight.reshape(-1, len(CONCENTRATIONS)).sum(axis=0)
    assert 0.7 < by_kappa[CONCENTRATIONS > 100].sum() < 0.9  # 80 % of the nodes
    null = prior.kappa > 100
    assert responsibilities(prior, same)[:, null].sum(axis=1).mean() > 0.85
    assert responsibilities(prior, apart)[:, null].sum(axis=1).mean() < 0.25
    alone = fit([siblings(rng, 200, 0.0)])
    assert alone.weight[alone.kappa > 100].sum() > 0.85


def test_likelihood_is_that_of_beta_binomial_counts() -> None:
    outcomes = siblings(np.random.default_rng(1), 1, 1.0, draws=3)
    prior = Prior(np.array([0.3]), np.array([2.0]), np.array([1.0]))
    from tasks.statistics.prior import log_likelihood

    rng = np.random.default_rng(2)
    q = rng.beta(0.6, 1.4, size=(400_000, 4))
    s = outcomes.successes
    brute = np.prod(q**s * (1 - q) ** (3 - s), axis=1).mean()
    assert np.exp(log_likelihood(outcomes, prior.mu, prior.kappa)[0, 0]) == pytest.approx(brute, rel=0.02)


def test_intervals_hold_either_end_where_nothing_is_known() -> None:
    rng = np.random.default_rng(0)
    unknown = np.clip(rng.uniform(-1.05, 1.05, size=(2000, 1)), -1, 1)
    low, high = interval(unknown, 0.95)
    assert low[0] == -1 and high[0] == 1
    known = rng.normal(0.4, 0.05, size=(4000, 1))
    low, high = interval(known, 0.95)
    assert 0.27 < low[0] < 0.32 and 0.48 < high[0] < 0.53


Run = list[tuple[OracleQuestion, Rolled, dict[str, Any]]]


@pytest.fixture(scope="module")
def run() -> Run:
    family, out = Family(64, "clear", "even"), []
    for n in range(16):
        q = make_question(family, n, 0)
        rng = np.random.default_rng(n)
        rolled = roll(q.student, str(n), 8, n, rng)
        planner = ForcedPlanner(ForcedTree(nodes=48, draws=384))
        out.append((q, rolled, grow_tree(planner, rolled.frame, drawn_by(rolled, rng))))
    return out


def scored(run: Run, teacher: str, trees: list[dict[str, Any]] | None = None) -> tuple[list[QuestionScores], Prior]:
    """All of a run for one teacher, with other trees if given."""
    trees = trees if trees is not None else [tree for _, _, tree in run]
    signal = Signal(teacher, "none", "reverse_kl")
    given = {
        str(n): Given(
            rolled.arrays, tree, {signal: OracleTeaching(rolled, q.teachers[teacher], LOSS).distillation(tree)}
        )
        for n, ((q, rolled, _), tree) in enumerate(zip(run, trees, strict=True))
    }
    return scored_trees(given, seed=int, scores=SCORES)


@pytest.mark.parametrize("teacher", ["good", "random"])
def test_signs_and_intervals_of_nodes(run: Run, teacher: str) -> None:
    questions, _ = scored(run, teacher)
    resolved, right, inside = 0, 0, []
    for q, (question, rolled, tree) in zip(questions, run, strict=True):
        a = next(iter(q.alignment.values()))
        exact = exact_scores(question.student, question.teachers[teacher], LOSS)
        at = rolled.depth[tree["node"]], rolled.state[tree["node"]]
        with np.errstate(invalid="ignore"):
            cosine = exact.inner[at] / np.sqrt(exact.g_sq[at] * exact.d_sq[at])
        told = np.asarray(a["lfsr"]) < 0.05
        real = exact.g_sq[at] > 1e-20
        resolved += told.sum()
        right += (told & real & (np.sign(exact.inner[at]) == np.sign(a["p_positive"] - 0.5))).sum()
        judged = np.isfinite(a["cosine"]) & real
        inside.append(((a["cosine_low"] <= cosine) & (cosine <= a["cosine_high"]))[judged])
        assert np.isnan(a["lfsr"][np.diff(tree["branch_offsets"]) < 2]).all()
    assert resolved > 30
    assert right / resolved >= 0.93  # 95 % is asked for; of 30 to 100 nodes
    assert np.concatenate(inside).mean() >= 0.93


def test_outcomes_that_do_not_depend_on_branches_resolve_next_to_nothing(run: Run) -> None:
    rng = np.random.default_rng(0)
    trees = [{**tree, "successes": rng.binomial(tree["draws"], 0.4)} for _, _, tree in run]
    questions, _ = scored(run, "good", trees)
    lfsr = np.concatenate([next(iter(q.alignment.values()))["lfsr"] for q in questions])
    assert np.isfinite(lfsr).sum() > 500
    assert (lfsr < 0.05).mean() < 0.002


def selected(run: Run, trees: list[dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The selection's rows, by which tokens are kept."""
    questions, prior = scored(run, "fair", trees)
    signals = list(questions[0].alignment)
    sums = np.stack([sum_choices(q, signals, prior, SCORES, 1.0, 1e-3, 7) for q in questions])
    sums[:, 0, CHOICES.index("predicted_positive")] = sum_predicted([AtNodes.of(q, signals[0]) for q in questions])
    return {row["tokens"]: row for row in selection_rows(sums, signals, SCORES, 0)}


@pytest.mark.slow
def test_selection_is_scored_on_draws_that_did_not_select(run: Run) -> None:
    """Where outcomes are noise, keeping what looks positive gains nothing; where they are not, it does."""
    held = dict.fromkeys(("likely_positive", "predicted_positive"), 0)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise = selected(run, [{**tree, "successes": rng.binomial(tree["draws"], 0.4)} for _, _, tree in run])
        for choice in held:
            held[choice] += noise[choice]["gain_low"] <= 0 <= noise[choice]["gain_high"]
    assert min(held.values()) >= 6  # 95 % intervals: P(fewer of 8) < 1 %
    real = selected(run, None)
    assert real["all"]["share"] == 1 and real["likely_positive"]["additional_gain_low"] > 0
    assert real["resolved_positive"]["share"] < real["likely_positive"]["share"] < 1
    assert 0 < real["predicted_positive"]["share"] < 1 and real["predicted_positive"]["gain_low"] > 0


def test_halves_of_a_split_are_whole_again(run: Run) -> None:
    tree = run[0][2]
    a, b = split(tree, np.random.default_rng(0))
    for name in ("draws", "successes"):
        assert (a[name] + b[name] == tree[name]).all()
    assert (abs(a["draws"] - b["draws"]) <= 1).all() and (a["successes"] <= a["draws"]).all()


def test_predictors_are_corrected_for_noise(run: Run) -> None:
    """The corrected correlation is that with the exact <g, d> / |d|; the plain one falls short of it."""
    questions, _ = scored(run, "good")
    signal = next(iter(questions[0].alignment))
    rows = {
        row["predictor"]: row for row in predictor_rows({signal: [AtNodes.of(q, signal) for q in questions]}, SCORES, 0)
    }
    assert set(rows) == set(PREDICTORS)
    y, x, w = [], [], []
    for q, (question, rolled, tree) in zip(questions, run, strict=True):
        exact = exact_scores(question.student, question.teachers["good"], LOSS)
        at = rolled.depth[tree["node"]], rolled.state[tree["node"]]
        y.append(exact.inner[at] / np.sqrt(exact.d_sq[at]))
        x.append(np.sqrt(q.distillation[signal]["d_sq"][tree["node"]]))
        w.append(q.weight)
    ranks, target, weight = rankdata(np.concatenate(x)), np.concatenate(y), np.concatenate(w)
    covariance = np.cov(ranks, target, aweights=weight)
    truth = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    row = rows["signal_norm"]
    assert row["correlation_low"] <= truth <= row["correlation_high"]
    assert abs(row["correlation"] - truth) < 0.1
    assert abs(row["correlation_plain"]) < abs(row["correlation"])


def test_percentiles_widen_for_few_units() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    assert bootstrap_interval(values, 10_000, 0.95) == pytest.approx((-1.96, 1.96), abs=0.03)
    low, high = bootstrap_interval(values, 8, 0.95)
    assert high == pytest.approx(2.365 * np.sqrt(8 / 7), abs=0.06) and low == pytest.approx(-high, abs=0.08)
    assert all(np.isnan(bootstrap_interval(values, units, 0.95)).all() for units in range(LEAST_UNITS))


@pytest.mark.parametrize("units", [5, 8, 20])
def test_intervals_of_few_units_hold_as_often_as_they_say(units: int) -> None:
    """Means of normal and of heavy-tailed values; percentiles alone held 91 % of five, and 93 % of eight."""
    rng, counts = np.random.default_rng(units), resample(units, 1000, 1)
    for values in (rng.standard_normal((1000, units)), rng.laplace(size=(1000, units))):
        held = sum(low <= 0 <= high for low, high in (bootstrap_interval(counts @ x, units, 0.95) for x in values))
        assert 0.935 <= held / 1000 <= 0.99  # two standard errors below 95 %


def test_differences_are_paired(run: Run) -> None:
    questions = []
    one, two = (scored(run, name)[0] for name in ("good", "fair"))
    for a, b in zip(one, two, strict=True):
        questions.append(
            replace(a, distillation={**a.distillation, **b.distillation}, alignment={**a.alignment, **b.alignment})
        )
    signals = list(questions[0].alignment)
    scores = Scores(bootstrap=800, posterior=100)
    pool = make_pool(questions, signals, scores, 0)
    table = differences_table(pool)
    pair = table.filter(table["group"] == "all").row(0, named=True)
    assert (pair["teacher"], pair["other_teacher"]) == ("good", "fair")
    points = [pool.point[s]["alignment"][0] for s in signals]
    assert pair["alignment"] == pytest.approx(points[0] - points[1])
    widths = [np.subtract(*bootstrap_interval(pool.replicates[s]["alignment"][:, 0], 16, 0.95)) for s in signals]
    assert pair["alignment_high"] - pair["alignment_low"] < np.hypot(*widths)
    outcome = table.filter(table["group"] == "outcome").row(0, named=True)
    assert (outcome["bin"], outcome["other_bin"]) == ("correct", "incorrect")


def ranked(questions: list[OracleQuestion], rollouts: int, seed: int, names: list[str]) -> list[RankedQuestion]:
    rng = np.random.default_rng(seed)
    out = []
    for n, q in enumerate(questions):
        rolled = roll(q.student, str(n), rollouts, seed, rng)
        signals = {
            Signal(name, "none", "reverse_kl"): OracleTeaching(rolled, q.teachers[name], LOSS).distillation(NO_NODES)
            for name in names
        }
        out.append(RankedQuestion(rolled.arrays, signals))
    return out


def test_ranking_is_unbiased_and_says_what_would_settle_it() -> None:
    family = Family(64, "clear", "even")
    questions = [make_question(family, n, 0) for n in range(8)]
    names = ["wrong", "fair", "good"]
    truth = {}
    for name in names:
        sums = [expected(q.student, exact_scores(q.student, q.teachers[name], LOSS))["all"] for q in questions]
        truth[name] = sum(sums, start=Sums(0, 0, 0)).gain / np.sqrt(len(questions))
    gains: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(120):
        ranking = rank(ranked(questions, 6, seed, names), 1.0, SCORES, seed)
        for row in ranking.rows:
            gains[row["teacher"]].append(row["gain"])
    for name in names:
        error = np.std(gains[name], ddof=1) / np.sqrt(120)
        assert abs(np.mean(gains[name]) - truth[name]) <= 3 * error
    few = rank(ranked(questions, 2, 0, names), 1.0, SCORES, 0)
    assert few.settled is False and few.additional_questions is not None and few.additional_questions > 0
    many = rank(ranked(questions, 400, 1, names), 1.0, SCORES, 0)
    assert [row["teacher"] for row in many.rows] == ["good", "fair", "wrong"]
    assert many.settled is True and many.rows[0]["p_best"] > 0.97
    assert sum(row["p_best"] for row in many.rows) == pytest.approx(1)


def test_values_along_rollouts_cut_the_variance_and_keep_the_mean() -> None:
    q = make_question(Family(64, "clear", "even"), 0, 0)
    signal = Signal("good", "none", "reverse_kl")
    outcome: list[float] = []
    segments: list[float] = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        rolled = roll(q.student, "q", 4, seed, rng)
        arrays = {signal: OracleTeaching(rolled, q.teachers["good"], LOSS).distillation(NO_NODES)}
        ends = boundaries(rolled.arrays["offsets"], 4)
        value = q.student.values[rolled.depth[ends], rolled.state[ends]]
        values = {"boundary": ends, "draws": np.full(len(ends), 16), "successes": rng.binomial(16, value)}
        for found, given in ((outcome, None), (segments, values)):
            found.append(contributions(RankedQuestion(rolled.arrays, arrays, given), 1.0)[:, 0, 0].sum())
    truth = 4 * expected(q.student, exact_scores(q.student, q.teachers["good"], LOSS))["all"].inner
    for found in (outcome, segments):
        assert abs(np.mean(found) - truth) <= 3 * np.std(found) / np.sqrt(400)
    assert np.var(segments) < 0.6 * np.var(outcome)


def test_segments_are_equal_parts() -> None:
    assert boundaries(np.array([0, 8, 10, 11]), 4).tolist() == [2, 4, 6, 8 + 1]


def test_a_teacher_equal_to_the_student_has_no_rank() -> None:
    q = make_question(Family(64, "clear", "even"), 0, 0)
    same = OracleQuestion(q.id, q.student, {"good": q.teachers["good"], "same": q.student})
    ranking = rank(ranked([same] * 6, 4, 0, ["same", "good"]), 1.0, SCORES, 0)
    assert [row["rank"] for row in ranking.rows] == [1, None]
    assert np.isnan(ranking.rows[1]["gain"]) and ranking.settled is None


def test_a_teacher_that_knows_what_comes_next_is_not_ranked() -> None:
    """Were it, its gain would be that of copying: here of a direction towards whatever token was sampled."""
    questions = ranked(population(8), 8, 0, ["good", "wrong"])
    knowing = [
        replace(
            q,
            signals={
                signal: {**arrays, "d_token": np.abs(arrays["d_token"])} if signal.teacher == "wrong" else arrays
                for signal, arrays in q.signals.items()
            },
        )
        for q in questions
    ]
    (source,) = {s.source for s in questions[0].signals if s.teacher == "wrong"}
    honest = rank(knowing, 1.0, SCORES, 0, [source])
    assert [(row["teacher"], row["rank"]) for row in honest.rows] == [("good", 1), ("wrong", None)]
    assert np.isnan(honest.rows[1]["gain"]) and np.isnan(honest.rows[1]["p_best"]) and honest.settled is None
    alone = rank([replace(q, signals={s: a for s, a in q.signals.items() if s.teacher == "good"}) for q in questions],
                 1.0, SCORES, 0)  # fmt: skip
    assert honest.rows[0]["gain"] == alone.rows[0]["gain"] and honest.rows[0]["p_best"] == 1.0


def test_advantages_leave_the_rollout_out() -> None:
    assert advantages(np.array([True, False, True, True])) == pytest.approx([1 / 3, -1, 1 / 3, 1 / 3])
    assert advantages(np.array([True])).tolist() == [0]


def test_a_ranking_of_nothing_is_not_settled() -> None:
    """Two signals of no gain, at several sizes: settled no oftener than 5 % allow; by a z-test it was 29 to 7 %."""
    questions = population(12)
    for n, rollouts, repeats in ((1, 4, 20), (2, 4, 60), (5, 8, 60), (20, 8, 20)):
        settled = sum(settles(n, rollouts, seed, questions) for seed in range(repeats))
        assert settled <= binom.ppf(0.999, repeats, 0.05), (n, rollouts)


def outcomes_all(questions: list[RankedQuestion], won: bool) -> list[RankedQuestion]:
    n = [len(q.rollouts["correct"]) for q in questions]
    alike = [{"correct": np.full(k, won), "reward": np.full(k, float(won))} for k in n]
    return [replace(q, rollouts={**q.rollouts, **same}) for q, same in zip(questions, alike, strict=True)]


@pytest.mark.parametrize("won", [True, False])
def test_nothing_is_known_where_all_rollouts_end_alike(won: bool) -> None:
    questions = [make_question(Family(64, "clear", "even"), n, 0) for n in range(6)]
    ranking = rank(outcomes_all(ranked(questions, 4, 0, ["good", "fair"]), won), 1.0, SCORES, 0)
    assert ranking.settled is None and ranking.additional_questions is None
    for row in ranking.rows:
        assert row["rank"] is None and row["carrying"] == 0
        assert np.isnan(
            [row[name] for name in ("gain", "gain_low", "p_best", "gain_deficit", "gain_deficit_low")]
        ).all()


def test_teachers_of_the_same_content_share_their_rank() -> None:
    questions = [make_question(Family(64, "clear", "even"), n, 0) for n in range(8)]
    twins = [OracleQuestion(q.id, q.student, {**q.teachers, "twin": q.teachers["good"]}) for q in questions]
    ranking = rank(ranked(twins, 8, 0, ["wrong", "twin", "good"]), 1.0, SCORES, 0)
    assert [(row["teacher"], row["rank"]) for row in ranking.rows] == [("twin", 1), ("good", 1), ("wrong", 3)]
    assert ranking.rows[0]["p_best"] == ranking.rows[1]["p_best"] and ranking.settled is False
    assert sum(row["p_best"] for row in ranking.rows) == pytest.approx(1)


def test_few_questions_that_carry_signal_lend_their_rollouts() -> None:
    """Questions without signal change neither the units nor, but for their |d|, the gain."""
    questions = [make_question(Family(64, "clear", "even"), n, 0) for n in range(8)]
    asked = ranked(questions, 8, 0, ["good", "wrong"])
    whole = rank(asked, 1.0, SCORES, 0)
    assert whole.rows[0]["carrying"] == 8
    mixed = [*asked[:2], *outcomes_all(asked[2:], False)]
    few = rank(mixed, 1.0, SCORES, 0)
    open_rollouts = sum(len(q.rollouts["correct"]) for q in asked[:2] if 0 < q.rollouts["correct"].sum() < 8)
    assert few.rows[0]["carrying"] == open_rollouts > 2
    alone = rank(asked[:1], 1.0, SCORES, 0)
    assert np.isfinite(alone.rows[0]["gain"]) and alone.rows[0]["carrying"] <= 8


def test_a_gain_is_that_of_a_rollout() -> None:
    """Asking everything twice over leaves gains as they are; it was larger by the root of two."""
    questions = [make_question(Family(64, "clear", "even"), n, 0) for n in range(8)]
    asked = ranked(questions, 8, 0, ["good", "wrong"])
    once, twice = (rank(a, 1.0, SCORES, 0).rows[0]["gain"] for a in (asked, asked * 2))
    assert once == pytest.approx(twice)
