"""How far the work is: stages tell, whoever listens shows."""

from collections.abc import Callable
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
