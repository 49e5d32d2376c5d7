"""Counts of each thread on its own."""

import threading


class ThreadCount(threading.local):
    """A number that every thread has for itself, so that each question's share of shared work is known."""

    value = 0

    def add(self, n: int) -> None:
        """Count n more."""
        self.value += n
