"""Stage 3: outcomes of draws -> ideal gradients, without bias and with their variance (statistics of sections 2, 6).

At a node, g_j = P_j (Q_j - V) / temperature. With V = sum P Q, W = sum P^2 Q, A = sum P^2 Q^2, S = |P|^2, all over
the whole vocabulary, |g|^2 = A - 2 V W + S V^2. Each of V, W, A is linear in Q or Q^2 and estimated without bias from
head and tail; the products lose the covariance of their factors' estimates. Without a tail this is |g_hat|^2 less
sum_j lev_j s_j^2 / n_j, lev_j = P_j^2 (1 - 2 P_j + |P|^2).

A tail too small to be drawn counts as successful as the head is on average: it then pulls no gradient of its own, and
the bias is at most its probability.
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

    @property
    def head_prob(self) -> Floats:
        """P of the branches in the head, 0 in the tail, [B]."""
        return np.where(self.tail, 0.0, self.prob)

    @property
    def undrawn(self) -> Floats:
        """Probability of a tail that was not drawn, [N]."""
        return np.where(self.tail_size > 0, 0.0, self.tail_prob)

    @property
    def undrawn_p_sq(self) -> Floats:
        """sum of P_j^2 over a tail that was not drawn, [N]."""
        rest = np.maximum(self.p_sq - row_sums(self.head_prob**2, self.offsets), 0.0)
        return np.where(self.undrawn > 0, rest, 0.0)


def weights(outcomes: Outcomes) -> Floats:
    """What a branch counts in sum_j P_j (.): P_j in the head, P_tail / m for each of m tail tokens; [B]."""
    owner = owners(outcomes.offsets)
    share = outcomes.tail_prob / np.maximum(outcomes.tail_size, 1.0)
    return np.where(outcomes.tail, share[owner], outcomes.prob)


def completed(outcomes: Outcomes, c: Floats, rest: Floats) -> Floats:
    """c at the branches such that an undrawn tail counts with the head's mean success; [B].

    Args:
        c: at the branches, [B].
        rest: sum of P_j c_j over the tail of each node where it is undrawn, [N].
    """
    share = np.where(outcomes.undrawn > 0, rest, 0.0) / row_sums(outcomes.head_prob, outcomes.offsets)
    return c + share[owners(outcomes.offsets)]


def linear(outcomes: Outcomes, c: Floats) -> Floats:
    """L_c = sum_j P_j Q_j c_j without bias, [N], for c known at the branches (and completed), [B]."""
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


def value(outcomes: Outcomes) -> Floats:
    """V without bias, [N]."""
    return linear(outcomes, completed(outcomes, np.ones_like(outcomes.prob), outcomes.undrawn))


def squared_norm(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """|g|^2 at temperature 1: without bias, and as drawn with its noise; [N] each.

    The first is negative where noise outweighs signal; the difference is the noise that was taken out.
    """
    p, rest = outcomes.prob, outcomes.undrawn_p_sq
    one = completed(outcomes, np.ones_like(p), outcomes.undrawn)
    by_p = completed(outcomes, p, rest)
    V, W = linear(outcomes, one), linear(outcomes, by_p)
    n, s = outcomes.draws, outcomes.successes
    rate_sq = s * (s - 1) / (n * (n - 1))  # Q^2 without bias, from pairs of draws
    noise_V = covariance(outcomes, one, one)
    S, share = outcomes.p_sq, weights(outcomes) * p
    unbiased = (
        row_sums(share * rate_sq, outcomes.offsets)
        + rest * (V * V - noise_V)
        - 2 * (V * W - covariance(outcomes, one, by_p))
        + S * (V * V - noise_V)
    )
    plain = row_sums(share * outcomes.rate**2, outcomes.offsets) + rest * V * V - 2 * V * W + S * V * V
    return unbiased, np.maximum(plain, 0.0)


def ideal_gradients(outcomes: Outcomes, temperature: float) -> dict[str, AnyArray]:
    """The arrays of stage 3."""
    V = value(outcomes)
    unbiased, plain = (norm / temperature**2 for norm in squared_norm(outcomes))
    with np.errstate(divide="ignore", invalid="ignore"):
        reliability = np.where(plain > 1e-12, unbiased / plain, np.nan)
    return {
        "value": V,
        "g_sq": unbiased,
        "g_sq_plain": plain,
        "reliability": reliability,
        "gradient": outcomes.prob * (outcomes.rate - V[owners(outcomes.offsets)]) / temperature,
    }
