"""math-verify in worker processes, under a time limit kept by the parent.

math-verify's own limit is a signal, which works on a main thread only, and sympy can hang in C code: so each check
runs in a process that is killed when its time is over (pebble's pool), and counts as wrong.
"""

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import TimeoutError as CheckTimeout

from pebble import ProcessExpired, ProcessPool

from schemas.config import MathVerifier

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time limit is left to us, as it is


def check_math(completion: str, answer: str, cut: bool) -> bool:
    """True where the completion's final expression is equivalent to the answer. Runs in a worker."""
    from math_verify import parse, verify

    if cut and not _has_closed_box(completion):
        return False
    return bool(verify(parse_answer(answer), parse(completion, parsing_timeout=None), timeout_seconds=None))


def parse_answer(answer: str) -> list[object]:
    """The reference answer as math-verify reads it; empty where it sees no mathematics."""
    from math_verify import parse

    return list(parse(answer, parsing_timeout=None) or parse(f"${answer}$", parsing_timeout=None))


def _has_closed_box(text: str) -> bool:
    """True where the last `\\boxed{` is closed again."""
    _, found, rest = text.rpartition("\\boxed{")
    depth = 1
    for character in rest if found else "":
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return True
    return False


class MathPool:
    """A pool of checking processes; started at its first use, ended by `close`."""

    def __init__(self, settings: MathVerifier) -> None:
        self._settings = settings
        self._pool = ProcessPool(
            max_workers=settings.workers, context=multiprocessing.get_context("spawn"), initializer=warm_up
        )

    def check_all(self, attempts: Sequence[tuple[str, str, bool]]) -> list[bool]:
        """Verdicts on (completion, answer, cut), in order."""
        futures = [
            self._pool.schedule(check_math, args=list(attempt), timeout=self._settings.seconds) for attempt in attempts
        ]
        verdicts = []
        for future in futures:
            try:
                verdicts.append(bool(future.result()))
            except (CheckTimeout, ProcessExpired):
                verdicts.append(False)
        return verdicts

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()


def warm_up() -> None:
    """Import math-verify before the first check, so that no check's time limit pays for it."""
    check_math("$1$", "1", False)
