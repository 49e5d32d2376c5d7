"""What kind a failure is: one that may pass, one of the whole run, or one of a single question."""

import time
from collections.abc import Callable
from typing import TypeVar

from tasks.engines.protocol import EngineAwayError, EngineError
from tasks.inputs.questions import InputError
from tasks.store.outages import LASTING
from tasks.store.store import StoreError

_FATAL = (EngineError, InputError, StoreError, OSError, MemoryError)

Result = TypeVar("Result")


def is_transient(error: BaseException) -> bool:
    """True for what may go away without a change to the run: a full disk, a store or a server out of reach."""
    if isinstance(error, EngineAwayError):
        return True
    return isinstance(error, OSError) and not isinstance(error, LASTING)


def is_fatal(error: BaseException) -> bool:
    """True for what would meet every question alike; anything else is one question's own."""
    return isinstance(error, _FATAL)


def patiently(action: Callable[[], Result], retries: int, seconds: float) -> Result:
    """What an action gives; after what may pass it is tried again, each time after twice the pause.

    Args:
        retries: times that it is tried again.
        seconds: before the first of them.
    """
    for i in range(retries):
        try:
            return action()
        except (OSError, EngineAwayError) as error:
            if not is_transient(error):
                raise
            time.sleep(seconds * 2**i)
    return action()
