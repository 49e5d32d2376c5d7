"""Progress: stages publish it, listeners display it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Step(NamedTuple):
    """Progress of a stage.

    Attributes:
        stage: its name, or that of the draws it makes.
        done: units finished since the last step.
        total: units in all, in the first step of a stage.
        tokens: tokens that models have processed for them.
        over: nothing more is done, even if the total is not reached, as it was an upper bound.
    """

    stage: str
    done: int = 0
    total: int | None = None
    tokens: int = 0
    over: bool = False


@dataclass
class Amount:
    """How much of a stage is done, since when, and an estimate of the time left."""

    total: int
    done: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    over: bool = False
    """The stage has finished, even if the total is not reached, for example because the rest was cached."""

    def add(self, step: Step) -> None:
        """Add finished units; a retried task reports some of them again, so the sum is capped at the total."""
        self.done = min(self.total, self.done + step.done)
        self.tokens += step.tokens
        self.over = self.over or step.over

    @property
    def complete(self) -> bool:
        """True if everything is done."""
        return self.over or self.done >= self.total

    def __str__(self) -> str:
        """Done, total and elapsed time; once something is done, also the rates and the estimated time left."""
        seconds = time.monotonic() - self.started
        text = f"{self.done:,} of {self.total:,}, {seconds:.0f} s"
        if self.done and seconds > 0:
            text += f", {self.done / seconds:.3g}/s"
            if self.tokens:
                text += f", {self.tokens / seconds:,.0f} tokens/s"
            if not self.complete:
                text += f", about {(self.total - self.done) * seconds / self.done:.0f} s left"
        return text


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Add a listener; the returned function removes it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def publish(stage: str, done: int = 0, total: int | None = None, *, tokens: int = 0, over: bool = False) -> None:
    """Report progress to all listeners; the arguments are those of `Step`."""
    for listener in _listeners:
        listener(Step(stage, done, total, tokens, over))


class Events(dict[str, tuple[int, int]]):
    """Units done and tokens processed, by stage."""

    def add(self, step: Step) -> None:
        """Count one step."""
        done, tokens = self.get(step.stage, (0, 0))
        self[step.stage] = done + step.done, tokens + step.tokens


@contextmanager
def capture_progress() -> Iterator[Events]:
    """Count the progress published during a block, for a process without listeners."""
    events = Events()
    stop = listen(events.add)
    try:
        yield events
    finally:
        stop()
