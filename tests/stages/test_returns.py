"""Losses that need draws: their gradients against autograd through the loss of whole sequences, on the oracle."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.arrays import Arrays
from schemas.config import GRPO, DrGRPO, MiniLLM, Scores, Settings
from schemas.signals import REWARDED, Signal
from tasks.calibration.chain import Chain
from tasks.stages.aggregate.pooling import make_pool
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.tables import summary_table
from tasks.stages.distillation.returns import reward_gradients
from tasks.stages.models import ModelProvider
from tests.helpers.drawing import NoCheckpoints
from tests.helpers.oracle import (
    QUESTION,
    Floats,
    Given,
    OracleModels,
    oracle_config,
    oracle_rollouts,
    oracle_tree,
    random_chain,
    scored_tree,
    scored_trees,
    teacher_of,
)

TAUGHT = Signal("teacher", "none", "minillm")
REWARD = Signal(*REWARDED, "dr_grpo")


def sequence_direction(chain: Chain, teacher: Chain) -> Floats:
    """-dL/dz by autograd, L the KL of whole sequences, divided by the probability of the state; [L + 1, S, V]."""
    rows = torch.from_numpy(np.where(chain.rows > 0, chain.rows, 1e-30)[chain.kind_at])
    z = rows.log().requires_grad_(True)
    log_p = torch.log_softmax(z, -1)
    log_t = torch.from_numpy(np.where(teacher.rows > 0, teacher.rows, 1e-30)[teacher.kind_at]).log()
    follow = torch.from_numpy(np.array(chain.follow))
    values = (log_p[-1].exp() * (log_p[-1] - log_t[-1])).sum(-1)  # KL of what is still to come, by state
    for t in range(chain.length - 1, -1, -1):
        ratio = (log_p[t] - log_t[t])[:, :-2] + values[follow[chain.kinds[t]]]
        values = (log_p[t, :, :-2].exp() * ratio).sum(-1)
    (gradient,) = torch.autograd.grad(values[chain.start], z)
    occupancy = chain.occupancy[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(occupancy > 0, -gradient.numpy() / occupancy, 0.0))


def exact_sums(chain: Chain, d: Floats, rollouts: Arrays) -> tuple[float, float, float]:
    """Sums of <g, d>, |d|^2 and |g|^2 over the positions of the rollouts."""
    completions = np.split(rollouts["tokens"], rollouts["offsets"][1:-1])
    at = [(t, s) for tokens in completions for t, s in enumerate(chain.states(tokens.tolist()))]
    g = np.stack([chain.gradients[place] for place in at])
    of_d = np.stack([d[place] for place in at])
    return float((g * of_d).sum()), float((of_d**2).sum()), float((g**2).sum())


def scored(models: OracleModels, teacher: Chain, rollouts: Arrays, loss: Settings) -> QuestionScores:
    """A tree and its scores by MiniLLM and by the reward."""
    tree = oracle_tree(models, rollouts)
    taught = OracleModels(models.student.chain, models.config, {"teacher": teacher})
    provider = ModelProvider(taught, models.config, NoCheckpoints())
    made = dict(provider.distillation(QUESTION, {TAUGHT.source: {TAUGHT.loss: loss}}, rollouts, tree, {}))
    made[REWARD] = reward_gradients(DrGRPO(), rollouts, tree)
    losses = [MiniLLM(name=TAUGHT.loss), DrGRPO()]
    return scored_tree(Given(rollouts, tree, made), seed=models.config.seed, losses=losses, tail_limit=0.0)


def models_of(chain: Chain, seed: int, **tree: Any) -> OracleModels:
    return OracleModels(chain, oracle_config(chain, seed=seed, tail_limit=0.0, **tree))


@pytest.mark.parametrize(("head", "tail", "draws"), [(2, 4, 32), (12, 2, 48)], ids=["tail", "no tail"])
def test_sums_of_sequence_level_kl_and_of_the_reward_are_unbiased(head: int, tail: int, draws: int) -> None:
    """Over many trees of the same rollouts: means within three standard errors of the exact sums."""
    chain = random_chain(3, length=8)
    teacher = teacher_of(chain, 4, strength=2.0, noise=0.7)
    rollouts = oracle_rollouts(models_of(chain, 0, rollouts=6))
    inner, d_sq, g_sq = exact_sums(chain, sequence_direction(chain, teacher), rollouts)
    found = []
    for seed in range(60):
        q = scored(
            models_of(chain, 1000 + seed, nodes=20, head=head, tail=tail, draws=draws), teacher, rollouts, MiniLLM()
        )
        taught, reward = q.alignment[TAUGHT], q.alignment[REWARD]
        found.append([(q.weight * x).sum() for x in (taught["inner"], taught["d_sq"], reward["inner"], reward["d_sq"])])
        assert reward["inner"] == pytest.approx(q.ideal["g_sq"], abs=1e-12)  # d is g
        assert reward["d_sq"] == pytest.approx(q.ideal["g_sq"], abs=1e-12)
    estimates = np.array(found)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - [inner, d_sq, g_sq, g_sq]) <= 3 * error).all()
    plain = abs(estimates.mean(axis=0)[1] / d_sq - 1)
    assert plain < 0.2  # and the error is small against the sums


def test_pooled_scores_of_the_reward_are_the_largest() -> None:
    chain = random_chain(7, length=6)
    models = models_of(chain, 0, nodes=100, head=12, tail=2, draws=640, rollouts=8)
    teacher = teacher_of(chain, 8, strength=2.0, noise=1.0)
    rollouts = oracle_rollouts(models)
    q = scored(models, teacher, rollouts, MiniLLM())
    inner, d_sq, g_sq = exact_sums(chain, sequence_direction(chain, teacher), rollouts)
    rows = summary_table(make_pool([q], [TAUGHT, REWARD], Scores(groupings=[]), 0)).rows_by_key("loss", named=True)
    (taught,), (reward,) = rows["minillm"], rows["dr_grpo"]
    assert taught["alignment"] == pytest.approx(inner / np.sqrt(d_sq * g_sq), abs=0.05)
    assert taught["gain"] == pytest.approx(inner / np.sqrt(8 * d_sq), rel=0.1)
    assert reward["alignment"] == pytest.approx(1) and reward["mean_cosine"] == pytest.approx(1)
    assert reward["gain"] == pytest.approx(np.sqrt(g_sq / 8), rel=0.1) and reward["gain"] > taught["gain"]


@pytest.mark.slow
def test_signs_of_single_tokens_are_right_as_often_as_they_say() -> None:
    """Over the nodes of many questions: of the resolved ones at most 5 % have the wrong sign."""
    given, truth = {}, {}
    for seed in range(16):
        chain = random_chain(100 + seed, length=24)
        teacher = teacher_of(chain, 200 + seed, strength=2.0, noise=1.0)
        models = models_of(chain, seed, nodes=48, head=8, tail=4, draws=128, rollouts=8)
        rollouts, name = oracle_rollouts(models), f"q{seed}"
        tree = oracle_tree(models, rollouts)
        taught = OracleModels(chain, models.config, {"teacher": teacher})
        provider = ModelProvider(taught, models.config, NoCheckpoints())
        made = provider.distillation(name, {TAUGHT.source: {TAUGHT.loss: MiniLLM()}}, rollouts, tree, {})
        given[name] = Given(rollouts, tree, made)
        d = sequence_direction(chain, teacher)
        completions = np.split(rollouts["tokens"], rollouts["offsets"][1:-1])
        at = [(t, s) for tokens in completions for t, s in enumerate(chain.states(tokens.tolist()))]
        truth[name] = np.array([(chain.gradients[place] * d[place]).sum() for place in at])[tree["node"]]
    scored_questions, _ = scored_trees(given, losses=[MiniLLM()], tail_limit=0.0)
    right = []
    for q in scored_questions:
        a = q.alignment[TAUGHT]
        resolved = a["lfsr"] < 0.05
        signs = np.where(a["p_positive"] > 0.5, 1, -1)
        right += (signs * truth[q.question_id] > 0)[resolved].tolist()
    assert len(right) >= 20 and np.mean(right) >= 0.95


def test_a_return_is_the_sum_of_the_log_ratios_of_the_tokens_that_follow_or_their_mean() -> None:
    chain = random_chain(11, length=5)
    teacher = teacher_of(chain, 12, strength=1.0, noise=1.0)
    models = models_of(chain, 0, nodes=6, head=3, tail=2, draws=16, rollouts=3)
    rollouts = oracle_rollouts(models)
    tree = oracle_tree(models, rollouts)
    of_draws: dict[bool, Floats] = {True: np.zeros(len(tree["draw_success"])), False: np.zeros(0)}
    of_draws[False] = of_draws[True].copy()
    owner = np.repeat(np.arange(len(tree["draws"])), tree["draws"])
    row = np.repeat(np.arange(len(tree["node"])), np.diff(tree["branch_offsets"]))
    for i, branch in enumerate(owner.tolist()):
        position = int(tree["node"][row[branch]])
        r = int(np.searchsorted(rollouts["offsets"], position, side="right")) - 1
        before = rollouts["tokens"][rollouts["offsets"][r] : position].tolist()
        drawn = tree["draw_tokens"][tree["draw_offsets"][i] : tree["draw_offsets"][i + 1]].tolist()
        whole = [*before, int(tree["branch_token"][branch]), *drawn]
        assert bool(tree["draw_success"][i]) == (whole[-1] == chain.passes)
        states = chain.states(whole)
        ratios = [
            float(np.log(chain.rows[chain.kind_at[t], states[t], whole[t]]))
            - float(np.log(teacher.rows[teacher.kind_at[t], states[t], whole[t]]))
            for t in range(len(before) + 1, len(whole))
        ]
        of_draws[False][i], of_draws[True][i] = sum(ratios), np.mean(ratios) if ratios else 0.0
    taught = OracleModels(chain, models.config, {"teacher": teacher})
    provider = ModelProvider(taught, models.config, NoCheckpoints())
    for normalised, expected in of_draws.items():
        losses: dict[str, Settings] = {"m": MiniLLM(length_normalised=normalised)}
        (arrays,) = provider.distillation(QUESTION, {TAUGHT.source: losses}, rollouts, tree, {}).values()
        won = tree["draw_success"]
        for name, values in (
            ("return_sum", expected),
            ("return_sq", expected**2),
            ("return_sum_won", expected * won),
            ("return_sq_won", expected**2 * won),
        ):
            assert arrays[name] == pytest.approx(np.bincount(owner, values, len(tree["draws"])), abs=1e-9)


def test_grpo_divides_by_the_standard_deviation_of_a_questions_outcomes() -> None:
    chain = random_chain(3, length=4)
    models = models_of(chain, 0, nodes=4, head=3, tail=2, draws=16, rollouts=4)
    rollouts = {**oracle_rollouts(models), "correct": np.array([True, False, False, False])}
    tree = oracle_tree(models, rollouts)
    grpo, reward = (reward_gradients(loss, rollouts, tree) for loss in (GRPO(), DrGRPO()))
    assert grpo["return_sum"] == pytest.approx(reward["return_sum"] / np.sqrt(3 / 16))
    assert grpo["return_sq"] == pytest.approx(reward["return_sq"] / (3 / 16))
    alike = reward_gradients(GRPO(), {**rollouts, "correct": np.ones(4, dtype=bool)}, tree)
    assert not alike["return_sum"].any() and not alike["return_sq"].any()
