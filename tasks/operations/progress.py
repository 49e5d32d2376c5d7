"""How far the work is: stages tell, whoever listens shows."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Step(NamedTuple):
    """Some of a stage's work is done: `done` more of `unit`; the first step of a stage tells the total."""

    stage: str
    done: int
    total: int | None = None


@dataclass
class Amount:
    """How much of a stage is done, since when, and what that says of the rest."""

    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    over: bool = False
    """Nothing more will come, whatever is left of the total: of what was cached, say."""

    def add(self, done: int) -> None:
        """Some more is done; a task that is tried again tells some of it again."""
        self.done = min(self.total, self.done + done)

    @property
    def complete(self) -> bool:
        """True where all is done."""
        return self.done >= self.total

    def __str__(self) -> str:
        """Done, total and time; once something is done, its rate and the time that is left."""
        seconds = time.monotonic() - self.began
        text = f"{self.done:,} of {self.total:,}, {seconds:.0f} s"
        if self.done and seconds > 0:
            text += f", {self.done / seconds:.3g}/s"
            if not self.complete and not self.over:
                text += f", about {(self.total - self.done) * seconds / self.done:.0f} s left"
        return text


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Add a listener; the returned function takes it away."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def publish(stage: str, done: int, total: int | None = None) -> None:
    """Tell all listeners."""
    for listener in _listeners:
        listener(Step(stage, done, total))


@contextmanager
def capture_progress() -> Iterator[Counter[str]]:
    """What is done while the block runs, by stage: for a process in which nobody listens."""
    events: Counter[str] = Counter()
    stop = listen(lambda step: events.update({step.stage: step.done}))
    try:
        yield events
    finally:
        stop()
