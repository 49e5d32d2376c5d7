"""A verifier that is a function of the user's own, in worker processes."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.config import PythonVerifier
from schemas.text import quoted, reason
from tasks.inputs.errors import InputError
from tasks.operations.user_code import user_function
from tasks.verifiers.processes import CheckPool, Pooled
from tasks.verifiers.protocol import Attempt

_FIELD = "verifier.function"


def check(place: str, completion: str, answer: str) -> bool:
    """The function's verdict. Runs in a worker.

    Raises:
        InputError: it fails, or gives something else than true or false.
    """
    try:
        verdict = user_function(_FIELD, place)(completion, answer)
    except (MemoryError, RecursionError):  # of model output
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(_FIELD, f"{quoted(place)} fails on completion {quoted(completion)}: {why}") from error
    if isinstance(verdict, bool) or verdict in (0, 1):
        return bool(verdict)
    raise InputError(_FIELD, f"{quoted(place)} gives {quoted(verdict)} for {quoted(completion)}; give true or false")


def _import(place: str) -> None:
    user_function(_FIELD, place)


class PythonFunction(Pooled):
    """A `tasks.verifiers.protocol.VerifierKind` of a pool of checking processes."""

    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: PythonVerifier) -> None:
        self._settings = settings

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        """Verdicts, in order; a completion that the length limit cut is judged as it is."""
        calls = [(self._settings.function, a.completion, a.answer) for a in attempts]
        return [verdict is True for verdict in self.started().results(check, calls)]

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """A function gives a verdict, and does not tell what it reads."""
        return [None] * len(attempts)

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """An answer that the function fails on, with an empty completion, ends the run with its error."""
        calls = [(self._settings.function, "", answer) for answer in dict.fromkeys(answers)]
        for _ in self.started().results(check, calls):
            pass
        return None

    def make_pool(self) -> CheckPool:
        """See `Pooled`."""
        settings = self._settings
        user_function(_FIELD, settings.function)  # here first: an error of a worker's start says little
        return CheckPool(settings.workers, settings.seconds, _import, settings.function)
