"""Losses that need draws: their gradients against autograd through the loss of whole sequences, on the oracle."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.arrays import Arrays
from schemas.config import DrGRPO, MiniLLM, Settings
from schemas.signals import REWARDED, Signal
from tasks.calibration.chain import Chain
from tasks.stages.aggregate.questions import QuestionScores
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
    for seed in range(150):
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
