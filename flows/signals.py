"""Signals that end a command: each becomes an exception, so that what the command started is ended too."""

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that was interrupted."""

P = ParamSpec("P")


class Ended(KeyboardInterrupt):
    """A signal has asked this command to end."""


def ended_by_signals(command: Callable[P, int]) -> Callable[P, int]:
    """A command in which SIGTERM and SIGHUP do as Ctrl-C does; its exit code is 128 + the signal's number.

    What was ignored when the command was started, as SIGHUP is under `nohup`, stays so.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        received: list[int] = []

        def end(number: int, frame: FrameType | None) -> None:
            received.append(number)
            raise Ended(signal.Signals(number).name)

        before = {n: signal.signal(n, end) for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN}
        try:
            code = command(*args, **kwargs)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 128 + received[0] if received and code == INTERRUPTED else code

    return run


@contextmanager
def signals_held() -> Iterator[None]:
    """What must be done whole is: a signal that arrives while the block runs acts after it.

    In other threads than the main one the block just runs: Python delivers no signal there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
