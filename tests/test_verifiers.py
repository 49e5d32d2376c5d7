"""Each verifier on right, wrong, cut and hostile completions."""

import time

import pytest

from schemas.config import ChoiceVerifier, ExactVerifier, MathVerifier, NumericVerifier
from tasks.verifiers.math import MathPool
from tasks.verifiers.text import choice, exact, numeric
from tasks.verifiers.verifier import Attempt, Verifier, answer_error


@pytest.mark.parametrize(
    ("completion", "answer", "cut", "verdict"),
    [
        ("so the answer is 42", "42", False, True),
        ("answer 41 no, 42.0", "42", False, True),
        ("about 1,234.5 in all", "1234.5", False, True),
        ("one half is 1/2", "0.5", False, True),
        ("12%", "0.12", False, True),
        ("42 and then 43", "42", False, False),
        ("no number", "42", False, False),
        ("1/0", "42", False, False),
        ("42", "42", True, False),
    ],
)
def test_numeric(completion: str, answer: str, cut: bool, verdict: bool) -> None:
    assert numeric(NumericVerifier())(completion, answer, cut) is verdict


def test_a_cut_completion_passes_only_with_a_complete_answer() -> None:
    check = numeric(NumericVerifier(marker="answer"))
    assert check("1 + 1 = 2 answer 2 , and so", "2", True)
    assert not check("1 + 1 = 2 answer 2", "2", True)  # the number may go on
    assert not check("1 + 1 = 2 , so", "2", True)
    assert choice(ChoiceVerifier(marker="Answer:"))("Answer: B because", "B", True)
    assert not choice(ChoiceVerifier(marker="Answer:"))("Answer: B", "B", True)
    assert not exact(ExactVerifier())("yes", "yes", True)


def test_exact_and_choice() -> None:
    assert exact(ExactVerifier())("  True ", "True", False)
    assert not exact(ExactVerifier())("true", "True", False)
    assert exact(ExactVerifier(marker="=>", ignore_case=True))("I think => TRUE", "true", False)
    assert not exact(ExactVerifier(marker="=>"))("True", "True", False)
    assert choice(ChoiceVerifier())("A or B? The answer is (C).", "C", False)
    assert not choice(ChoiceVerifier())("BAD", "B", False)
    assert choice(ChoiceVerifier(labels=["yes", "no"]))("no, it is yes", "yes", False)


def test_answers_that_no_completion_could_match_are_told() -> None:
    assert answer_error(NumericVerifier(), "12") is None
    assert answer_error(NumericVerifier(), "a dozen") == "is not a number; choose another verifier"
    assert "labels" in str(answer_error(ChoiceVerifier(), "E"))
    assert answer_error(ExactVerifier(), " ") == "is empty"


def test_math_in_worker_processes_with_a_time_limit() -> None:
    verifier = Verifier(MathVerifier(workers=1, seconds=20))
    try:
        verdicts = verifier.check_all(
            [
                Attempt(r"so $x = \boxed{\frac{1}{2}}$", "0.5", False),
                Attempt(r"the answer is \boxed{7}", r"\frac{14}{2}", False),
                Attempt(r"\boxed{3}", "4", False),
                Attempt(r"\boxed{\frac{1}{2}} and then", "1/2", True),
                Attempt(r"\boxed{\frac{1}{2}", "1/2", True),
                Attempt("nothing", "4", False),
            ]
        )
    finally:
        verifier.close()
    assert verdicts == [True, True, False, True, False, False]


def test_a_check_that_hangs_is_ended_and_the_pool_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import hanging

    monkeypatch.setattr("tasks.verifiers.math.check_math", hanging.check)
    pool = MathPool(MathVerifier(workers=1, seconds=1.0))
    try:
        began = time.monotonic()
        assert pool.check_all([("ok", "", False), ("hang", "", False), ("ok", "", False)]) == [True, False, True]
        assert time.monotonic() - began < 60
    finally:
        pool.close()
