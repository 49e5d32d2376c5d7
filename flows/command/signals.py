"""Signals that end a command: each becomes an exception, so that what the command started is ended too."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = 0.2
"""Seconds after which a signal that somebody swallowed comes again."""
_IMPORT = "<frozen importlib._bootstrap>"


class Ended(KeyboardInterrupt):
    """A signal has asked this command to end."""


class _Signals:
    """Those that the running command has received.

    Handlers run between any two instructions of the main thread, so nothing here takes a lock: each step leaves
    something that a handler can act on.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.held = 0  # blocks that are to be done whole
        self.waiting = False  # one has arrived in such a block
        self.repeated = False  # the next one is sent by `repeat`
        self.process = os.getpid()

    def ended(self) -> Ended:
        return Ended(signal.Signals(self.received[0]).name)

    def act(self, number: int, frame: FrameType | None) -> None:
        """End the command: at once, or when a later call finds what it is in the middle of done."""
        repeated, self.repeated = self.repeated, False
        if not repeated:
            self.received.append(number)
        if self.held:
            self.waiting = self.waiting or not repeated
            return
        if repeated and _is_on_its_way(sys.exception()):
            return
        first = repeated or len(self.received) == 1
        if first and os.getpid() == self.process and _is_importing(frame):  # else modules are left half made
            return
        raise self.ended()

    def repeat(self, over: threading.Event) -> None:
        """Send a signal again and again: what it raised may have been swallowed, or become an error that was."""
        main = threading.main_thread().ident
        while not over.wait(_AGAIN):
            if self.received and main is not None:
                self.repeated = True
                signal.pthread_kill(main, self.received[0])


_signals = _Signals()


def ended_by_signals(command: Callable[[], int]) -> int:
    """Run a command in which SIGTERM and SIGHUP do as Ctrl-C does.

    What was ignored when the command was started, as SIGHUP is under `nohup`, stays so.

    Returns:
        the command's exit code; after a signal 128 + its number, whatever the command has made of it, and one line on
        stderr says so.
    """
    global _signals
    _signals = _Signals()
    over = threading.Event()
    before = {n: signal.signal(n, _signals.act) for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN}
    shown, sys.unraisablehook = sys.unraisablehook, _quiet
    threading.Thread(target=_signals.repeat, args=[over], daemon=True).start()
    try:
        with signals_first():
            return command()
    except Ended:
        _signals.held += 1  # it has ended
        atexit.register(_ignore)  # the interpreter's own end takes a while, and the exit code is known
        print("interrupted; what is done is kept, run again to continue", file=sys.stderr)
        return 128 + _signals.received[0]
    finally:
        _signals.held += 1
        over.set()
        sys.unraisablehook = shown
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals = _Signals()  # what this command received is not of the next one in this process


@contextmanager
def signals_first() -> Iterator[None]:
    """A signal counts more than how the block ends: with an error that it became, or well, as it was swallowed.

    Raises:
        Ended: a signal has been received.
    """
    try:
        yield
    finally:
        if _signals.received:
            raise _signals.ended()


@contextmanager
def signals_held() -> Iterator[None]:
    """What must be done whole is: a signal of `ended_by_signals` that arrives while the block runs acts after it.

    In other threads than the main one the block just runs: Python delivers no signal there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = _signals
    held.held += 1
    try:
        yield
    finally:
        held.held -= 1
        if held.waiting and not held.held:
            held.waiting = False
            raise held.ended()


def _ignore() -> None:
    """Let no further signal end the interpreter with another exit code than the command's."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _quiet(unraisable: "sys.UnraisableHookArgs") -> None:
    """Say nothing of a signal that a destructor has swallowed: it comes again."""
    if not isinstance(unraisable.exc_value, Ended):
        sys.__unraisablehook__(unraisable)


def _is_on_its_way(error: BaseException | None) -> bool:
    """True while blocks end because of a signal, also where that meets errors of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Ended):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False
