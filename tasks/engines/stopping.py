"""Threads that end together: where one has failed or the run is interrupted, the others end at their next wait."""

from collections.abc import Callable
from contextvars import ContextVar
from threading import Condition
from typing import TypeVar

from tasks.engines.protocol import EngineError

Part = TypeVar("Part")
Result = TypeVar("Result")

POLL_SECONDS = 0.2
"""Longest wait without a look at signals and stops: a signal does not wake the main thread where a library, such as
polars, has installed its own handler."""


class RunStoppedError(EngineError):
    """The threads of the run are being ended."""


class Group:
    """Threads that work on parts of one task."""

    def __init__(self) -> None:
        """A group of its own; in a thread of another group, it ends with that one."""
        self._parent, self._stopped = _GROUP.get(), False

    @property
    def stopped(self) -> bool:
        """True if the threads are to end."""
        return self._stopped or (self._parent is not None and self._parent.stopped)

    def stop(self) -> None:
        """Let all threads of the group end."""
        self._stopped = True

    def run(self, work: Callable[[Part], Result], part: Part) -> Result:
        """Work in the calling thread, as one of the group; the context must be the thread's own."""
        _GROUP.set(self)
        return work(part)


_GROUP: ContextVar[Group | None] = ContextVar("group", default=None)


def check_stopped() -> None:
    """To be called now and then by work that takes long.

    Raises:
        RunStoppedError: the calling thread is to end.
    """
    group = _GROUP.get()
    if group is not None and group.stopped:
        raise RunStoppedError("the run ends")


def wait_until(changed: Condition, done: Callable[[], bool]) -> None:
    """Wait for a condition, whose lock the caller holds.

    Raises:
        RunStoppedError: the calling thread is to end.
    """
    while not changed.wait_for(done, POLL_SECONDS):
        check_stopped()
