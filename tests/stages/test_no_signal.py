"""Why scores are unresolved is said in words that name the cause and what to change."""

import numpy as np
import pytest

from schemas.config import RunConfig
from tasks.stages.no_signal import Endings, uninformative, why_unresolved, without_signal

WRONG, RIGHT, MIXED, CUT = Endings(4, 0, 0), Endings(4, 4, 0), Endings(4, 2, 0), Endings(4, 0, 3)
DRAWN, SURE = Endings(4, 0, 0, 64, 3), Endings(4, 2, 0, 64, 0)  # draws tell where rollouts do not


def config(kind: str = "adaptive") -> RunConfig:
    recorded = {
        "tree": {"kind": "recorded", "path": "o.jsonl"},
        "teachers": [{"kind": "recorded", "name": "t", "path": "t.csv"}],
    }
    made = {
        "questions": {"path": "q.jsonl"},
        "student": {"path": "s"},
        "teachers": [{"name": "t"}],
        "sampling": {"max_tokens": 24},
    }
    return RunConfig.model_validate(recorded if kind == "recorded" else made)


@pytest.mark.parametrize(
    ("questions", "carrying", "said", "change"),
    [
        ([WRONG] * 6, 0, "always wrong on 6 of 6 questions", "easier"),
        ([WRONG] * 4 + [MIXED] * 2, 2, "always wrong on 4 of 6 questions", "verifier"),
        ([RIGHT] * 5 + [WRONG], 0, "always right on 5 of 6 questions", "harder"),
        (
            [CUT] * 3 + [WRONG] * 3,
            0,
            "at least half of the rollouts of 3 of 6 questions",
            "raise sampling.max_tokens, now 24",
        ),
        ([DRAWN] * 6, 6, "lost in the noise", "raise tree.draws"),
        ([SURE] * 2, 4, "only 4 questions (or, with few questions, rollouts)", "raise sampling.rollouts"),
        ([MIXED] * 6, 3, "intervals need 5", "add questions"),
    ],
)
def test_the_reason_is_named_with_what_to_change(
    questions: list[Endings], carrying: int, said: str, change: str
) -> None:
    text = why_unresolved(questions, carrying, config())
    assert said in text and change in text


@pytest.mark.parametrize(
    ("questions", "carrying"), [([WRONG] * 6, 0), ([RIGHT] * 6, 0), ([CUT] * 6, 3), ([MIXED] * 6, 6)]
)
def test_recorded_outcomes_are_not_told_to_sample_otherwise(questions: list[Endings], carrying: int) -> None:
    text = why_unresolved(questions, carrying, config("recorded"))
    assert not any(name in text for name in ("sampling", "tree.draws", "prompt")) and "record" in text


def test_endings_are_counted_from_rollouts() -> None:
    arrays = {"correct": np.array([True, False, False]), "truncated": np.array([False, True, False])}
    arrays["reward"] = arrays["correct"].astype(float)
    assert Endings.of(arrays) == Endings(3, 1, 1)


def test_questions_without_signal_are_counted_and_named_with_what_to_change() -> None:
    names = {f"q{i}": RIGHT for i in range(7)} | {"w [b]": WRONG, "m": MIXED, "c": CUT, "d": DRAWN}
    right, wrong, cut = without_signal(names, config())
    assert right.startswith("no signal: 7 of 11 questions are always right (ask harder ones")
    assert right.endswith(": q0, q1, q2, q3, q4 and 2 more")
    assert wrong.startswith("no signal: 2 of 11 questions are always wrong (ask easier ones")
    assert wrong.endswith(": w [b], c")
    assert cut == "half of the rollouts of 1 of 11 questions are cut (raise sampling.max_tokens, now 24): c"
    assert without_signal({"m": MIXED, "d": DRAWN}, config()) == []
    assert all("record" in line for line in without_signal(names, config("recorded")))


@pytest.mark.parametrize(
    ("correct", "reason"),
    [([True] * 3, "all 3 rollouts are right"), ([False] * 2, "all 2 rollouts are wrong"), ([True, False], None)],
)
def test_rollouts_that_are_all_alike_tell_no_direction(correct: list[bool], reason: str | None) -> None:
    found = uninformative(
        {
            "correct": np.array(correct),
            "truncated": np.zeros(len(correct), dtype=bool),
            "reward": np.array(correct, dtype=float),
        }
    )
    assert found is None if reason is None else found is not None and found.startswith(reason)
