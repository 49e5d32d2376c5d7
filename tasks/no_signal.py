"""Why little is known of a run's signals, in words: how the student's rollouts ended, and what to change."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from schemas.arrays import AnyArray
from schemas.config import Sampling


class Endings(NamedTuple):
    """How one question's rollouts ended: how many there are, are right, and were cut off by the length limit."""

    rollouts: int
    correct: int
    truncated: int

    @classmethod
    def of(cls, rollouts: Mapping[str, AnyArray]) -> "Endings":
        """From a question's rollouts."""
        correct = rollouts["correct"]
        return cls(len(correct), int(correct.sum()), int(rollouts["truncated"].sum()))


def why_unresolved(questions: Sequence[Endings], sampling: Sampling, more: str) -> str:
    """The likeliest reason that a run's scores are unresolved, and what to change.

    Outcomes that differ are all that tells of a direction: a student that is always right, always wrong or always cut
    off shows none.

    Args:
        more: what gives more outcomes where they do differ, such as "tree.draws".
    """
    n, limit = len(questions), sampling.max_tokens
    cut = sum(2 * q.truncated >= q.rollouts for q in questions)
    wrong = sum(q.correct == 0 for q in questions)
    right = sum(q.correct == q.rollouts for q in questions)
    if 2 * cut >= n:
        return (
            f"the length limit ended half or more of the rollouts of {cut} of {n} questions: "
            f"raise sampling.max_tokens, now {limit}"
        )
    if 2 * wrong >= n:
        return (
            f"the student is always wrong on {wrong} of {n} questions: ask easier ones, lower sampling.temperature, "
            "say in prompt.template how to answer, or see whether the verifier reads its answers"
        )
    if 2 * right >= n:
        return (
            f"the student is always right on {right} of {n} questions: ask harder ones, or raise sampling.temperature"
        )
    return f"{n - wrong - right} of {n} questions have right and wrong rollouts: add questions, or raise {more}"
