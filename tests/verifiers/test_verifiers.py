"""Each verifier on right, wrong, cut and hostile completions."""

import threading
import time
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.config import (
    ChoiceVerifier,
    ExactVerifier,
    MathVerifier,
    NumericVerifier,
    RegexVerifier,
    YesNoVerifier,
)
from schemas.config import Verifier as Settings
from tasks.verifiers.math import MathEquivalence, check_math
from tasks.verifiers.numbers import parse_number
from tasks.verifiers.protocol import Attempt
from tasks.verifiers.text import choice, exact, matching, numeric, yes_no
from tasks.verifiers.verifier import Verifier, find_bad_answer, fingerprint, kind_of
from tests.helpers.threads import stopped_when


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
        ("it is −5", "-5", False, True),
        ("it is −5", "5", False, False),
        ("it is –5.", "-5", False, True),
        ("it is －５", "-5", False, True),
        ("答案是−5。", "-5", False, True),
        ("pages 5-10", "10", False, True),
        ("pages 5–10", "-10", False, False),
        ("x-5", "5", False, True),
        (r"\frac{3}{4}", "0.75", False, True),
        (r"\dfrac{3}{4}", "3", False, False),
        (r"-\tfrac34", "-3/4", False, True),
        (r"2\frac{1}{2}", "2.5", False, True),
        ("2 1/2 gallons", "2.5", False, True),
        (r"1{,}234", "1234", False, True),
        (r"1\,234", "1234", False, True),
        ("1\u2009234", "1234", False, True),
        ("1,2,3", "3", False, True),
        (r"5 \times 10^{3}", "5000", False, True),
        ("about 2 x 10^3", "2000", False, True),
        ("about 2 x 10^3", "1000", False, False),
        (r"5 \cdot 10^3", "3", False, False),
        ("6.02×10^-3", "0.00602", False, True),
        ("2^{10}", "1024", False, True),
        ("2^{10}", "10", False, False),
        ("1e5", "100000", False, True),
        ("it costs $1,234.50.", "1234.5", False, True),
        ("-$5", "-5", False, True),
        ("1e999", "1", False, False),
        ("10^{999}", "1", False, False),
        ("9" * 5000, "1", False, False),
        ("nan", "1", False, False),
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


@pytest.mark.parametrize("sign", ["%", r"\%", " %", " percent", "％"])
def test_a_percentage_is_its_hundredth_or_the_number_before_its_sign(sign: str) -> None:
    check = numeric(NumericVerifier())
    assert check(f"12{sign}", "0.12", False)
    assert check(f"12{sign}", "12", False)
    assert check("12", f"12{sign}", False)
    assert check("0.12", f"12{sign}", False)
    assert check(f"12{sign}", "12%", False)
    assert not check(f"0.12{sign}", "12%", False)
    assert not check(f"12{sign}", "0.12%", False)
    assert not check("1200", f"12{sign}", False)


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["-", "−", "–", "－"]),
    st.sampled_from(
        ["{}", "{:,}", "${}$", r"\boxed{{{}}}", "{}.", "is {}, so", "{}.0", r"\frac{{{}}}{{1}}", "{}/1", "{}e0", "＄{}"]
    ),
)
def test_every_way_of_writing_a_number_is_that_number(value: int, minus: str, form: str) -> None:
    text = form.format(abs(value))
    text = text.replace(f"{abs(value):,}" if "," in form and "{:,}" in form else str(abs(value)), "#", 1)
    digits = f"{abs(value):,}" if form == "{:,}" else str(abs(value))
    text = text.replace("#", (minus if value < 0 else "") + digits)
    check = numeric(NumericVerifier(tolerance=0))
    assert check(f"so {text}", str(value), False)
    assert not check(f"so {text}", str(value + 1), False)
    if value:
        assert not check(f"so {text}", str(-value), False)


@given(st.text(alphabet="0123456789.,/^%{}\\-−eE frac$ tims", max_size=60))
def test_no_text_breaks_the_reader_of_numbers(text: str) -> None:
    numeric(NumericVerifier())(text, "1", False)
    try:
        value = parse_number(text).value
    except ValueError:
        return
    assert abs(value) < float("inf")


@pytest.mark.parametrize(
    "answer",
    [
        "a dozen",
        "nan",
        "inf",
        "-inf",
        "infinity",
        "1e999",
        "-1e999",
        "10^{999}",
        "1_000",
        "٣",
        "1/0",
        "0x10",
        "5-10",
        "1,2,3",
    ],
)
def test_a_numeric_answer_that_is_no_finite_number_is_refused(answer: str) -> None:
    message = "is not a finite number; choose another verifier"
    assert find_bad_answer(NumericVerifier(), ["12", answer]) == (1, message)


def test_a_numeric_answer_may_be_written_as_people_write_numbers() -> None:
    answers = ["12", "-5", "−5", "1,234", "$18.90", r"\$18.90", "50%", "3/4", r"\frac{3}{4}", ".5", "1e5", "$7$", "12."]
    assert find_bad_answer(NumericVerifier(), answers) is None


@pytest.mark.parametrize(
    ("completion", "answer", "verdict"),
    [
        ("答案是B。", "B", True),
        ("答案是Ｂ。", "B", True),
        ("정답은 B입니다", "B", True),
        ("_B_", "B", True),
        ("**B**", "B", True),
        (r"\boxed{\text{B}}", "B", True),
        ("(B)", "B", True),
        ("B.", "B", True),
        ("Answer: A)", "A", True),
        ("Answer: A)", "b", False),
        ("Answer: B", "b ", True),
        ("Äb ABBA B2 aB", "B", False),
        ("a dog: b", "B", False),
        ("B. A dog", "B", False),  # a known limit: the article is a label
    ],
)
def test_choice_beside_any_letters(completion: str, answer: str, verdict: bool) -> None:
    assert choice(ChoiceVerifier())(completion, answer, False) is verdict


def test_choice_without_case() -> None:
    check = choice(ChoiceVerifier(ignore_case=True))
    assert check("the answer is (b)", "B", False)
    assert check("the answer is (B)", "b", False)
    assert not check("the answer is (c)", "B", False)
    assert choice(ChoiceVerifier(labels=["yes", "no"], ignore_case=True))("No. YES.", "Yes", False)


@pytest.mark.parametrize(
    ("completion", "answer", "cut", "verdict"),
    [
        ("I think so. Yes.", "true", False, True),
        ("**No**", "False", False, True),
        ("yes? no: FALSE", "no", False, True),
        ("yes, that is true", "no", False, False),
        ("nothing is known, eyes", "no", False, False),  # parts of words
        ("", "yes", False, False),
        ("yes", "yes", True, False),  # without a marker, more may follow
        ("答案是yes。", "yes", False, True),
        ("untrue", "true", False, False),
    ],
)
def test_yes_or_no(completion: str, answer: str, cut: bool, verdict: bool) -> None:
    assert yes_no(YesNoVerifier())(completion, answer, cut) is verdict


def test_yes_or_no_after_a_marker() -> None:
    check = yes_no(YesNoVerifier(marker="Answer:"))
    assert check("no no Answer: yes, there is no doubt, yes.", "true", True)
    assert not check("Answer: yes", "true", True) and not check("yes", "true", False)
    assert find_bad_answer(YesNoVerifier(), ["Yes", "TRUE", "maybe"]) == (2, "is neither yes nor no, true nor false")


@pytest.mark.parametrize(
    ("settings", "completion", "answer", "cut", "verdict"),
    [
        ({"pattern": r"<answer>(.*?)</answer>"}, "<answer>a</answer> <answer> b  c </answer>", "b c", False, True),
        ({"pattern": r"<answer>(.*?)</answer>"}, "<answer>b</answer", "b", False, False),
        ({"pattern": r"#+ *(\S+)"}, "x #### 12", "12", False, True),
        ({"pattern": r"#+ *(\S+)"}, "x #### 12", "12", True, False),  # it may go on
        ({"pattern": r"#+ *(\S+)"}, "x #### 12 so", "12", True, True),
        ({"pattern": r"[A-E]\b"}, "A, no: C", "c", False, False),
        ({"pattern": r"[A-E]\b", "ignore_case": True}, "A, no: C", "c", False, True),
        ({"pattern": r"(x)|(y)"}, "y", "y", False, False),  # the first group took no part
        ({"pattern": r"(a+)+$"}, "a" * 5000 + "b", "a", False, False),
    ],
)
def test_patterns(settings: dict[str, Any], completion: str, answer: str, cut: bool, verdict: bool) -> None:
    assert matching(RegexVerifier(**settings))(completion, answer, cut) is verdict


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    began = time.monotonic()
    assert not matching(RegexVerifier(pattern=r"(?:(a|aa)+)+c"))("a" * 3000, "a", False)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("pattern", ["(", "[a", "(?P<n>", "a{2,1}", "*"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match=r"pattern: .* is not a pattern: "):
        RegexVerifier(pattern=pattern)


def test_an_answer_counts_only_after_the_thinking() -> None:
    verifier = Verifier(NumericVerifier())
    texts = ["<think>it is 5</think> so 7", "it is 7</think>", "it is 7</think> 5", "it is 7", "7</think>8</think>7"]
    assert verifier.check_all([Attempt(text, "7", False) for text in texts]) == [True, False, False, True, True]


def test_exact_compares_characters_and_not_how_accents_are_composed() -> None:
    assert exact(ExactVerifier())("cafe\u0301", "caf\u00e9", False)
    assert not exact(ExactVerifier())("cafe", "caf\u00e9", False)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ExactVerifier, {"marker": ""}, "at least 1 character"),
        (NumericVerifier, {"marker": ""}, "at least 1 character"),
        (ChoiceVerifier, {"marker": ""}, "at least 1 character"),
        (ChoiceVerifier, {"labels": ["A", ""]}, "labels: '' is empty"),
        (ChoiceVerifier, {"labels": ["A", " B"]}, "labels: ' B' is empty or starts or ends with white space"),
        (ChoiceVerifier, {"labels": ["A", "A"]}, "labels: 'A' appears twice"),
        (ChoiceVerifier, {"labels": ["A", "a"], "ignore_case": True}, "labels: 'a' appears twice"),
    ],
)
def test_settings_that_cannot_tell_answers_apart_are_refused(
    kind: type[Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**fields)
    assert ChoiceVerifier(labels=["A", "a"]).labels == ["A", "a"]


def test_answers_that_no_completion_could_match_are_told() -> None:
    assert find_bad_answer(ChoiceVerifier(), ["A", "E"]) == (1, "is not one of the labels ['A', 'B', 'C', 'D']")
    assert find_bad_answer(ChoiceVerifier(labels=["A", "a", "B"]), ["A", "a", "b"]) is None
    assert find_bad_answer(ExactVerifier(), ["yes", " "]) == (1, "is empty")
    unread = (1, "contains no mathematics that math-verify can read; choose another verifier")
    assert find_bad_answer(MathVerifier(workers=1), ["5", "$$"]) == unread


@pytest.mark.parametrize("answer", [r"9^{9^{9^{9}}}", "(((10!)!)!)!", "(" * 100_000, r"\prod_{k=1}^{9999999} k"])
def test_a_reference_answer_that_takes_for_ever_is_refused_within_the_time_limit(answer: str) -> None:
    began = time.monotonic()
    found = find_bad_answer(MathVerifier(seconds=1, workers=1), [*map(str, range(10_000)), answer, r"\frac{1}{2}"])
    assert found is not None and found[0] == 10_000
    assert found[1].startswith("cannot be read by math-verify within verifier.seconds (1 s)")
    assert time.monotonic() - began < 30


def test_the_kind_and_version_of_a_verifier_are_in_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for member in get_args(get_args(Settings)[0]):
        needed = {"function": "tests.helpers.judges:last_word"} if "function" in member.model_fields else {}
        settings = member(**needed)
        before = fingerprint(settings)
        assert before.startswith(f"{settings.kind} ")
        monkeypatch.setattr(type(kind_of(settings)), "version", 99)
        assert fingerprint(settings).startswith(f"{settings.kind} 99") and fingerprint(settings) != before
    assert "math-verify" in fingerprint(MathVerifier()) and "sympy" in fingerprint(MathVerifier())


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("I get 7, so \\boxed{}", "7"),  # nothing in the box: nothing said
        (r"I get 7, so \boxed{\frac{}", "7"),
        (r"The answer is 7\sqrt{2}.", "7"),
        (r"I get $7$, so \boxed{\text{no idea @#}}", "7"),
        (r"\boxed{1.7\times 10^{-19}}", r"1.6\times 10^{-19}"),
        (r"\boxed{" * 2000, "7"),
        ("\ud800 \\boxed{\ud800}", "7"),
    ],
)
def test_math_takes_nothing_but_the_answer(completion: str, answer: str) -> None:
    assert check_math(completion, answer, False) is False


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="\\boxed{}frac12sqrt_()[]$ .,-=½√", max_size=40))  # no powers: their size has no limit here
def test_no_completion_makes_math_fail(text: str) -> None:
    assert check_math(text, "987654", False) is False
    assert check_math(rf"\boxed{{{text}", "987654", True) is False


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


@pytest.mark.parametrize("fault", ["hang", "memory", "stack", "end"])
def test_a_check_that_uses_up_its_worker_is_wrong_and_the_pool_goes_on(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from tests.helpers import hanging

    monkeypatch.setattr("tasks.verifiers.math.check_math", hanging.check)
    pool = MathEquivalence(MathVerifier(workers=1, seconds=1.0))
    try:
        began = time.monotonic()
        assert pool.check_all([Attempt(said, "", False) for said in ("ok", fault, "ok")]) == [True, False, True]
        assert time.monotonic() - began < 60
    finally:
        pool.close()


def test_a_mistake_of_our_own_in_a_worker_is_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers import hanging

    monkeypatch.setattr("tasks.verifiers.math.check_math", hanging.check)
    pool = MathEquivalence(MathVerifier(workers=1))
    try:
        with pytest.raises(TypeError, match="a mistake of this project"):
            pool.check_all([Attempt("mistake", "", False)])
    finally:
        pool.close()


def test_a_stopped_run_does_not_wait_for_verifications() -> None:
    """Of 40 attempts that each take all of their time."""
    begun = threading.Event()
    verifier = Verifier(MathVerifier(workers=1, seconds=5.0))

    def check() -> list[bool]:
        assert verifier.check_all([Attempt(r"\boxed{4}", "4", False)]) == [True]  # the pool has started
        begun.set()
        return verifier.check_all([Attempt(r"\boxed{9^{9^{9^{9}}}}", "5", False)] * 40)

    try:
        assert stopped_when(begun, [check]) == 1
        began = time.monotonic()
        assert verifier.check_all([Attempt(r"\boxed{4}", "4", False)]) == [True]
        assert time.monotonic() - began < 60  # not 200
    finally:
        verifier.close()
