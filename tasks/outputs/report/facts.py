"""What a report says in words and counts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.no_signal import Endings
from tasks.statistics.csr import row_sums

LeftOut = Mapping[str, str]
"""Questions that were left out, with the reason."""


class Facts(NamedTuple):
    """Counts of one question; `tail_missing` is the largest tail of a node that was not drawn."""

    question_id: str
    rollouts: int
    correct: int
    truncated_rollouts: int
    rollout_tokens: int
    nodes: int
    draws: int
    draw_tokens: int
    successes: int
    truncated_draws: int
    tail_missing: float
    sampled: bool

    @property
    def endings(self) -> Endings:
        """How its rollouts and draws ended."""
        return Endings(self.rollouts, self.correct, self.truncated_rollouts, self.draws, self.successes)

    @classmethod
    def of(cls, q: QuestionScores) -> "Facts":
        """From a question's arrays."""
        drawn = row_sums(np.asarray(q.tree["branch_tail"], dtype=np.float64), q.tree["branch_offsets"])
        return cls(
            question_id=q.question_id,
            rollouts=len(q.rollouts["correct"]),
            correct=int(q.rollouts["correct"].sum()),
            truncated_rollouts=int(q.rollouts["truncated"].sum()),
            rollout_tokens=int(q.rollouts["offsets"][-1]),
            nodes=len(np.unique(q.tree["node"])),
            draws=int(q.tree["draws"].sum()),
            draw_tokens=len(q.tree["draw_tokens"]),
            successes=int(q.tree["successes"].sum()),
            truncated_draws=int(q.tree["truncations"].sum()),
            tail_missing=float(np.max(np.where(drawn > 0, 0.0, q.tree["tail_prob"]), initial=0.0)),
            sampled=q.sampled,
        )


class Told(NamedTuple):
    """What the page says in words.

    Attributes:
        why_unresolved: why the alignment of some signal is unknown; None where all are known.
        notes: lines on questions that tell no direction, and on generated texts.
        advice: what to train with.
    """

    why_unresolved: str | None
    notes: Sequence[str]
    advice: str
