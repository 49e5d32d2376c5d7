"""Progress: stages publish it, listeners display it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Step(NamedTuple):
    """Progress of a stage: `done` more units are finished; the first step of a stage gives the total."""

    stage: str
    done: int
    total: int | None = None


@dataclass
class Amount:
    """How much of a stage is done, since when, and an estimate of the time left."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    over: bool = False
    """The stage has finished, even if the total is not reached, for example because the rest was cached."""

    def add(self, done: int) -> None:
        """Add finished units; a retried task reports some of them again, so the sum is capped at the total."""
        self.done = min(self.total, self.done + done)

    @property
    def complete(self) -> bool:
        """True if everything is done."""
        return self.done >= self.total

    def __str__(self) -> str:
        """Done, total and elapsed time; once something is done, also the rate and the estimated time left."""
        seconds = time.monotonic() - self.started
        text = f"{self.done:,} of {self.total:,}, {seconds:.0f} s"
        if self.done and seconds > 0:
            text += f", {self.done / seconds:.3g}/s"
            if not self.complete and not self.over:
                text += f", about {(self.total - self.done) * seconds / self.done:.0f} s left"
        return text


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Add a listener; the returned function removes it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def publish(stage: str, done: int, total: int | None = None) -> None:
    """Report progress to all listeners."""
    for listener in _listeners:
        listener(Step(stage, done, total))


@contextmanager
def capture_progress() -> Iterator[Counter[str]]:
    """Count the progress published during a block, by stage, for a process without listeners."""
    events: Counter[str] = Counter()
    stop = listen(lambda step: events.update({step.stage: step.done}))
    try:
        yield events
    finally:
        stop()
