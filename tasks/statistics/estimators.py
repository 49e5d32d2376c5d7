"""Outcomes of draws, and unbiased estimates of sums over the vocabulary from them (statistics of section 6).

At a node, g_j = P_j (Q_j - V) / temperature. With V = sum P Q, W = sum P^2 Q, A = sum P^2 Q^2, S = |P|^2, all over
the whole vocabulary, |g|^2 = A - 2 V W + S V^2. Each of V, W, A is linear in Q or Q^2 and estimated without bias from
head and tail; from each product the covariance of the two estimates is subtracted. Without a tail this is |g_hat|^2
minus sum_j lev_j s_j^2 / n_j, lev_j = P_j^2 (1 - 2 P_j + |P|^2).

The tail is sampled; its unsampled part is assigned the mean success rate of the head, which adds no bias. A tail too
small to be drawn is treated so entirely: it contributes no gradient of its own, and the bias is at most its
probability.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from tasks.statistics.csr import Floats, Ints, offsets_of, owners, row_sums, rows_of

_ROUNDING = 1e-12


class Outcomes(NamedTuple):
    """Outcomes of the draws of N nodes with B branches; names as in `schemas.arrays.TREES`."""

    offsets: npt.NDArray[np.int64]
    prob: Floats
    tail: npt.NDArray[np.bool_]
    draws: Floats
    successes: Floats
    p_sq: Floats
    tail_prob: Floats

    @classmethod
    def of(cls, tree: Mapping[str, AnyArray]) -> "Outcomes":
        """From a tree's arrays."""
        floats = {
            name: np.asarray(tree[name], dtype=np.float64)
            for name in ("branch_prob", "draws", "successes", "p_sq", "tail_prob")
        }
        return cls(
            np.asarray(tree["branch_offsets"], dtype=np.int64),
            floats["branch_prob"],
            np.asarray(tree["branch_tail"], dtype=np.bool_),
            floats["draws"],
            floats["successes"],
            floats["p_sq"],
            floats["tail_prob"],
        )

    def at(self, nodes: Ints) -> "Outcomes":
        """The outcomes of the given nodes, in the given order."""
        branch = rows_of(self.offsets, nodes)
        return Outcomes(
            offsets_of(np.diff(self.offsets)[nodes]),
            self.prob[branch],
            self.tail[branch],
            self.draws[branch],
            self.successes[branch],
            self.p_sq[nodes],
            self.tail_prob[nodes],
        )

    @property
    def rate(self) -> Floats:
        """Q_hat of the branches, [B]."""
        return np.asarray(self.successes / self.draws, dtype=np.float64)

    @property
    def tail_size(self) -> Floats:
        """Tail tokens drawn at each node, [N]."""
        return row_sums(self.tail.astype(np.float64), self.offsets)

    @property
    def head_prob(self) -> Floats:
        """P of the branches in the head, 0 in the tail, [B]."""
        return np.where(self.tail, 0.0, self.prob)

    @property
    def tail_p_sq(self) -> Floats:
        """sum of P_j^2 over the tail, [N]."""
        return np.maximum(self.p_sq - row_sums(self.head_prob**2, self.offsets), 0.0)


class PooledRounds(NamedTuple):
    """All draws of each node together, from all rounds.

    `row` and `branch` map a tree's rows [N] and branches [B] to the merged ones, `first` maps back to a branch [b].
    """

    outcomes: Outcomes
    row: Ints
    branch: Ints
    first: Ints


def pool_rounds(tree: Mapping[str, AnyArray]) -> PooledRounds:
    """Draws of the same head token add up; sampled tail tokens stay separate.

    For posteriors only: they remain valid where the number of draws depends on outcomes. Unbiased estimates do not.
    """
    rows = Outcomes.of(tree)
    places, first_row, row = np.unique(tree["node"], return_index=True, return_inverse=True)
    owner = row[owners(rows.offsets)]
    token = np.where(rows.tail, np.iinfo(np.int32).max + np.arange(len(rows.tail)), tree["branch_token"])
    keys, first, branch = np.unique(np.stack([owner, token]), axis=1, return_index=True, return_inverse=True)
    branch = branch.reshape(-1)
    draws, successes = (np.bincount(branch, x, len(first)).astype(np.float64) for x in (rows.draws, rows.successes))
    outcomes = Outcomes(
        np.searchsorted(keys[0], np.arange(len(places) + 1)),
        rows.prob[first],
        rows.tail[first],
        draws,
        successes,
        rows.p_sq[first_row],
        rows.tail_prob[first_row],
    )
    return PooledRounds(outcomes, row, branch, first)


class Pair(NamedTuple):
    """Two values that every draw has, such as its outcome twice: their means over each branch's draws, [B].

    noise: covariance of the two means, without bias, [B]; without it their product would be biased.
    """

    x: Floats
    y: Floats
    noise: Floats

    @classmethod
    def outcome(cls, outcomes: Outcomes) -> "Pair":
        """The outcome twice, whose mean is Q_hat."""
        rate = outcomes.rate
        return cls(rate, rate, rate * (1 - rate) / (outcomes.draws - 1))


def weights(outcomes: Outcomes) -> Floats:
    """Weight of a branch in sum_j P_j (.): P_j in the head, P_tail / m for each of m tail tokens; [B]."""
    owner = owners(outcomes.offsets)
    share = outcomes.tail_prob / np.maximum(outcomes.tail_size, 1.0)
    return np.where(outcomes.tail, share[owner], outcomes.prob)


def adjust_for_tail(outcomes: Outcomes, c: Floats, rest: Floats) -> Floats:
    """c at the branches, adjusted so that the unsampled part of the tail counts with the head's mean success; [B].

    Over the tail, the sum of P_j c_j is known, but P_j Q_j c_j is only sampled. With b the head's mean success, the
    tail's part is estimated as b times the known sum, plus the sampled tokens' P_j (Q_j - b) c_j: unbiased, since b
    comes from other draws, and free of the sampling noise of the tokens where Q is the same for all of them.

    Args:
        c: at the branches, [B].
        rest: sum of P_j c_j over the tail of each node, [N]. Where the tail was not drawn, all of it is unsampled.
    """
    sampled = row_sums(np.where(outcomes.tail, weights(outcomes) * c, 0.0), outcomes.offsets)
    share = (rest - sampled) / row_sums(outcomes.head_prob, outcomes.offsets)
    return np.where(outcomes.tail, c, c + share[owners(outcomes.offsets)])


def estimate_linear(outcomes: Outcomes, c: Floats, mean: Floats | None = None) -> Floats:
    """L_c = sum_j P_j Q_j c_j without bias, [N], for c at the branches as adjusted by `adjust_for_tail`, [B].

    Args:
        mean: of another value of the draws than the outcome, in the place of Q, [B].
    """
    return row_sums(weights(outcomes) * (outcomes.rate if mean is None else mean) * c, outcomes.offsets)


def estimate_covariance(
    outcomes: Outcomes, a: Floats, b: Floats, rest_a: Floats, rest_b: Floats, pair: Pair | None = None
) -> Floats:
    """Covariance of the estimates of L_a of x and of L_b of y, without bias, [N].

    Args:
        a, b: at the branches, not adjusted, [B].
        rest_a, rest_b: as in `adjust_for_tail`, [N].
        pair: x and y; the outcome twice unless given.
    """
    offsets, owner = outcomes.offsets, owners(outcomes.offsets)
    pair = pair or Pair.outcome(outcomes)
    undrawn = outcomes.tail_size == 0
    head = row_sums(outcomes.head_prob, offsets)
    # given the head's draws, the expectation of the sampled tail does not depend on the head's mean: it drops out
    x, y = (v + np.where(undrawn, rest / head, 0.0)[owner] for v, rest in ((a, rest_a), (b, rest_b)))
    of_head = row_sums(outcomes.head_prob**2 * x * y * pair.noise, offsets)
    # the tail's tokens are a sample: variance of their mean, from the spread between tokens
    m = outcomes.tail_size
    x, y = (
        np.where(outcomes.tail, mean - (row_sums(outcomes.head_prob * mean, offsets) / head)[owner], 0.0) * c
        for mean, c in ((pair.x, a), (pair.y, b))
    )
    mean_x, mean_y = (row_sums(v, offsets) / np.maximum(m, 1.0) for v in (x, y))
    deviations = np.where(outcomes.tail, (x - mean_x[owner]) * (y - mean_y[owner]), 0.0)
    between = row_sums(deviations, offsets) / np.maximum(m - 1, 1.0)
    of_tail: Floats = np.where(m > 1, outcomes.tail_prob**2 * between / np.maximum(m, 1.0), 0.0)
    return of_head + of_tail


def estimate_value(outcomes: Outcomes, mean: Floats | None = None) -> Floats:
    """V without bias, [N]; `mean` as in `estimate_linear`."""
    c = adjust_for_tail(outcomes, np.ones_like(outcomes.prob), outcomes.tail_prob)
    return estimate_linear(outcomes, c, mean)


def estimate_squared_norm(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """|g|^2 at temperature 1: unbiased, and the plain estimate including noise; [N] each.

    The first is negative where noise outweighs signal; the difference is the noise that was removed.
    """
    unbiased, plain = estimate_product(outcomes, Pair.outcome(outcomes))
    return unbiased, np.maximum(plain, 0.0)


def estimate_product(outcomes: Outcomes, pair: Pair) -> tuple[Floats, Floats]:
    """sum_j P_j^2 (x_j - x_bar) (y_j - y_bar), x_bar = sum_j P_j x_j: unbiased, and plain; [N] each.

    It is <g, h> of g_j = P_j (x_j - x_bar) and h_j = P_j (y_j - y_bar); of the outcome twice it is |g|^2.
    """
    p, one = outcomes.prob, np.ones_like(outcomes.prob)
    mass, rest, S = outcomes.tail_prob, outcomes.tail_p_sq, outcomes.p_sq
    by_p = adjust_for_tail(outcomes, p, rest)
    V_x, V_y = (estimate_value(outcomes, mean) for mean in (pair.x, pair.y))
    W_x, W_y = (estimate_linear(outcomes, by_p, mean) for mean in (pair.x, pair.y))
    undrawn = np.where(outcomes.tail_size > 0, 0.0, rest)
    share = weights(outcomes) * p
    plain = row_sums(share * pair.x * pair.y, outcomes.offsets) + undrawn * V_x * V_y - V_x * W_y - V_y * W_x
    plain = plain + S * V_x * V_y
    noise_V = estimate_covariance(outcomes, one, one, mass, mass, pair)
    noise = row_sums(share * pair.noise, outcomes.offsets) + (undrawn + S) * noise_V
    noise -= estimate_covariance(outcomes, one, p, mass, rest, pair)
    noise -= estimate_covariance(outcomes, p, one, rest, mass, pair)
    return plain - noise, plain


def reliability(unbiased: Floats, plain: Floats) -> Floats:
    """Share of the plain |g|^2 that is signal, [...]; NaN where no variation was observed, up to rounding.

    Args:
        unbiased, plain: the unbiased and the plain |g|^2, or sums of them, [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(plain > _ROUNDING, unbiased / plain, np.nan)
