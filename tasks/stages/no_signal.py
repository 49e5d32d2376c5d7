"""Explains why a run's scores are unresolved: how outcomes ended, and what to change."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from schemas.arrays import AnyArray
from schemas.config import RunConfig
from tasks.statistics.bootstrap import LEAST_UNITS


class Endings(NamedTuple):
    """How one question's rollouts ended, and the draws of its tree if any; truncated: by the length limit."""

    rollouts: int
    correct: int
    truncated: int
    draws: int = 0
    successes: int = 0

    @classmethod
    def of(cls, rollouts: Mapping[str, AnyArray]) -> "Endings":
        """From a question's rollouts alone."""
        correct = rollouts["correct"]
        return cls(len(correct), int(correct.sum()), int(rollouts["truncated"].sum()))

    @property
    def always_wrong(self) -> bool:
        """True where nothing succeeded."""
        return self.correct + self.successes == 0

    @property
    def always_right(self) -> bool:
        """True where everything succeeded."""
        return self.correct + self.successes == self.rollouts + self.draws


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
