"""The interface that stages use for every kind of verifier."""

from collections.abc import Sequence
from importlib.metadata import version

from schemas.config import Verifier as VerifierSettings
from schemas.text import after_thinking
from tasks.operations.implementations import implementation
from tasks.operations.user_code import code_fingerprint
from tasks.verifiers.protocol import Attempt, VerifierKind

_VERSION = 2
"""Of what all kinds have in common."""


class Verifier:
    """Checks attempts in bulk, each distinct one once."""

    def __init__(self, settings: VerifierSettings) -> None:
        self._kind = kind_of(settings)

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order, on what each attempt says after its thinking."""
        attempts = [a._replace(completion=after_thinking(a.completion)) for a in attempts]
        distinct = list(dict.fromkeys(attempts))
        known = dict(zip(distinct, self._kind.check_all(distinct), strict=True))
        return [known[a] for a in attempts]

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """What it takes for the answer of each attempt, in order; None where it finds none, or does not tell."""
        return self._kind.read_all([a._replace(completion=after_thinking(a.completion)) for a in attempts])

    def places(self, attempts: Sequence[Attempt]) -> list[int | None]:
        """Where the answer of each begins; its length where there is none, None where that is not known."""
        spoken = [after_thinking(a.completion) for a in attempts]
        found = self._kind.places([a._replace(completion=text) for a, text in zip(attempts, spoken, strict=True)])
        thought = [len(a.completion) - len(text) for a, text in zip(attempts, spoken, strict=True)]
        return [None if place is None else start + place for place, start in zip(found, thought, strict=True)]

    def close(self) -> None:
        """End worker processes, if any."""
        self._kind.close()


def kind_of(settings: VerifierSettings) -> VerifierKind:
    """The verifier kind that the settings select."""
    kind: VerifierKind = implementation(settings.implementation)(settings)
    return kind


def fingerprint(settings: VerifierSettings) -> str:
    """Versions of everything that determines verdicts: this project's verifier, and the packages it calls."""
    kind = kind_of(settings)
    packages = [f"{name} {version(name)}" for name in kind.packages]
    code = [code_fingerprint(settings.function)] if settings.kind == "python" else []
    return " ".join([f"{settings.kind} {kind.version}, {_VERSION}", *packages, *code])


def find_bad_answer(settings: VerifierSettings, answers: Sequence[str]) -> tuple[int, str] | None:
    """The first reference answer that the verifier could never accept, as index and reason; None where all are fine.

    The math verifier's answers are read in worker processes, each under the time limit of a check.
    """
    kind = kind_of(settings)
    try:
        return kind.problem(answers)
    finally:
        kind.close()
