"""The one call that stages use, whatever the kind of verifier."""

from collections.abc import Sequence
from typing import NamedTuple

from schemas.config import ChoiceVerifier, ExactVerifier, MathVerifier, NumericVerifier
from schemas.config import Verifier as VerifierSettings
from tasks.verifiers.math import MathPool, parse_answer
from tasks.verifiers.text import choice, exact, numeric, parse_number


class Attempt(NamedTuple):
    """A completion to be checked; `cut` says that the length limit ended it."""

    completion: str
    answer: str
    cut: bool


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


def answer_error(settings: VerifierSettings, answer: str) -> str | None:
    """Why the verifier could never accept this reference answer; None where it could."""
    if not answer.strip():
        return "is empty"
    if isinstance(settings, ChoiceVerifier) and answer.strip() not in settings.labels:
        return f"is not one of the labels {settings.labels}"
    if isinstance(settings, MathVerifier) and not parse_answer(answer):
        return "holds no mathematics that math-verify can read; choose another verifier"
    if isinstance(settings, NumericVerifier):
        try:
            parse_number(answer)
        except ValueError:
            return "is not a number; choose another verifier"
    return None
