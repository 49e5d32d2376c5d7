"""Stage 3: outcomes of draws -> ideal gradients, without bias and with their variance (statistics of sections 2, 6).

At a node, g_j = P_j (Q_j - V) / temperature. With V = sum P Q, W = sum P^2 Q, A = sum P^2 Q^2, S = |P|^2, all over
the whole vocabulary, |g|^2 = A - 2 V W + S V^2. Each of V, W, A is linear in Q or Q^2 and estimated without bias from
head and tail; the products lose the covariance of their factors' estimates. Without a tail this is |g_hat|^2 less
sum_j lev_j s_j^2 / n_j, lev_j = P_j^2 (1 - 2 P_j + |P|^2).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from tasks.ragged import Floats, owners, row_sums


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

    @property
    def rate(self) -> Floats:
        """Q_hat of the branches, [B]."""
        return np.asarray(self.successes / self.draws, dtype=np.float64)

    @property
    def tail_size(self) -> Floats:
        """Tail tokens drawn at each node, [N]."""
        return row_sums(self.tail.astype(np.float64), self.offsets)


def weights(outcomes: Outcomes) -> Floats:
    """What a branch counts in sum_j P_j (.): P_j in the head, P_tail / m for each of m tail tokens; [B]."""
    owner = owners(outcomes.offsets)
    share = outcomes.tail_prob / np.maximum(outcomes.tail_size, 1.0)
    return np.where(outcomes.tail, share[owner], outcomes.prob)


def linear(outcomes: Outcomes, c: Floats) -> Floats:
    """L_c = sum_j P_j Q_j c_j without bias, [N], for c known at the branches, [B]."""
    return row_sums(weights(outcomes) * outcomes.rate * c, outcomes.offsets)


def covariance(outcomes: Outcomes, a: Floats, b: Floats) -> Floats:
    """Covariance of the estimates of L_a and L_b, without bias, [N]; a and b at the branches, [B]."""
    offsets, owner = outcomes.offsets, owners(outcomes.offsets)
    w, rate, n = weights(outcomes), outcomes.rate, outcomes.draws
    binomial = rate * (1 - rate) / (n - 1)  # s^2 / n
    head = row_sums(np.where(outcomes.tail, 0.0, w * w * a * b * binomial), offsets)
    # the tail's tokens are a sample: the variance of their mean, between tokens
    m = outcomes.tail_size
    x, y = np.where(outcomes.tail, rate * a, 0.0), np.where(outcomes.tail, rate * b, 0.0)
    mean_x, mean_y = (row_sums(v, offsets) / np.maximum(m, 1.0) for v in (x, y))
    deviations = np.where(outcomes.tail, (x - mean_x[owner]) * (y - mean_y[owner]), 0.0)
    between = row_sums(deviations, offsets) / np.maximum(m - 1, 1.0)
    tail: Floats = np.where(m > 1, outcomes.tail_prob**2 * between / np.maximum(m, 1.0), 0.0)
    return head + tail


def squared_norm(outcomes: Outcomes) -> Floats:
    """|g|^2 at temperature 1 without bias, [N]; negative where noise outweighs signal."""
    one, p = np.ones_like(outcomes.prob), outcomes.prob
    V, W = linear(outcomes, one), linear(outcomes, p)
    n, s = outcomes.draws, outcomes.successes
    rate_sq = s * (s - 1) / (n * (n - 1))  # Q^2 without bias, from pairs of draws
    A = row_sums(weights(outcomes) * p * rate_sq, outcomes.offsets)
    return A - 2 * (V * W - covariance(outcomes, one, p)) + outcomes.p_sq * (V * V - covariance(outcomes, one, one))


def ideal_gradients(outcomes: Outcomes, temperature: float) -> dict[str, AnyArray]:
    """The arrays of stage 3."""
    owner = owners(outcomes.offsets)
    V = linear(outcomes, np.ones_like(outcomes.prob))
    gradient = outcomes.prob * (outcomes.rate - V[owner]) / temperature
    plain = row_sums(np.where(outcomes.tail, 0.0, gradient**2), outcomes.offsets)
    g_sq = squared_norm(outcomes) / temperature**2
    with np.errstate(divide="ignore", invalid="ignore"):
        reliability = np.where(plain > 0, g_sq / plain, np.nan)
    return {"value": V, "g_sq": g_sq, "g_sq_plain": plain, "reliability": reliability, "gradient": gradient}
