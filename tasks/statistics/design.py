"""Node sampling: known inclusion probabilities from the student's leverage, and systematic samples."""

import numpy as np
import numpy.typing as npt
import torch

from tasks.statistics.csr import Floats


def leverage(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Total leverage and |P|^2 of next-token distributions.

    With success probabilities Q_j of variance s^2, E|g|^2 = s^2 sum_j lev_j, lev_j = P_j^2 (1 - 2 P_j + |P|^2): the
    squared Frobenius norm of the softmax Jacobian. Its root bounds |g| up to a factor, without any draws.

    Args:
        p: probabilities [n, V].

    Returns:
        sum_j lev_j [n] and |P|^2 [n], float64.
    """
    p_sq = p.square().sum(-1, dtype=torch.float64)
    one_minus = (1 - p).double()
    # P^2 (1 - 2P + |P|^2) = P^2 ((1 - P)^2 + |P|^2 - P^2), which does not cancel at P near 1
    own = (p.double() * one_minus).square().sum(-1)
    cross = (p_sq.square() - p.double().pow(4).sum(-1)).clamp(min=0)
    return own + cross, p_sq


def inclusion_probabilities(sizes: Floats, n: int) -> Floats:
    """Probabilities proportional to size, at most 1, that sum to n (or to the number of positive sizes if less).

    Args:
        sizes: non-negative, [T].
        n: target number of nodes.
    """
    out = np.zeros(len(sizes))
    free = sizes > 0
    n = min(n, int(free.sum()))
    certain = np.zeros(len(sizes), dtype=bool)
    while free.any() and n > certain.sum():
        share = (n - certain.sum()) * sizes / sizes[free].sum()
        over = free & (share >= 1)
        if not over.any():
            out[free] = share[free]
            break
        certain |= over
        free &= ~over
    out[certain] = 1.0
    return out


def systematic_sample(inclusion: Floats, u: float) -> npt.NDArray[np.int64]:
    """Systematic sampling (Madow 1949): a fixed-size sample with exactly these inclusion probabilities.

    Args:
        inclusion: [T], each at most 1.
        u: one uniform in [0, 1).

    Returns:
        increasing indices, spread along the positions.
    """
    edges = np.cumsum(inclusion)
    edges[-1] = np.round(edges[-1])  # the sum is the sample's size, up to rounding
    before = np.concatenate([[0.0], edges[:-1]])
    hit = np.floor(edges - u) > np.floor(before - u)
    return np.flatnonzero(hit & (inclusion > 0))
