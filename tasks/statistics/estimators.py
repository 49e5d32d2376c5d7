"""What draws showed, and sums over the vocabulary estimated from it without bias (statistics of section 6).

At a node, g_j = P_j (Q_j - V) / temperature. With V = sum P Q, W = sum P^2 Q, A = sum P^2 Q^2, S = |P|^2, all over
the whole vocabulary, |g|^2 = A - 2 V W + S V^2. Each of V, W, A is linear in Q or Q^2 and estimated without bias from
head and tail; the products lose the covariance of their factors' estimates. Without a tail this is |g_hat|^2 less
sum_j lev_j s_j^2 / n_j, lev_j = P_j^2 (1 - 2 P_j + |P|^2).

Of the tail a sample is drawn; what it misses counts as successful as the head is on average, which adds no bias. A tail
too small to be drawn counts so as a whole: it pulls no gradient of its own, and the bias is at most its probability.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from tasks.statistics.csr import Floats, Ints, owners, row_sums

_ROUNDING = 1e-12


class Outcomes(NamedTuple):
    """What the draws of N nodes with B branches showed; names as in `schemas.arrays.TREES`."""

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
        """Those of some nodes, in their order."""
        sizes = np.diff(self.offsets)[nodes]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        branch = np.repeat(self.offsets[nodes] - offsets[:-1], sizes) + np.arange(int(offsets[-1]))
        return Outcomes(
            offsets,
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
    """All draws of each node together, whatever round they came from.

    `row` and `branch` lead from a tree's rows [N] and branches [B] to the merged ones, `first` back to a branch [b].
    """

    outcomes: Outcomes
    row: Ints
    branch: Ints
    first: Ints


def pool_rounds(tree: Mapping[str, AnyArray]) -> PooledRounds:
    """Draws of the same head token add up; sampled tail tokens stand side by side.

    What a posterior is read from: it may, as the number of draws may follow from outcomes. Unbiased estimates may not.
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


def weights(outcomes: Outcomes) -> Floats:
    """What a branch counts in sum_j P_j (.): P_j in the head, P_tail / m for each of m tail tokens; [B]."""
    owner = owners(outcomes.offsets)
    share = outcomes.tail_prob / np.maximum(outcomes.tail_size, 1.0)
    return np.where(outcomes.tail, share[owner], outcomes.prob)


def adjust_for_tail(outcomes: Outcomes, c: Floats, rest: Floats) -> Floats:
    """c at the branches such that what the drawn tail tokens miss of the tail counts with the head's mean success; [B].

    The sum of P_j c_j over the tail is known, of P_j Q_j c_j there only a sample is. With b the head's mean success,
    the tail's part is estimated as b times the known sum, plus the sampled tokens' P_j (Q_j - b) c_j: unbiased, since b
    comes from other draws, and free of the noise of which tokens were sampled where Q is the same at all.

    Args:
        c: at the branches, [B].
        rest: sum of P_j c_j over the tail of each node, [N]. Where the tail was not drawn all of it is missed.
    """
    sampled = row_sums(np.where(outcomes.tail, weights(outcomes) * c, 0.0), outcomes.offsets)
    share = (rest - sampled) / row_sums(outcomes.head_prob, outcomes.offsets)
    return np.where(outcomes.tail, c, c + share[owners(outcomes.offsets)])


def estimate_linear(outcomes: Outcomes, c: Floats) -> Floats:
    """L_c = sum_j P_j Q_j c_j without bias, [N], for c known at the branches and completed, [B]."""
    return row_sums(weights(outcomes) * outcomes.rate * c, outcomes.offsets)


def estimate_covariance(outcomes: Outcomes, a: Floats, b: Floats, rest_a: Floats, rest_b: Floats) -> Floats:
    """Covariance of the estimates of L_a and L_b, without bias, [N].

    Args:
        a, b: at the branches, not completed, [B].
        rest_a, rest_b: as in `adjust_for_tail`, [N].
    """
    offsets, owner = outcomes.offsets, owners(outcomes.offsets)
    rate, n = outcomes.rate, outcomes.draws
    binomial = rate * (1 - rate) / (n - 1)  # s^2 / n
    undrawn = outcomes.tail_size == 0
    head = row_sums(outcomes.head_prob, offsets)
    # given the head's draws the sampled tail has the same expectation whatever its mean success b: b drops out
    x, y = (v + np.where(undrawn, rest / head, 0.0)[owner] for v, rest in ((a, rest_a), (b, rest_b)))
    of_head = row_sums(outcomes.head_prob**2 * x * y * binomial, offsets)
    # the tail's tokens are a sample: the variance of their mean, between tokens
    m = outcomes.tail_size
    centred = np.where(outcomes.tail, rate - (row_sums(outcomes.head_prob * rate, offsets) / head)[owner], 0.0)
    x, y = centred * a, centred * b
    mean_x, mean_y = (row_sums(v, offsets) / np.maximum(m, 1.0) for v in (x, y))
    deviations = np.where(outcomes.tail, (x - mean_x[owner]) * (y - mean_y[owner]), 0.0)
    between = row_sums(deviations, offsets) / np.maximum(m - 1, 1.0)
    of_tail: Floats = np.where(m > 1, outcomes.tail_prob**2 * between / np.maximum(m, 1.0), 0.0)
    return of_head + of_tail


def estimate_value(outcomes: Outcomes) -> Floats:
    """V without bias, [N]."""
    return estimate_linear(outcomes, adjust_for_tail(outcomes, np.ones_like(outcomes.prob), outcomes.tail_prob))


def estimate_squared_norm(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """|g|^2 at temperature 1: without bias, and as drawn with its noise; [N] each.

    The first is negative where noise outweighs signal; the difference is the noise that was taken out.
    """
    p, one = outcomes.prob, np.ones_like(outcomes.prob)
    mass, rest = outcomes.tail_prob, outcomes.tail_p_sq
    V, W = estimate_value(outcomes), estimate_linear(outcomes, adjust_for_tail(outcomes, p, rest))
    n, s = outcomes.draws, outcomes.successes
    rate_sq = s * (s - 1) / (n * (n - 1))  # Q^2 without bias, from pairs of draws
    noise_V = estimate_covariance(outcomes, one, one, mass, mass)
    undrawn = np.where(outcomes.tail_size > 0, 0.0, rest)
    S, share = outcomes.p_sq, weights(outcomes) * p
    unbiased = (
        row_sums(share * rate_sq, outcomes.offsets)
        + undrawn * (V * V - noise_V)
        - 2 * (V * W - estimate_covariance(outcomes, one, p, mass, rest))
        + S * (V * V - noise_V)
    )
    plain = row_sums(share * outcomes.rate**2, outcomes.offsets) + undrawn * V * V - 2 * V * W + S * V * V
    return unbiased, np.maximum(plain, 0.0)


def reliability(unbiased: Floats, plain: Floats) -> Floats:
    """Share of |g|^2 as drawn that is signal, [...]; NaN where nothing was seen to vary, rounding aside.

    Args:
        unbiased, plain: |g|^2 without bias, and as drawn; or sums of them, [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(plain > _ROUNDING, unbiased / plain, np.nan)
