"""What models have done: tokens of each thread on its own, and the seconds in which any thread used one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class ThreadCount(threading.local):
    """A number that every thread has for itself, so that each question's share of shared work is known."""

    value = 0

    def add(self, n: int) -> None:
        """Count n more."""
        self.value += n

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing in a block, such as the test of a model."""
        before = self.value
        try:
            yield
        finally:
            self.value = before


SCORED = ThreadCount()
"""Tokens that went through models for scores, padding included."""


class BusyTime:
    """Seconds in which at least one thread was in a block of `measured`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._since, self._total = 0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        with self._lock:
            return self._total + (time.monotonic() - self._since if self._inside else 0.0)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time of a block, once however many threads are in one."""
        with self._lock:
            if self._inside == 0:
                self._since = time.monotonic()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._total += time.monotonic() - self._since


MODEL_TIME = BusyTime()
"""Seconds in which this process computed with a model, or waited for servers that did."""
