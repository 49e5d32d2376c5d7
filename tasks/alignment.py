"""Stage 5: scores of nodes: inner products without bias, cosines and signs by posterior simulation."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import Scores
from tasks.ideal import Outcomes, completed, linear
from tasks.ragged import Floats, owners, row_sums


class Posterior(NamedTuple):
    """Simulated success probabilities of one question's branches; one set serves every teacher and loss.

    weight: what a branch counts in sum_j P_j (.), [S, B]; Q: [S, B]; Q_rest: of a tail that was not drawn, [S, N];
    g_norm: |g|, [S, N].
    """

    weight: Floats
    Q: Floats
    Q_rest: Floats
    g_norm: Floats


def simulate(outcomes: Outcomes, temperature: float, samples: int, seed: int) -> Posterior:
    """Posterior simulation of Q at every node.

    Each branch is Beta(s + m, n - s + 1 - m), m the node's own success rate: a prior worth one draw. Which tail
    tokens were sampled is uncertain too: the tail's weights are simulated by the Bayesian bootstrap (Rubin 1981). Of
    a tail that was not drawn nothing but the prior is known.

    Args:
        samples: S.
        seed: of the simulation; 64 bits.
    """
    rng = np.random.default_rng(seed)
    offsets, owner, p = outcomes.offsets, owners(outcomes.offsets), outcomes.prob
    s, n = outcomes.successes, outcomes.draws
    mean = (row_sums(s, offsets) + 0.5) / (row_sums(n, offsets) + 1)
    prior = mean[owner]
    Q = rng.beta(s + prior, n - s + 1 - prior, size=(samples, len(p)))
    weight = np.broadcast_to(p, Q.shape).copy()
    tail = np.flatnonzero(outcomes.tail)
    if len(tail):
        mass = np.zeros_like(Q)
        mass[:, tail] = rng.exponential(size=(samples, len(tail)))
        total = row_sums(mass, offsets)[:, owner[tail]]
        weight[:, tail] = outcomes.tail_prob[owner[tail]] * mass[:, tail] / total
    Q_rest = rng.beta(mean, 1 - mean, size=(samples, len(mean)))
    rest = outcomes.undrawn_p_sq
    V = row_sums(weight * Q, offsets) + outcomes.undrawn * Q_rest
    A = row_sums(weight * p * Q**2, offsets) + rest * Q_rest**2
    W = row_sums(weight * p * Q, offsets) + rest * Q_rest
    g_sq = np.maximum(A - 2 * V * W + outcomes.p_sq * V**2, 0.0)
    return Posterior(weight, Q, Q_rest, np.sqrt(g_sq) / temperature)


def node_scores(
    outcomes: Outcomes,
    ideal: Mapping[str, AnyArray],
    distillation: Mapping[str, AnyArray],
    d_sq: Floats,
    posterior: Posterior,
    temperature: float,
    level: float,
    tail_limit: float,
) -> dict[str, AnyArray]:
    """The arrays of stage 5 for one signal.

    Args:
        distillation: `d`, `d_head` and `teacher_prob` at the branches, `d_bar` at the nodes.
        d_sq: |d|^2 at the nodes, [N].
        level: coverage of the intervals.
        tail_limit: the most that a teacher may put on a tail that was not drawn, for its advantage to be told.

    Returns:
        `p_positive` is NaN where |d| = 0 or a node has a single branch; a cosine and its interval there too, and
        where |g|^2 is not above 0.
    """
    offsets, owner = outcomes.offsets, owners(outcomes.offsets)
    d = np.asarray(distillation["d"])
    c = (d - np.asarray(distillation["d_bar"])[owner]) / temperature
    # over the whole vocabulary sum_j P_j c_j = 0, so an undrawn tail holds minus the head's
    c_rest = -row_sums(outcomes.head_prob * c, offsets)
    inner = linear(outcomes, completed(outcomes, c, c_rest))

    T = np.asarray(distillation["teacher_prob"])
    T_rest = np.maximum(1 - row_sums(np.where(outcomes.tail, 0.0, T), offsets), 0.0)
    advantage = linear(outcomes, completed(outcomes, T / outcomes.prob - 1, T_rest - outcomes.undrawn))
    told = (outcomes.undrawn == 0) | (T_rest <= tail_limit)

    simulated = row_sums(posterior.weight * posterior.Q * c, offsets)
    simulated = simulated + np.where(outcomes.undrawn > 0, c_rest, 0.0) * posterior.Q_rest
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.clip(simulated / (posterior.g_norm * np.sqrt(d_sq)), -1.0, 1.0)
    teaches = (d_sq > 0) & (np.diff(offsets) >= 2)  # a single branch has nothing to be compared with
    defined = teaches & (np.asarray(ideal["g_sq"]) > 0) & np.isfinite(cosines).all(axis=0)
    low, high = np.quantile(cosines, [(1 - level) / 2, (1 + level) / 2], axis=0)

    def where(mask: AnyArray, value: Floats) -> Floats:
        return np.where(mask, value, np.nan)

    return {
        "inner": inner,
        "cosine": where(defined, cosines.mean(axis=0)),
        "cosine_low": where(defined, low),
        "cosine_high": where(defined, high),
        "cosine_plain": plain_cosine(outcomes, np.asarray(distillation["d_head"])),
        "p_positive": where(teaches, (simulated > 0).mean(axis=0) + 0.5 * (simulated == 0).mean(axis=0)),
        "teacher_advantage": where(told, advantage),
    }


def plain_cosine(outcomes: Outcomes, d_head: Floats) -> Floats:
    """The uncorrected cosine of g_hat and d over the head's branches, P and T renormalised there, as the paper's is.

    NaN with fewer than two head branches, where their success rates agree within 1e-4, and where d is 0.
    """
    offsets, owner, head = outcomes.offsets, owners(outcomes.offsets), ~outcomes.tail
    p = np.where(head, outcomes.prob, 0.0)
    total = row_sums(p, offsets)
    p = p / total[owner]
    V = row_sums(p * outcomes.rate, offsets)
    g = p * (outcomes.rate - V[owner])
    g_sq, d_sq = row_sums(g * g, offsets), row_sums(d_head * d_head, offsets)
    rates = np.where(head, outcomes.rate, np.nan)
    starts = offsets[:-1]
    spread = np.fmax.reduceat(rates, starts) - np.fmin.reduceat(rates, starts) if len(starts) else np.empty(0)
    usable = (row_sums(head.astype(np.float64), offsets) >= 2) & (spread > 1e-4) & (g_sq > 0) & (d_sq > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(row_sums(g * d_head, offsets) / np.sqrt(g_sq * d_sq), -1.0, 1.0)
    return np.where(usable, cosine, np.nan)


def make_alignment(
    outcomes: Outcomes,
    nodes: AnyArray,
    ideal: Mapping[str, AnyArray],
    distillations: Mapping[str, Mapping[str, AnyArray]],
    scores: Scores,
    temperature: float,
    tail_limit: float,
    seed: int,
) -> dict[str, dict[str, AnyArray]]:
    """Stage 5 of one question for several signals, by their keys; `nodes` are indices into T."""
    posterior = simulate(outcomes, temperature, scores.posterior, seed)
    return {
        key: node_scores(
            outcomes, ideal, d, np.asarray(d["d_sq"])[nodes], posterior, temperature, scores.level, tail_limit
        )
        for key, d in distillations.items()
    }
