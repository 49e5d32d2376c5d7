"""Whose turn it is to compute: threads that share a machine's cores or its GPU work one after another."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident
from types import TracebackType

from tasks.engines.stopping import check_stopped, wait_until


class Turn:
    """A reentrant lock that threads get in the order in which they ask for it."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        self._acquire(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release(1)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let others compute while a block waits; without effect in a thread whose turn it is not."""
        depth = self._depth if self._owner == get_ident() else 0
        if depth:
            self._release(depth)
        try:
            yield
        finally:
            if depth:
                self._acquire(depth)

    def _acquire(self, depth: int) -> None:
        check_stopped()
        with self._changed:
            if self._owner == get_ident():
                self._depth += depth
                return
            ticket = object()
            self._queue.append(ticket)
            try:
                wait_until(self._changed, lambda: self._owner is None and self._queue[0] is ticket)
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
