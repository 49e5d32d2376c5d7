"""Answers as data sets hold them, with right and wrong completions, through the verifiers meant for them."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from schemas.config import ChoiceVerifier, MathVerifier, NumericVerifier
from tasks.verifiers.expressions import last_box
from tasks.verifiers.math import check_math
from tasks.verifiers.text import choice, numeric
from tasks.verifiers.verifier import find_bad_answer


@dataclass(frozen=True)
class Case:
    """A reference answer; what is right and wrong in a box; and whole completions that are right and wrong."""

    answer: str
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()


COMPETITION = [  # MATH, AMC
    Case(
        r"3\sqrt{2}",
        (r"\sqrt{18}", r"3\sqrt2", r"\sqrt{2}\cdot 3", "3√2"),
        ("3", r"\sqrt{2}", r"-3\sqrt{2}", r"2\sqrt{3}"),
    ),
    Case(r"10\pi", (r"\pi\cdot 10", "10π"), ("10", r"\pi", r"-10\pi", r"11\pi")),
    Case(r"2\frac{1}{2}", (r"\frac{5}{2}", "2.5", "5/2", "2 1/2", "2½"), (r"\frac{1}{2}", "2", "1", "-2.5")),
    Case(r"-\frac{1}{3}", (r"\frac{-1}{3}", "-1/3", r"-\dfrac13", "−1/3"), (r"\frac{1}{3}", "-1", "3", "-0.3")),
    Case(r"\frac{\sqrt{3}}{2}", (r"\frac{1}{2}\sqrt{3}", r"\sqrt{3}/2"), (r"\sqrt{3}", "2", r"-\frac{\sqrt{3}}{2}")),
    Case(r"\frac43", (r"\frac{4}{3}", "4/3", r"1\frac{1}{3}"), ("4", "43", r"\frac{3}{4}")),
    Case(r"\dfrac{17}{50}", ("0.34", "17/50", r"34\%"), ("17", "50", r"\dfrac{17}{51}")),
    Case("x=5", ("5", "x = 5"), ("6", "-5", "y=5", "x=-5")),
    Case("x = -2, 7", ("-2, 7",), ("-2", "7", "2, 7")),
    Case("(0,1)", (r"\left(0,1\right)", "(0, 1)"), ("0", "1", "[0,1]", "(1,0)")),
    Case("[0,1)", (r"\left[0,1\right)",), ("0", "(0,1)", "[0,1]")),
    Case(r"x \in [-2,7]", ("[-2,7]", r"[-2, 7]"), ("-2", "7", "[2,7]", "(-2,7)")),
    Case(
        r"(-\infty, 2) \cup (3, \infty)", (r"(-\infty,2)\cup(3,\infty)",), ("2", "3", r"(-\infty, 3) \cup (2, \infty)")
    ),
    Case(r"(-\infty,-1]", (r"\left(-\infty,-1\right]",), ("-1", r"(-\infty,-1)", r"(-\infty,1]")),
    Case(r"\{1,2,3\}", ("1,2,3", r"\{3,2,1\}"), ("1", "3", r"\{1,2\}", r"\{1,2,4\}")),
    Case("-2, 3", ("3,-2", r"-2\text{ and }3", r"\{-2,3\}"), ("-2", "3", "2, 3", "-2, -3")),
    Case(
        r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}",
        (r"\begin{bmatrix} 1 \\ -2 \end{bmatrix}",),
        ("1", "-2", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ),
    Case(
        "\\begin{pmatrix}\n1 & 2\\\\\n3 & 4\n\\end{pmatrix}",
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "\\begin{pmatrix}\n1&2\\\\\n3&4\\end{pmatrix}"),
        ("1", "4", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    ),
    Case(
        r"\left( 3, \frac{\pi}{2} \right)", (r"(3,\pi/2)",), ("3", r"\frac{\pi}{2}", r"(3,\pi)", r"(-3,\frac{\pi}{2})")
    ),
    Case("(2,-3,4)", (r"\left(2,-3,4\right)",), ("2", "4", "(2,3,4)", "(2,-3)")),
    Case(r"\text{Friday}", ("Friday", r"\text{friday}", r"\textbf{Friday}"), (r"\text{Monday}", "Sunday")),
    Case("Friday", (r"\text{Friday}", "Friday", r"\mathrm{Friday}"), (r"\text{Monday}", "Sunday")),
    Case(r"\text{even}", ("even",), ("odd", r"\text{odd}")),
    Case(r"\text{June 20}", ("June 20", r"\text{June }20"), ("20", r"\text{June 21}", r"\text{July 20}")),
    Case(r"\text{(B)}", ("B", "(B)", r"\textbf{(B)}"), ("A", r"\text{(C)}")),
    Case("C", ("C", r"\text{C}", r"\text{(C)}"), ("B", r"\text{D}")),
    Case("10,080", ("10080", r"10{,}080", r"10\,080", r"10,\!080"), ("10", "80", "-10080", "1008")),
    Case(r"10,\!080", ("10080", "10,080"), ("10", "80", "10081")),
    Case(r"1\,234", ("1234", "1,234"), ("1", "234", "235")),
    Case("1 234 567", ("1234567", "1,234,567"), ("1", "567", "1234568")),
    Case(r"90^\circ", ("90", r"90\text{ degrees}", "90°"), ("9", "180", "-90")),
    Case(r"\$18.90", ("18.90", "18.9", "$18.90", r"\$18.90"), ("18", "90", "-18.90", "19.90")),
    Case(r"\$32,\!348", ("32348", r"\$32,348", "32,348"), ("32", "348", "32349")),
    Case(".05", ("0.05", r"\frac{1}{20}", ".05"), ("5", "0.5", "-.05")),
    Case(r"3\pi", (r"\pi\times 3",), ("3", r"4\pi", r"-3\pi")),
    Case(r"5\text{ cm}", ("5", r"5\text{ cm}", "5 cm"), ("6", "-5", "50")),
    Case(r"15\mbox{ cm}^2", ("15", r"15\text{ cm}^2"), ("2", "225", "-15")),
    Case(r"50\%", ("50\\%", "0.5", "50"), ("5", "-50", r"55\%")),
    Case("50%", ("50\\%", "0.5", r"\frac{1}{2}"), ("5", "-50", "51%")),
    Case("2516_8", ("2516_8", "2516_{8}"), ("2517_8", "-2516_8", "25")),
    Case("6r^2-4r-24", ("2(3r^2-2r-12)", "-24-4r+6r^2"), ("6", "24", "6r^2+4r-24", "-6r^2+4r+24")),
    Case("(x+3)(x-2)", ("(x-2)(x+3)", "x^2+x-6"), ("3", "(x-3)(x+2)", "(x+3)(x+2)")),
    Case("p - q", ("-q+p",), ("p", "q", "q-p", "p+q")),
    Case("y = 2x + 3", ("2x+3", "y=3+2x"), ("2", "3", "y=2x-3", "y=-2x+3")),
    Case("6 - 5i", ("-5i+6",), ("6", "5", "6+5i", "-6-5i")),
    Case(r"1 \pm \sqrt{19}", (r"1+\sqrt{19}, 1-\sqrt{19}",), ("1", "19", r"1+\sqrt{19}", r"2 \pm \sqrt{19}")),
    Case(r"11\sqrt2", (r"11\sqrt{2}", r"\sqrt{242}"), ("11", "2", r"-11\sqrt2")),
    Case(r"2^{10}", ("1024",), ("2", "10", "20", "1023")),
    Case(r"\frac{x+1}{2}", (r"\frac{1}{2}(x+1)", "(x+1)/2"), ("1", "2", r"\frac{x-1}{2}")),
    Case(r"\log_2 3", (r"\log_{2}{3}", r"\frac{\ln 3}{\ln 2}"), ("2", "3", r"\log_3 2")),
    Case(r"0.1\overline{6}", (r"0.1\overline 6", r"\frac{1}{6}"), ("0", "1", "0.16", "0.1", r"0.\overline{16}")),
    Case("3:2", ("3:2", r"\frac{3}{2}"), ("3", "2", "2:3")),
    Case("6:00", ("6:00",), ("6", "0", "7:00")),
    Case(r"x > 2", (r"x>2", r"2<x"), ("2", "x<2", "x>3")),
    Case(r"\emptyset", (r"\emptyset",), ("0",)),
]

CONTEST_NUMBERS = [  # AIME
    Case("073", ("73", "073"), ("7", "3", "74", "-73")),
    Case("000", ("0", "000"), ("1", "100")),
    Case("007", ("7", "007"), ("70", "-7", "0")),
    Case("204", ("204", "204."), ("20", "4", "-204", "205")),
    Case("999", ("999",), ("99", "9", "-999")),
]

OLYMPIAD = [
    Case(r"$\frac{1}{2}$", ("0.5", r"\frac12"), ("1", "2", r"-\frac{1}{2}")),
    Case(r"$2,3$", ("2,3", "3,2"), ("2", "3", "2,4")),
    Case("$2$ and $3$", ("2,3", r"2\text{ and }3"), ("2", "3", "23")),
    Case("$1$, $2$, $3$, $4$, $5$, $6$, $7$", ("1,2,3,4,5,6,7",), ("7", "1", "1,2,3,4,5,6")),
    Case(r"\(\frac{3}{56}\)", (r"\frac{3}{56}", "3/56"), ("3", "56", r"\frac{56}{3}")),
    Case(r"\[n^2+1\]", ("1+n^2",), ("1", "n^2", "n^2-1")),
    Case(r"\boxed{\frac{7}{4}}", ("1.75", "7/4"), ("7", "4", r"-\frac{7}{4}")),
    Case(r"$\theta=45^{\circ}$", ("45", r"45^\circ"), ("4", "-45", "46")),
    Case(
        r"1.6 \times 10^{-19}",
        (r"1.6\times 10^{-19}", "1.6e-19"),
        ("1.6", "10", "0", r"1.7\times 10^{-19}", r"1.6\times 10^{-18}"),
    ),
    Case(r"3.5\times 10^{5}", ("350000", "3.5e5", r"35\cdot 10^4"), ("3.5", "10", "5", r"3.6\times 10^5")),
    Case("1e5", ("100000", r"10^5", "1e5"), ("1", "5", "10000", "1e6")),
    Case(r"$1.5 \times 10^{8} \mathrm{~m}$", (r"1.5\times 10^8", "150000000"), ("1.5", "8", "15")),
    Case(r"$(1,2),(3,4)$", ("(1,2),(3,4)", "(3,4),(1,2)"), ("1", "(1,2)", "(1,2),(4,3)")),
    Case("The answer is $5$", ("5",), ("6", "-5")),
    Case(r"n^{2}-n", ("n(n-1)", "n²-n"), ("n", "2", "n^2+n")),
    Case(r"\frac{n(n+1)}{2}", ("n(n+1)/2", r"\frac{n^2+n}{2}"), ("2", "n", r"\frac{n(n-1)}{2}")),
    Case(r"2^{n}-1", (r"-1+2^n",), ("2", "-1", "2^n", "2^n+1")),
    Case(r"1-\frac{1}{e}", (r"\frac{e-1}{e}",), ("1", "e", r"1+\frac{1}{e}")),
]

WORD_PROBLEMS = [  # GSM8K, SVAMP
    Case(
        "1,200",
        ("1200", "1,200", r"1{,}200"),
        ("1", "200", "-1200", "1201"),
        ("#### 1200", "The answer is 1,200.", "So $1,200 in all."),
        ("#### 120", "1,201"),
    ),
    Case(
        "72",
        ("72", "72.0", "72."),
        ("7", "2", "-72", "73"),
        ("48+24=72\n#### 72", "It is −72, no: 72"),
        ("#### 71", "−72"),
    ),
    Case("8.0", ("8", "8.00"), ("80", "-8", "0"), ("The answer is 8.", "8 apples"), ("9 apples",)),
    Case(
        "0.5",
        ("0.5", ".5", r"\frac{1}{2}"),
        ("5", "0", "-0.5"),
        ("The answer is 1/2.", "The answer is 0.5"),
        ("The answer is 5.",),
    ),
    Case(
        "-5",
        ("-5", "−5", "－５", "–5"),
        ("5", "4", "-6"),
        ("The answer is −5.", "The answer is -5.", "答案是−5。"),
        ("The answer is 5.", "The answer is −6."),
    ),
]

MATH = (
    COMPETITION
    + CONTEST_NUMBERS
    + OLYMPIAD
    + WORD_PROBLEMS
    + [Case("Tom has 2 + 3 = <<2+3=5>>5 apples.\n#### 5", ("5",), ("2", "3", "6"), ("#### 5",), ("#### 6",))]
)


def completions(case: Case) -> Iterator[tuple[str, bool]]:
    """Completions with this case's answers, and whether each is right."""
    for answer, verdict in [*((a, True) for a in (case.answer, *case.right)), *((a, False) for a in case.wrong)]:
        bare = answer.rpartition("####")[2].strip()
        yield rf"We try $x = 17$ and get \boxed{{{bare}}}.", verdict
        delimited = any(mark in answer for mark in ("$", r"\(", r"\[", "boxed", "\n", "#", "June"))
        if not delimited and answer.isascii() and any(c.isdigit() or c == "\\" for c in answer):
            yield f"We try 17, then 18.\nTherefore, the final answer is ${answer}$.", verdict
        if verdict and re.fullmatch(r"-?[0-9.]+\\[A-Za-z]+(?:\{ ?\w+\})*", answer):
            yield f"We try 17. The answer is {answer}.", verdict
    yield from ((text, True) for text in case.said)
    yield from ((text, False) for text in case.missed)


def mistakes(check: Callable[[str, str, bool], bool], case: Case) -> list[str]:
    """Every verdict that is not as it should be."""
    return [
        f"{case.answer!r}: {text!r} {'rejected' if right else 'accepted'}"
        for text, right in completions(case)
        if check(text, case.answer, False) is not right
    ]


@pytest.mark.parametrize("case", MATH, ids=lambda case: case.answer)
def test_math_accepts_what_is_right_and_nothing_else(case: Case) -> None:
    assert mistakes(check_math, case) == []


def test_math_reads_every_reference_answer() -> None:
    assert len({case.answer for case in MATH}) >= 80
    assert find_bad_answer(MathVerifier(seconds=30), [case.answer for case in MATH]) is None


@pytest.mark.parametrize("case", WORD_PROBLEMS + CONTEST_NUMBERS, ids=lambda case: case.answer)
def test_numeric_accepts_what_is_right_and_nothing_else(case: Case) -> None:
    assert mistakes(numeric(NumericVerifier()), case) == []


@pytest.mark.parametrize("label", "ABCDE")
def test_choice_accepts_what_is_right_and_nothing_else(label: str) -> None:
    check = choice(ChoiceVerifier(labels=list("ABCDE")))
    other = "ABCDE"["BCDEA".index(label)]
    for form in (
        r"\boxed{\text{%s}}",
        r"\textbf{(%s)}\ 12",
        "The answer is %s.",
        "Answer: (%s)",
        "**%s**",
        "答案是%s。",
        "故选%s",
    ):
        assert check(f"Not {other}. " + form % label, label, False), form
        assert not check(f"Not {label}. " + form % other, label, False), form


@pytest.mark.parametrize(
    ("completion", "held"),
    [
        (r"The sum is $\boxed{3}$, so twice it is $\boxed{4}$.", "4"),  # near each other, and not a list
        (r"Thus $x = \boxed{3}$ and the final answer is $\boxed{4}$", "4"),
        (r"\boxed{3}. Wait. \boxed{4}", "4"),
        (r"$\boxed{3}$ and $\boxed{4}$", "3,4"),
        (r"\boxed{7}, \boxed{8}; $\boxed{9}$", "7,8,9"),
        (r"\boxed{3}\text{ or }\boxed{4}", "3,4"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\frac{1}{2}} for x } or { y", r"\frac{1}{2}"),
        (r"\boxed{2} and \boxed{3", ""),
        ("no box", None),
    ],
)
def test_boxes_are_joined_where_they_are_listed(completion: str, held: str | None) -> None:
    assert last_box(completion) == held


def test_very_many_boxes_are_looked_at_once() -> None:
    began = time.process_time()
    assert last_box(r"\boxed{" * 200_000) == "" and last_box(r"\boxed{1}. " * 200_000) == "1"
    assert time.process_time() - began < 10
