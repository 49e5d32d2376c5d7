"""Whose turn it is to compute: threads that share a machine's cores or its GPU work one after another."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, get_ident
from types import TracebackType

from tasks.engines.protocol import EngineError


class RunStoppedError(EngineError):
    """The threads of the run are being ended."""


class Turn:
    """A reentrant lock that threads get in the order in which they ask for it."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0
        self._stopper: int | None = None
        self._aborts: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        self._acquire(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release(1)

    @contextmanager
    def released(self, abort: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let others compute while a block waits; without effect in a thread whose turn it is not.

        Args:
            abort: ends the wait when the threads are stopped.
        """
        depth = self._depth if self._owner == get_ident() else 0
        if depth:
            self._release(depth)
        self._aborts.append(abort)
        try:
            yield
        finally:
            self._aborts.remove(abort)
            if depth:
                self._acquire(depth)

    def stop(self) -> None:
        """Let all threads but this one end: what they wait for is aborted, and they get an error in place of a turn."""
        with self._changed:
            self._stopper = get_ident()
            self._changed.notify_all()
        for abort in list(self._aborts):
            abort()

    def resume(self) -> None:
        """Give turns again, once the threads that were to end have ended."""
        self._stopper = None

    def check(self) -> None:
        """To be called now and then by work that takes long.

        Raises:
            RunStoppedError: the thread is to end.
        """
        if self._is_stopped():
            raise RunStoppedError("the run ends")

    def _is_stopped(self) -> bool:
        return self._stopper is not None and self._stopper != get_ident()

    def _acquire(self, depth: int) -> None:
        self.check()
        with self._changed:
            if self._owner == get_ident():
                self._depth += depth
                return
            ticket = object()
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._is_stopped() or (self._owner is None and self._queue[0] is ticket))
                self.check()
                self._owner, self._depth = get_ident(), depth
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _release(self, depth: int) -> None:
        with self._changed:
            if self._owner != get_ident():  # not taken back after `released`, as the thread is to end
                return
            self._depth -= depth
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()


TURN = Turn()
"""Of this process."""
