"""A verifier that is a function of the user's own, in worker processes."""

from collections.abc import Sequence
from contextlib import suppress
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
        lawful = isinstance(verdict, bool) or (type(verdict) is int and verdict in (0, 1))
        why = "" if lawful else f"it gives {quoted(verdict)}; give true or false"
    except (MemoryError, RecursionError):  # of model output
        raise
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of the user's code; an error of ours follows
        why = type(error).__name__
        with suppress(Exception):  # of an error's own text
            why += f": {reason(error)}"
    if why:
        raise InputError(_FIELD, f"{quoted(place)} fails on completion {quoted(completion)}: {why}")
    return bool(verdict)


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

    def places(self, attempts: Sequence[Attempt]) -> list[int | None]:
        """Not known: the function gives verdicts only."""
        return [None] * len(attempts)

    def read_all(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """A function gives a verdict, and does not tell what it reads."""
        return [None] * len(attempts)

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        """The first answer that the function does not judge in time, with an empty completion."""
        calls = [(self._settings.function, "", answer) for answer in dict.fromkeys(answers)]
        limit = f"{self._settings.seconds:g} s (verifier.seconds)"
        for i, verdict in enumerate(self.started().results(check, calls)):
            if verdict is None:
                return answers.index(calls[i][2]), f"is not judged within {limit}"
        return None

    def make_pool(self) -> CheckPool:
        """See `Pooled`."""
        settings = self._settings
        user_function(_FIELD, settings.function)  # here first: an error of a worker's start says little
        return CheckPool(settings.workers, settings.seconds, _import, settings.function)
