"""Checks in worker processes, each with limits of time and memory enforced from outside.

A check runs in a process that is killed when its time is up (pebble's pool). A completion is model output, so one
that exhausts time, memory or stack is wrong. Any other error of a worker ends the run.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as CheckTimeout
from contextlib import suppress
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool

from tasks.engines.stopping import POLL_SECONDS, check_stopped

MEMORY = 2 << 30
"""Bytes that a worker may use beyond its use at the start."""


class CheckPool:
    """A pool of checking processes, started on first use and stopped by `close`.

    Args:
        workers: number of processes.
        seconds: time limit of one check.
        start: called once in each process, before its first check; then memory is limited.
        arguments: of `start`.
    """

    def __init__(self, workers: int, seconds: float, start: Callable[..., None], *arguments: object) -> None:
        self._seconds = seconds
        self._pool = ProcessPool(
            max_workers=workers,
            context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(start, arguments),
        )

    def results(self, function: Callable[..., Any], calls: Iterable[Sequence[object]]) -> Iterator[Any]:
        """Result of each call, in order; None where it exhausted time, memory or stack."""
        futures = [self._pool.schedule(function, args=list(call), timeout=self._seconds) for call in calls]
        try:
            for future in futures:
                while not future.done():
                    with suppress(CheckTimeout):  # of this wait
                        future.exception(POLL_SECONDS)
                    check_stopped()
                try:
                    yield future.result()
                except (CheckTimeout, ProcessExpired, MemoryError, RecursionError):
                    yield None
        finally:  # what an error or an interrupt leaves undone
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()


def _start(start: Callable[..., None], arguments: Sequence[object]) -> None:
    start(*arguments)
    if sys.platform == "linux":
        import resource

        limit = psutil.Process().memory_info().vms + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Pooled:
    """What verifiers have that check in processes, which are started on first use."""

    _pool: CheckPool | None = None

    def make_pool(self) -> CheckPool:
        """The pool, as its settings want it."""
        raise NotImplementedError

    def started(self) -> CheckPool:
        """The pool."""
        if self._pool is None:
            self._pool = self.make_pool()
        return self._pool

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
