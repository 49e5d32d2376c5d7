"""The one call that stages use, whatever the kind of verifier."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.config import ChoiceVerifier, ExactVerifier, MathVerifier, NumericVerifier
from schemas.config import Verifier as VerifierSettings
from tasks.verifiers.math import MEMORY, MathPool
from tasks.verifiers.numbers import parse_number
from tasks.verifiers.text import choice, exact, label_of, numeric

_PLAIN_NUMBER = re.compile(
    r"-?(?:[0-9]{1,15}|[0-9]{1,3}(?:,[0-9]{3}){1,4})(?:\.[0-9]{1,15})?"
)  # read by math-verify without fail


class Attempt(NamedTuple):
    """A completion to be checked; `truncated` says that the length limit ended it."""

    completion: str
    answer: str
    truncated: bool


class Verifier:
    """Checks attempts in bulk; each distinct one once."""

    def __init__(self, settings: VerifierSettings) -> None:
        self._settings = settings
        self._pool: MathPool | None = None

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order."""
        distinct = list(dict.fromkeys(attempts))
        settings = self._settings
        if isinstance(settings, MathVerifier):
            if self._pool is None:
                self._pool = MathPool(settings)
            verdicts = self._pool.check_all(distinct)
        else:
            check = (
                exact(settings)
                if isinstance(settings, ExactVerifier)
                else numeric(settings)
                if isinstance(settings, NumericVerifier)
                else choice(settings)
            )
            verdicts = [check(*attempt) for attempt in distinct]
        known = dict(zip(distinct, verdicts, strict=True))
        return [known[a] for a in attempts]

    def close(self) -> None:
        """End worker processes, if any."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def find_bad_answer(settings: VerifierSettings, answers: Sequence[str]) -> tuple[int, str] | None:
    """The first reference answer that the verifier could never accept, as its index and why; None where all are fine.

    The math verifier's answers are read in worker processes, each under the time limit of a check.
    """
    bad = next(((i, error) for i, a in enumerate(answers) if (error := _answer_error(settings, a))), None)
    if bad is not None or not isinstance(settings, MathVerifier):
        return bad
    unread = _find_unreadable(settings, dict.fromkeys(a for a in answers if not _PLAIN_NUMBER.fullmatch(a)))
    return None if unread is None else (answers.index(unread[0]), unread[1])


def _answer_error(settings: VerifierSettings, answer: str) -> str | None:
    if not answer.strip():
        return "is empty"
    if isinstance(settings, ChoiceVerifier) and label_of(settings, answer) is None:
        return f"is not one of the labels {settings.labels}"
    if isinstance(settings, NumericVerifier):
        try:
            parse_number(answer)
        except ValueError:
            return "is not a finite number; choose another verifier"
    return None


def _find_unreadable(settings: MathVerifier, answers: Iterable[str]) -> tuple[str, str] | None:
    """The first answer that math-verify does not read within the time limit, and why."""
    answers = list(answers)
    if not answers:
        return None
    pool = MathPool(settings)
    try:
        for answer, readable in zip(answers, pool.readable(answers), strict=True):
            if readable is None:
                limits = f"verifier.seconds ({settings.seconds:g} s) and {MEMORY >> 30} GiB"
                return answer, f"is not read by math-verify within {limits}; simplify it, or choose another verifier"
            if not readable:
                return answer, "holds no mathematics that math-verify can read; choose another verifier"
    finally:
        pool.close()
    return None
