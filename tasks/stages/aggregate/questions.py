"""Input of the tables for one question, and aggregation of its nodes over rounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from schemas.arrays import AnyArray
from schemas.signals import Signal
from tasks.statistics.csr import Floats, Ints, owners, row_sums


@dataclass(frozen=True)
class QuestionScores:
    """Input of stage 6 for one question: arrays of the earlier stages."""

    question_id: str
    rollouts: Mapping[str, AnyArray]
    tree: Mapping[str, AnyArray]
    ideal: Mapping[str, AnyArray]
    distillation: Mapping[Signal, Mapping[str, AnyArray]]
    alignment: Mapping[Signal, Mapping[str, AnyArray]]
    sampled: bool = True
    """Whether nodes are a sample of all positions with known inclusion probabilities."""

    @classmethod
    def of(
        cls, question: str, signals: Sequence[Signal], read: Callable[..., Mapping[str, AnyArray]], sampled: bool
    ) -> "QuestionScores":
        """From a question's artefacts; `read` returns that of a stage, a question and, if it has one, a signal."""
        return cls(
            question,
            read("rollouts", question),
            read("trees", question),
            read("ideal", question),
            {signal: read("distillation", question, signal) for signal in signals},
            {signal: read("alignment", question, signal) for signal in signals},
            sampled,
        )

    def needs_draws(self, signal: Signal) -> bool:
        """Whether a signal's direction is known at the nodes only, as it needs draws."""
        return len(self.distillation[signal]["return_sum"]) > 0

    @property
    def rollout_of_position(self) -> Ints:
        """Rollout of each completion position, [T]."""
        return owners(self.rollouts["offsets"])

    @property
    def place(self) -> Ints:
        """Place of each position within its rollout, [T]."""
        offsets = np.asarray(self.rollouts["offsets"], dtype=np.int64)
        return np.arange(int(offsets[-1])) - offsets[self.rollout_of_position]

    @property
    def weight(self) -> Floats:
        """Share of the round / inclusion probability in that round, by node and round, [N]."""
        return np.asarray(self.tree["share"] / self.tree["inclusion"], dtype=np.float64)

    @cached_property
    def open(self) -> npt.NDArray[np.bool_]:
        """Whether the draws of each row's node, over all rounds with weight, have differing outcomes, [N].

        Where they do not, as at a node with one branch, no direction is known.
        """
        _, of = np.unique(self.tree["node"], return_inverse=True)
        counts, totals = self.weight > 0, self.totals
        wins, draws = (np.bincount(of, counts * totals[name])[of] for name in ("successes", "draws"))
        return np.asarray((totals["branches"] > 1) & (wins > 0) & (wins < draws), dtype=np.bool_)

    @property
    def totals(self) -> dict[str, Ints]:
        """Branches, draws, successes and truncated draws by node and round, [N] each."""
        offsets = np.asarray(self.tree["branch_offsets"], dtype=np.int64)
        out = {"branches": np.diff(offsets)}
        for name in ("draws", "successes", "truncations"):
            out[name] = row_sums(np.asarray(self.tree[name], dtype=np.float64), offsets).astype(np.int64)
        return out


class NodeRows:
    """Aggregates the rows of each node, a row being a node in one round.

    Attributes:
        node: positions of the nodes, increasing, [n].
        first: the first row of each, [n].
    """

    def __init__(self, q: QuestionScores) -> None:
        self.node, self.first, self._of = np.unique(q.tree["node"], return_index=True, return_inverse=True)
        # a node sampled only in focused rounds has no weight: its rows are weighted by their draws
        self._weight = np.where(self.sum(q.weight)[self._of] > 0, q.weight, q.totals["draws"])

    def sum(self, values: AnyArray) -> AnyArray:
        return np.bincount(self._of, values, len(self.node))

    def most(self, values: AnyArray) -> AnyArray:
        out = np.zeros(len(self.node), dtype=np.int64)
        np.maximum.at(out, self._of, values)
        return out

    def mean(self, values: AnyArray) -> AnyArray:
        known = np.isfinite(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.sum(np.where(known, values, 0.0) * self._weight) / self.sum(known * self._weight)
