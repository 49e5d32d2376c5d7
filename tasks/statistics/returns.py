"""What draws return besides their outcome, for losses whose f is a mean over draws (statistics of section 3).

At a branch j such a loss has f_j = c_j + h_j: c is known without draws, and h_j is the mean, over the continuations of
j, of what each returns: of the reward -R, of sequence-level reverse KL the log-ratios of the tokens that follow. So its
direction is d = d_c - P (h - h_bar), and <g, d> and |d|^2 are products of means over the same draws: their noise does
not cancel, and is removed as that of |g|^2 is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from schemas.arrays import AnyArray
from tasks.statistics.csr import Floats, owners, row_sums
from tasks.statistics.estimators import Outcomes, Pair, PooledRounds


class Returns(NamedTuple):
    """Sums of the returns of each branch's draws, and of their squares: over all, and over successful ones; [B]."""

    total: Floats
    squares: Floats
    total_won: Floats
    squares_won: Floats

    @classmethod
    def of(cls, distillation: Mapping[str, AnyArray]) -> "Returns | None":
        """From the arrays of stage 4; None where the loss needs no draws."""
        if not len(distillation["return_sum"]):
            return None
        names = ("return_sum", "return_sq", "return_sum_won", "return_sq_won")
        return cls(*(np.asarray(distillation[name], dtype=np.float64) for name in names))

    def pooled(self, nodes: PooledRounds) -> "Returns":
        """Of the branches of all rounds together."""
        return Returns(*(np.bincount(nodes.branch, x, len(nodes.first)).astype(np.float64) for x in self))

    def mean(self, outcomes: Outcomes) -> Floats:
        """h of the branches, [B]."""
        return np.asarray(self.total / outcomes.draws, dtype=np.float64)

    def with_outcome(self, outcomes: Outcomes) -> Pair:
        """The outcome, and the return."""
        rate, mean, n = outcomes.rate, self.mean(outcomes), outcomes.draws
        return Pair(rate, mean, (self.total_won / n - rate * mean) / (n - 1))

    def with_itself(self, outcomes: Outcomes) -> Pair:
        """The return twice."""
        mean, n = self.mean(outcomes), outcomes.draws
        return Pair(mean, mean, (self.squares / n - mean * mean) / (n - 1))

    def simulate(self, outcomes: Outcomes, Q: Floats, rng: np.random.Generator) -> Floats:
        """h of the branches in every simulation of their success probabilities Q, [S, B] -> [S, B].

        h = Q h_won + (1 - Q) h_lost: the mean return of successful and of failed draws is normal around that of the
        branch, to which the mean of the whole node counts as one draw more, with the variance within the node.
        """
        won = outcomes.successes, self.total_won, self.squares_won
        lost = outcomes.draws - outcomes.successes, self.total - self.total_won, self.squares - self.squares_won
        h_won, h_lost = (self._simulate(outcomes, *of, Q.shape, rng) for of in (won, lost))
        return Q * h_won + (1 - Q) * h_lost

    def _simulate(
        self,
        outcomes: Outcomes,
        draws: Floats,
        total: Floats,
        squares: Floats,
        shape: tuple[int, ...],
        rng: np.random.Generator,
    ) -> Floats:
        offsets, owner = outcomes.offsets, owners(outcomes.offsets)
        every = row_sums(outcomes.draws, offsets), row_sums(self.total, offsets), row_sums(self.squares, offsets)
        some = row_sums(draws, offsets), row_sums(total, offsets), row_sums(squares, offsets)
        n, s, q = (np.where(some[0] > 0, x, y) for x, y in zip(some, every, strict=True))
        mean = s / n
        variance = np.maximum(q / n - mean * mean, 0.0) * n / np.maximum(n - 1, 1.0)
        centre = (total + mean[owner]) / (draws + 1)
        return np.asarray(centre + np.sqrt(variance[owner] / (draws + 1)) * rng.standard_normal(shape))
