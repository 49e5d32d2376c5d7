"""Explains why a run's scores are unresolved: how outcomes ended, and what to change."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import RunConfig
from tasks.statistics.bootstrap import LEAST_UNITS


class Endings(NamedTuple):
    """How one question's rollouts ended, and the draws of its tree if any.

    truncated: by the length limit; graded: rewards tell more apart than right and wrong, where no tree was drawn.
    """

    rollouts: int
    correct: int
    truncated: int
    draws: int = 0
    successes: int = 0
    graded: bool = False

    @classmethod
    def of(cls, rollouts: Mapping[str, AnyArray]) -> "Endings":
        """From a question's rollouts alone."""
        correct, reward = rollouts["correct"], rollouts["reward"]
        graded = len(np.unique(reward)) > len(np.unique(correct))
        return cls(len(correct), int(correct.sum()), int(rollouts["truncated"].sum()), graded=graded)

    @property
    def always_wrong(self) -> bool:
        """True where nothing succeeded."""
        return self.correct + self.successes == 0 and not self.graded

    @property
    def always_right(self) -> bool:
        """True where everything succeeded."""
        return self.correct + self.successes == self.rollouts + self.draws and not self.graded


class Advice(NamedTuple):
    """What to change, by goal."""

    easier: str
    harder: str
    questions: str
    draws: str


SAMPLED = Advice(
    "ask easier ones, lower sampling.temperature, say in prompt.template how to answer, or check that the verifier "
    "reads its answers",
    "ask harder ones, or raise sampling.temperature",
    "add questions, or raise sampling.rollouts",
    "raise tree.draws",
)
RECORDED = Advice("record easier ones", "record harder ones", "record more questions", "record more draws per branch")


def without_signal(questions: Mapping[str, Endings], config: RunConfig) -> list[str]:
    """Lines on the questions whose outcomes are all alike, and on those that are mostly cut, with advice.

    Args:
        questions: how the rollouts and draws of each ended, by id.
    """
    advice = SAMPLED if config.tree.samples else RECORDED
    kinds = (
        (f"always right ({advice.harder})", [i for i, q in questions.items() if q.always_right]),
        (f"always wrong ({advice.easier})", [i for i, q in questions.items() if q.always_wrong]),
    )
    asked = len(questions)
    lines = [f"no signal: {len(ids)} of {asked} questions are {kind}: {_named(ids)}" for kind, ids in kinds if ids]
    cut = [i for i, q in questions.items() if 2 * q.truncated >= q.rollouts]
    if cut and config.tree.samples:
        limit = f"raise sampling.max_tokens, now {config.sampling.max_tokens}"
        lines.append(f"half of the rollouts of {len(cut)} of {asked} questions are cut ({limit}): {_named(cut)}")
    return lines


_NAMED = 5
"""Questions that a line names."""


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more


def uninformative(rollouts: Mapping[str, AnyArray]) -> str | None:
    """Why a question's rollouts tell no direction; None if they do."""
    endings = Endings.of(rollouts)
    if endings.always_right:
        return f"all {endings.rollouts} rollouts are right (questions.without_signal: leave_out)"
    if endings.always_wrong:
        return f"all {endings.rollouts} rollouts are wrong (questions.without_signal: leave_out)"
    return None


def why_unresolved(questions: Sequence[Endings], carrying: int, config: RunConfig) -> str:
    """The likeliest reason that a run's scores are unresolved, and what to change.

    Only differing outcomes reveal a direction: a student that is always right, always wrong or always truncated shows
    none.

    Args:
        carrying: number of units that carry signal, as for intervals.
    """
    n, advice = len(questions), SAMPLED if config.tree.samples else RECORDED
    truncated = sum(2 * q.truncated >= q.rollouts for q in questions)
    wrong, right = sum(q.always_wrong for q in questions), sum(q.always_right for q in questions)
    if config.tree.samples and 2 * truncated >= n:
        return (
            f"the length limit truncated at least half of the rollouts of {truncated} of {n} questions: "
            f"raise sampling.max_tokens, now {config.sampling.max_tokens}"
        )
    if 2 * wrong >= n:
        return f"the student is always wrong on {wrong} of {n} questions: {advice.easier}"
    if 2 * right >= n:
        return f"the student is always right on {right} of {n} questions: {advice.harder}"
    if carrying < LEAST_UNITS:
        return (
            f"only {carrying} questions (or, with few questions, rollouts) have differing outcomes, and intervals need "
            f"{LEAST_UNITS}: {advice.questions}"
        )
    return f"the ideal gradient is lost in the noise of the draws: add questions, or {advice.draws}"
