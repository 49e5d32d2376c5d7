"""How far the work is: stages tell, whoever listens shows."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Step(NamedTuple):
    """Some of a stage's work is done: `done` more of `unit`; the first step of a stage tells the total."""

    stage: str
    done: int
    total: int | None = None


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Add a listener; the returned function takes it away."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def report(stage: str, done: int, total: int | None = None) -> None:
    """Tell all listeners."""
    for listener in _listeners:
        listener(Step(stage, done, total))


@contextmanager
def heard() -> Iterator[Counter[str]]:
    """What is done while the block runs, by stage: for a process in which nobody listens."""
    told: Counter[str] = Counter()
    stop = listen(lambda step: told.update({step.stage: step.done}))
    try:
        yield told
    finally:
        stop()
