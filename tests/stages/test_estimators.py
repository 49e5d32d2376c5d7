"""Stages 2 to 6 against the exact oracle, by the same functions that run on real models."""

from typing import Any

import numpy as np
import pytest

from schemas.arrays import Arrays
from schemas.config import Branching, ForwardKL, ReverseKL, Scores
from schemas.signals import Signal
from tasks.calibration.chain import Chain
from tasks.stages.aggregate.pooling import make_pool, pooled
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.tables import summary_table
from tasks.stages.ideal import ideal_gradients
from tasks.stages.models import ModelProvider
from tasks.stages.protocol import Unit
from tasks.stages.trees.branches import allocate
from tasks.stages.trees.design import RoundDesign
from tasks.stages.trees.frame import survey
from tasks.stages.trees.planner import Launches
from tasks.stages.trees.stage import DrawCounts, draw_unit, planner_of
from tasks.statistics.design import inclusion_probabilities, systematic_sample
from tasks.statistics.estimators import Outcomes, estimate_squared_norm
from tests.helpers.drawing import NoCheckpoints
from tests.helpers.oracle import (
    QUESTION,
    Exact,
    Given,
    OracleModels,
    exact,
    oracle_config,
    oracle_rollouts,
    oracle_tree,
    random_chain,
    scored_tree,
    teacher_of,
)

LOSS = ReverseKL()
SIGNAL = Signal("teacher", "none", "reverse_kl")


def design_of(models: OracleModels, rollouts: Arrays) -> tuple[RoundDesign, Launches]:
    """The first round, as stage 2 plans it."""
    frame = survey(models.student, models.config, QUESTION, rollouts)
    design = planner_of(models.config.tree).next_round(frame, [], 0.0)
    assert isinstance(design, RoundDesign)
    return design, design.launches(frame.offsets)


def outcomes_of(models: OracleModels, rollouts: Arrays, launches: Launches, unit: Unit | None = None) -> Arrays:
    """Outcomes of a first round, or a unit of it."""
    whole = Unit(0, len(launches.draws))
    return draw_unit(models, models.config, QUESTION, rollouts, launches, DrawCounts(), unit or whole)


def scored(models: OracleModels, teacher: Chain, rollouts: Arrays, tree: Arrays) -> QuestionScores:
    """Stages 3 to 5 of one tree, whose prior is its own."""
    config = models.config
    taught = OracleModels(models.student.chain, config, {"teacher": teacher})
    provider = ModelProvider(taught, config, NoCheckpoints())
    made = provider.distillation(QUESTION, {SIGNAL.source: {SIGNAL.loss: LOSS}}, rollouts, tree, {})
    given = Given(rollouts, tree, made)
    return scored_tree(given, seed=config.seed, tail_limit=config.tree.tail_limit)


def summary(questions: list[QuestionScores], seed: int = 0) -> dict[str, Any]:
    """The summary's only row."""
    return summary_table(make_pool(questions, [SIGNAL], Scores(groupings=[]), seed)).row(0, named=True)


def with_seed(models: OracleModels, chain: Chain, seed: int) -> OracleModels:
    return OracleModels(chain, models.config.model_copy(update={"seed": seed}))


@pytest.mark.parametrize(
    ("head", "tail", "draws", "node_choice", "allocation"),
    [
        (2, 4, 24, "leverage", "leverage"),  # most of the probability in the tail
        pytest.param(4, 2, 16, "uniform", "equal", marks=pytest.mark.slow),
        pytest.param(12, 2, 40, "leverage", "leverage", marks=pytest.mark.slow),  # no tail at all
    ],
)
def test_pooled_inner_and_squared_norm_are_unbiased(
    head: int, tail: int, draws: int, node_choice: str, allocation: str
) -> None:
    chain = random_chain(3, length=20)
    teacher = teacher_of(chain, 4, strength=2.0, noise=0.5)
    config = oracle_config(
        chain,
        rollouts=6,
        nodes=24,
        head=head,
        tail=tail,
        draws=draws,
        node_choice=node_choice,
        allocation=allocation,
        tail_limit=0.0,
    )
    first = OracleModels(chain, config)
    rollouts = oracle_rollouts(first)
    truth = exact(chain, teacher, LOSS, rollouts)
    inner, g_sq, d_sq, value = [], [], [], []
    for seed in range(200):
        q = scored(
            with_seed(first, chain, 1000 + seed),
            teacher,
            rollouts,
            oracle_tree(with_seed(first, chain, 1000 + seed), rollouts),
        )
        inner.append((q.weight * q.alignment[SIGNAL]["inner"]).sum())
        g_sq.append((q.weight * q.ideal["g_sq"]).sum())
        d_sq.append((q.weight * np.asarray(q.distillation[SIGNAL]["d_sq"])[q.tree["node"]]).sum())
        value.append((q.weight * q.ideal["value"]).sum())
    for estimates, target in (
        (inner, truth.inner),
        (g_sq, truth.g_sq),
        (d_sq, truth.d_sq),
        (value, truth.value),
    ):
        standard_error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - target.sum()) <= 3 * standard_error + 1e-9
    assert np.asarray(q.distillation[SIGNAL]["d_sq"]) == pytest.approx(truth.d_sq)


def test_a_tail_left_undrawn_biases_by_at_most_its_probability() -> None:
    chain = random_chain(5, length=12, sharpness=4.0)
    teacher = teacher_of(chain, 6, strength=2.0, noise=0.5)
    config = oracle_config(chain, rollouts=4, nodes=60, head=6, tail=2, draws=2000, tail_limit=0.2)
    models = OracleModels(chain, config)
    rollouts = oracle_rollouts(models)
    tree = oracle_tree(models, rollouts)
    undrawn = (tree["tail_prob"] > 0) & ~np.logical_or.reduceat(tree["branch_tail"], tree["branch_offsets"][:-1])
    assert undrawn.any()
    truth = exact(chain, teacher, LOSS, rollouts).value[tree["node"]]
    q = scored(models, teacher, rollouts, tree)
    error = np.abs(truth - q.ideal["value"])
    assert (error[undrawn] <= tree["tail_prob"][undrawn] + 0.05).all()
    single = np.diff(tree["branch_offsets"]) == 1
    assert single.any()  # nothing to compare: no gradient, no sign
    assert q.ideal["g_sq"][single] == pytest.approx(0, abs=1e-12)
    assert q.alignment[SIGNAL]["inner"][single] == pytest.approx(0, abs=1e-12)
    assert np.isnan(q.alignment[SIGNAL]["p_positive"][single]).all()
    assert np.isnan(q.alignment[SIGNAL]["cosine"][single]).all()


def test_pooled_alignment_and_node_cosines_converge() -> None:
    chain = random_chain(7, length=6)
    teacher = teacher_of(chain, 8, strength=2.0, noise=1.0)
    errors = []
    for draws in (40, 2560):
        config = oracle_config(chain, rollouts=8, nodes=100, head=12, tail=2, draws=draws)
        models = OracleModels(chain, config)
        rollouts = oracle_rollouts(models)
        truth = exact(chain, teacher, LOSS, rollouts)
        q = scored(models, teacher, rollouts, oracle_tree(models, rollouts))
        table = summary([q])
        clear = truth.g_sq[q.tree["node"]] > 0.03**2
        node_error = np.abs(q.alignment[SIGNAL]["cosine"] - truth.cosine[q.tree["node"]])[clear]
        errors.append((abs(table["alignment"] - truth.alignment), float(np.nanmean(node_error))))
    assert errors[1][0] < 0.03
    assert errors[1][1] < 0.5 * errors[0][1]  # 64 times the draws: an eighth, but for chance


def test_squared_norm_without_a_tail_is_the_plain_one_less_its_noise() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5))
    n, s = np.array([4.0, 6, 3, 9, 2]), np.array([1.0, 6, 0, 5, 1])
    outcomes = Outcomes(np.array([0, 5]), p, np.zeros(5, bool), n, s, np.array([(p**2).sum()]), np.zeros(1))
    q = s / n
    g = p * (q - (p * q).sum())
    leverage = p**2 * (1 - 2 * p + (p**2).sum())
    noise = leverage * q * (1 - q) / (n - 1)
    unbiased, plain = estimate_squared_norm(outcomes)
    assert unbiased[0] == pytest.approx((g**2).sum() - noise.sum())
    assert plain[0] == pytest.approx((g**2).sum())


def test_outcomes_shuffled_among_branches_give_an_interval_that_holds_zero() -> None:
    chain = random_chain(9, length=4)
    teacher = teacher_of(chain, 10, strength=3.0, noise=0.0)
    covered, real = 0, []
    rng = np.random.default_rng(0)
    for seed in range(20):
        questions, shuffled = [], []
        for k in range(8):
            models = OracleModels(
                chain,
                oracle_config(
                    chain,
                    seed=100 * seed + k,
                    rollouts=4,
                    nodes=20,
                    head=4,
                    tail=2,
                    draws=60,
                    allocation="equal",
                ),
            )
            rollouts = oracle_rollouts(models)
            tree = oracle_tree(models, rollouts)
            questions.append(scored(models, teacher, rollouts, tree))
            shuffled.append(scored(models, teacher, rollouts, shuffle(tree, rng)))
        null = summary(shuffled, seed)
        # the gain has the alignment's sign, and is defined where |g| is lost in noise, as it is here
        covered += null["gain_low"] <= 0 <= null["gain_high"]
        if null["alignment"] is not None:
            assert (null["alignment_low"] <= 0 <= null["alignment_high"]) == (
                null["gain_low"] <= 0 <= null["gain_high"]
            )
        real.append(summary(questions, seed)["gain_low"] > 0)
    assert covered >= 16  # 95 % intervals over few units: binomial, P(X < 16) < .3 %
    assert all(real)


def shuffle(tree: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The node's successes dealt out anew among all its draws."""
    successes = tree["successes"].copy()
    for a, b in zip(tree["branch_offsets"][:-1], tree["branch_offsets"][1:], strict=True):
        draws = tree["draws"][a:b]
        outcomes = np.arange(draws.sum()) < tree["successes"][a:b].sum()
        branch = np.repeat(np.arange(b - a), draws)
        successes[a:b] = np.bincount(branch, rng.permutation(outcomes), b - a)
    return {**tree, "successes": successes}


def test_a_teacher_equal_to_the_student_is_undefined_and_not_zero() -> None:
    chain = random_chain(11, length=10)
    models = OracleModels(chain, oracle_config(chain, rollouts=3, nodes=10, head=4, tail=2, draws=16))
    rollouts = oracle_rollouts(models)
    q = scored(models, chain, rollouts, oracle_tree(models, rollouts))
    assert not np.asarray(q.distillation[SIGNAL]["d_sq"]).any()
    assert np.isnan(q.alignment[SIGNAL]["cosine"]).all()
    assert np.isnan(q.alignment[SIGNAL]["p_positive"]).all()
    row = summary([q])
    assert row["alignment"] is None and row["gain"] is None and row["mean_cosine"] is None
    assert row["resolved"] is False and row["d_sq"] == 0


def test_temperature_scales_the_ideal_gradient() -> None:
    """At temperature 2 draws follow the tempered policy and g gains a factor 1/2."""
    chain = random_chain(12, length=8)
    config = oracle_config(chain, rollouts=3, nodes=30, head=12, tail=2, draws=1500)
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"temperature": 2.0})})
    models = OracleModels(chain, config)
    tempered_step = np.sqrt(chain.step)
    hot = Chain(
        chain.kinds,
        tempered_step / tempered_step.sum(axis=2, keepdims=True),
        chain.follow,
        np.sqrt(chain.success) / (np.sqrt(chain.success) + np.sqrt(1 - chain.success)),
    )
    rollouts = oracle_rollouts(models)
    tree = oracle_tree(models, rollouts)
    ideal = ideal_gradients(Outcomes.of(tree), 2.0)
    truth = exact(hot, chain, LOSS, rollouts)
    assert ideal["value"] == pytest.approx(truth.value[tree["node"]], abs=0.08)
    assert ideal["g_sq"].sum() == pytest.approx(truth.g_sq[tree["node"]].sum() / 4, rel=0.1)


def test_tree_is_the_same_in_any_units_and_a_larger_budget_extends_it() -> None:
    chain = random_chain(13, length=12)
    models = OracleModels(chain, oracle_config(chain, rollouts=3, nodes=8, head=3, tail=2, draws=16))
    rollouts = oracle_rollouts(models)
    design, launches = design_of(models, rollouts)
    whole = outcomes_of(models, rollouts, launches)["success"]
    edge, branches = int(design.arrays["branch_offsets"][4]), len(launches.draws)
    parts = [outcomes_of(models, rollouts, launches, unit)["success"] for unit in (Unit(0, edge), Unit(edge, branches))]
    assert (np.concatenate(parts) == whole).all()

    larger = OracleModels(chain, oracle_config(chain, rollouts=3, nodes=8, head=3, tail=2, draws=64))
    _, more = design_of(larger, rollouts)
    extended = outcomes_of(larger, rollouts, more)["success"]
    assert (more.token == launches.token).all()
    few, many = (np.concatenate([[0], np.cumsum(of.draws)]) for of in (launches, more))
    for b in range(branches):
        n = int(launches.draws[b])
        assert (extended[many[b] : many[b] + n] == whole[few[b] : few[b] + n]).all()


def test_inclusion_probabilities_and_systematic_sample() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.exponential(size=50) ** 3
    sizes[:5] = 0
    for n in (1, 7, 30, 45, 80):
        inclusion = inclusion_probabilities(sizes, n)
        assert inclusion.max() <= 1 and inclusion.sum() == pytest.approx(min(n, 45))
        counts = np.zeros(50)
        for u in (np.arange(2000) + 0.5) / 2000:
            sample = systematic_sample(inclusion, u)
            assert len(sample) == min(n, 45)
            counts[sample] += 1
        assert counts / 2000 == pytest.approx(inclusion, abs=2e-3)


def test_allocation_spends_the_budget_with_two_draws_a_branch() -> None:
    tree = Branching(head=8, tail=2)
    for prob in (np.array([0.9, 0.05, 0.01]), np.array([1.0]), np.full(8, 0.125)):
        draws = allocate(tree, prob, 61)
        assert draws.sum() == 61 and draws.min() >= 2
    assert allocate(tree, np.array([0.5, 0.3, 0.01]), 60)[2] == 2


def test_pooled_scores_are_undefined_where_they_have_no_sense() -> None:
    nothing = pooled(np.zeros(9))
    assert all(np.isnan(v) for v in nothing.values())
    noise = pooled(np.array([0.1, -0.2, 0.5, 1.0, 0.3, 2.0, 3.0, 2.0, 4.0]))
    assert np.isnan(noise["alignment"]) and noise["gain"] == pytest.approx(0.05)
    assert noise["mean_cosine"] == pytest.approx(0.15)
    rounding = pooled(np.array([0.0, -1e-16, 1e-17, 1.0, 0.0, 0.0, 3.0, 0.0, 4.0]))  # all draws ended alike
    assert all(np.isnan(v) for v in rounding.values())


def test_exact_values_agree_with_brute_force() -> None:
    """The oracle itself: values by enumeration of all completions of a short chain."""
    chain = random_chain(1, length=3, states=3, vocabulary=3)

    def value(depth: int, state: int) -> float:
        if depth == chain.length:
            return float(chain.success[state])
        kind = chain.kinds[depth]
        p, follow = chain.step[kind, state], chain.follow[kind, state]
        return sum(float(p[v]) * value(depth + 1, int(follow[v])) for v in range(3))

    table = chain.values
    for depth in range(4):
        for state in range(3):
            assert table[depth, state] == pytest.approx(value(depth, state))
    assert isinstance(exact(chain, teacher_of(chain, 0, 1, 1), ForwardKL(), some_rollouts(chain)), Exact)


def some_rollouts(chain: Chain) -> Arrays:
    return oracle_rollouts(OracleModels(chain, oracle_config(chain, rollouts=2)))
