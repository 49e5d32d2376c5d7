"""Classifies failures: transient, fatal for the whole run, or limited to one question."""

import time
from collections.abc import Callable
from typing import TypeVar

from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.inputs.errors import InputError
from tasks.store.outages import LASTING
from tasks.store.store import StoreError

_FATAL = (EngineError, InputError, StoreError, OSError, MemoryError)

Result = TypeVar("Result")


def is_transient(error: BaseException) -> bool:
    """True for errors that may pass without a change to the run: a full disk, an unreachable store or server."""
    if isinstance(error, EngineAwayError):
        return True
    return isinstance(error, OSError) and not isinstance(error, LASTING)


def is_fatal(error: BaseException) -> bool:
    """True for errors that would affect every question; any other error concerns one question only."""
    return isinstance(error, _FATAL)


def patiently(action: Callable[[], Result], retries: int, seconds: float) -> Result:
    """The result of an action, retried after transient errors with exponential backoff.

    Args:
        retries: maximum number of retries.
        seconds: pause before the first retry; it doubles for each further one.
    """
    for i in range(retries):
        try:
            return action()
        except (OSError, EngineAwayError) as error:
            if not is_transient(error):
                raise
            time.sleep(seconds * 2**i)
    return action()
