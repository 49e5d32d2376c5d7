"""math-verify in worker processes, with time and memory limits enforced from outside.

math-verify's own time limit is a signal, which works only on a main thread, and sympy can hang in C code. A completion
that math-verify fails on is wrong: it then parses nothing, without an error.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.config import MathVerifier
from tasks.verifiers.expressions import (
    answer_text,
    last_box,
    place_of_box,
    read_answer,
    read_completion,
    read_expression,
    same_text,
)
from tasks.verifiers.processes import MEMORY, CheckPool, Pooled
from tasks.verifiers.protocol import Attempt

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the caller must limit time, which it does

SMALL, RELATIVE = 1e-3, 2e-3
"""Numbers below the first must agree to the second, relative to the answer: the precision of six decimals there."""

_PLAIN_NUMBER = re.compile(
    r"-?(?:[0-9]{1,15}|[0-9]{1,3}(?:,[0-9]{3}){1,4})(?:\.[0-9]{1,15})?"
)  # math-verify always reads these

_WORDS = re.compile(r"[^ \t\n]+")
_MOST_WORDS = 64
"""Words after and in an expression that are taken away to find where it begins."""

_LARGE = re.compile(r"!|\\[dtc]?binom|\\(?:sum|prod|int)|\^\s*(?:\w\s*\^|[0-9]{3}|[{(][^{}]*(?:\^|[0-9]{3}))")


def check_math(completion: str, answer: str, truncated: bool) -> bool:
    """True where the completion's last box, else its final expression, is the answer. Runs in a worker."""
    box = last_box(completion)
    if box is None:
        return not truncated and _equal(read_answer(answer), read_completion(completion))
    return same_text(box, answer_text(answer)) or _equal(read_answer(answer), read_expression(box))


def shown_answer(completion: str, truncated: bool) -> str | None:
    """The completion's last box, else its final expression; None without one. Runs in a worker."""
    box = last_box(completion)
    if box is not None:
        return box
    found = [] if truncated else read_completion(completion)
    return str(found[-1]) if found else None  # math-verify gives an expression, then its text


def answer_start(completion: str, truncated: bool) -> int | None:
    """Where the completion's last boxes, else its final expression begin; its length without one. Runs in a worker.

    Where the same was said before with nothing else between, it begins there. math-verify does not say where it found
    an expression, so words are taken away from the end until it reads another one, or none; None where that takes too
    many.
    """
    answer, box = _reading(completion)
    if not answer or (box is None and truncated):
        return len(completion) if box is None else box
    words = [match.start() for match in _WORDS.finditer(completion)][::-1]
    end = len(completion)
    if box is not None:
        end, words = box, [box, *words]
    tries = 0
    for start in words:
        if start > end:
            continue  # within a box
        said, box = _reading(completion[:start])
        if not (said and _equal(answer, said)):
            return start
        if box is not None:
            end = box
        tries += 1
        if tries == _MOST_WORDS:
            return None
    return 0


def _reading(text: str) -> tuple[list[object], int | None]:
    """What the last boxes, else the final expression say, and where these boxes start."""
    box = place_of_box(text)
    return (read_completion(text), None) if box is None else (read_expression(box.text), box.start)


def is_readable(answer: str) -> bool:
    """True where math-verify reads the reference answer. Runs in a worker.

    One that may take long to evaluate is also compared with a number, so that this already takes as long here.
    """
    expressions = read_answer(answer)
    if _LARGE.search(answer):
        _equal(expressions, read_expression("1"))
    return bool(expressions)


def _equal(answer: Sequence[object], found: Sequence[object]) -> bool:
    """Whether math-verify calls two readings equal; small numbers must also agree relative to their size.

    math-verify compares six decimals, so it accepts 1.6e-19 for 1.7e-19.
    """
    from math_verify import verify

    if not verify(list(answer), list(found), timeout_seconds=None):
        return False
    return not answer or not found or _same_size(answer[0], found[0])


def _same_size(answer: Any, found: Any) -> bool:
    """False for two real numbers that are small and differ relative to their size."""
    if not all(getattr(reading, "is_comparable", False) for reading in (answer, found)):
        return True
    a, b = answer.evalf(), found.evalf()
    return bool(abs(a) >= SMALL or abs(a - b) <= RELATIVE * abs(a))


def warm_up() -> None:
    """Import math-verify before the first check, so that no check's time limit includes it."""
    check_math(r"\boxed{\sqrt{2}}", "3", False)


class MathEquivalence(Pooled):
    """A `tasks.verifiers.protocol.VerifierKind` of a pool of checking processes."""

    version: ClassVar[int] = 2
    packages: ClassVar[tuple[str, ...]] = ("math-verify", "sympy")

    def __init__(self, settings: MathVerifier) -> None:
        self._settings = settings

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order."""
        return [verdict is True for verdict in self.started().results(check_math, attempts)]

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """The last box of each completion, else its final expression."""
        calls = [(attempt.completion, attempt.truncated) for attempt in attempts]
        return list(self.started().results(shown_answer, calls))

    def places(self, attempts: Sequence[Attempt]) -> list[int | None]:
        """Where what it reads begins; not known where that takes too long."""
        calls = [(attempt.completion, attempt.truncated) for attempt in attempts]
        return list(self.started().results(answer_start, calls))

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """The first reference answer that math-verify does not read within the time limit, and why."""
        empty = next((i for i, answer in enumerate(answers) if not answer.strip()), None)
        if empty is not None:
            return empty, "is empty"
        uncertain = [a for a in dict.fromkeys(answers) if not _PLAIN_NUMBER.fullmatch(a)]
        found = self.started().results(is_readable, ((answer,) for answer in uncertain)) if uncertain else ()
        for answer, readable in zip(uncertain, found, strict=True):
            if readable is None:
                limits = f"verifier.seconds ({self._settings.seconds:g} s) and {MEMORY >> 30} GiB"
                why = f"cannot be read by math-verify within {limits}; simplify it, or choose another verifier"
                return answers.index(answer), why
            if not readable:
                why = "contains no mathematics that math-verify can read; choose another verifier"
                return answers.index(answer), why
        return None

    def make_pool(self) -> CheckPool:
        """See `Pooled`."""
        return CheckPool(self._settings.workers, self._settings.seconds, warm_up)
