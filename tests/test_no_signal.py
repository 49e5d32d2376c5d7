"""Why scores are unresolved is said in words that name the cause and what to change."""

import numpy as np
import pytest

from schemas.config import Sampling
from tasks.no_signal import Endings, why_unresolved

WRONG, RIGHT, MIXED, CUT = Endings(4, 0, 0), Endings(4, 4, 0), Endings(4, 2, 0), Endings(4, 0, 3)


@pytest.mark.parametrize(
    ("questions", "said", "change"),
    [
        ([WRONG] * 6, "always wrong on 6 of 6 questions", "easier"),
        ([WRONG] * 4 + [MIXED] * 2, "always wrong on 4 of 6 questions", "verifier"),
        ([RIGHT] * 5 + [WRONG], "always right on 5 of 6 questions", "harder"),
        (
            [CUT] * 3 + [WRONG] * 3,
            "half or more of the rollouts of 3 of 6 questions",
            "raise sampling.max_tokens, now 24",
        ),
        ([MIXED] * 4 + [WRONG, RIGHT], "4 of 6 questions have right and wrong rollouts", "raise tree.draws"),
    ],
)
def test_the_reason_is_named_with_what_to_change(questions: list[Endings], said: str, change: str) -> None:
    text = why_unresolved(questions, Sampling(max_tokens=24), "tree.draws")
    assert said in text and change in text


def test_endings_are_counted_from_rollouts() -> None:
    arrays = {"correct": np.array([True, False, False]), "truncated": np.array([False, True, False])}
    assert Endings.of(arrays) == Endings(3, 1, 1)
