"""Signals that end a command: each becomes an exception, so that the command cleans up what it has started."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPEAT_SECONDS = 0.2
"""Interval at which a received signal is sent again, in case its exception was swallowed."""
_IMPORT = "<frozen importlib._bootstrap>"


class Ended(KeyboardInterrupt):
    """A signal has requested the end of this command."""


class _Signals:
    """State of the signals that the running command has received.

    Handlers run between any two instructions of the main thread, so nothing here takes a lock: after each step the
    state is consistent for a handler.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.deferred = 0  # open blocks that must not be interrupted
        self.pending = False  # one has arrived in such a block
        self.repeated = False  # the next one comes from `repeat`
        self.process = os.getpid()

    def ended(self) -> Ended:
        return Ended(signal.Signals(self.received[0]).name)

    def act(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: end the command now, or once a later call finds that it can be interrupted."""
        repeated, self.repeated = self.repeated, False
        if not repeated:
            self.received.append(number)
        if self.deferred:
            self.pending = self.pending or not repeated
            return
        if repeated and _is_propagating(sys.exception()):
            return
        first = repeated or len(self.received) == 1
        if first and os.getpid() == self.process and _is_importing(frame):  # else modules stay half initialised
            return
        raise self.ended()

    def repeat(self, over: threading.Event) -> None:
        """Resend a received signal: its exception may have been swallowed, or replaced by an error that was."""
        main = threading.main_thread().ident
        while not over.wait(_REPEAT_SECONDS):
            if self.received and main is not None:
                self.repeated = True
                signal.pthread_kill(main, self.received[0])


_signals = _Signals()


def ended_by_signals(command: Callable[[], int]) -> int:
    """Run a command in which SIGTERM and SIGHUP act like Ctrl-C.

    Signals ignored when the command starts, such as SIGHUP under `nohup`, stay ignored.

    Returns:
        the command's exit code; after a signal 128 + its number, however the command handled it, with one line on
        stderr.
    """
    global _signals
    _signals = _Signals()
    over = threading.Event()
    before = {n: signal.signal(n, _signals.act) for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN}
    hook, sys.unraisablehook = sys.unraisablehook, _quiet
    threading.Thread(target=_signals.repeat, args=[over], daemon=True).start()
    try:
        with signals_first():
            return command()
    except Ended:
        _signals.deferred += 1  # it has ended
        atexit.register(_ignore)  # the interpreter takes a while to exit, and the exit code is decided
        print("interrupted; completed work is kept, run again to continue", file=sys.stderr)
        return 128 + _signals.received[0]
    finally:
        _signals.deferred += 1
        over.set()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals = _Signals()  # the next command in this process starts clean


@contextmanager
def signals_first() -> Iterator[None]:
    """A received signal takes precedence over how the block ends: with another error, or normally if it was swallowed.

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
    """The block is not interrupted: a signal of `ended_by_signals` that arrives while it runs takes effect after it.

    Outside the main thread the block just runs, as Python delivers no signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    state = _signals
    state.deferred += 1
    try:
        yield
    finally:
        state.deferred -= 1
        if state.pending and not state.deferred:
            state.pending = False
            raise state.ended()


def _ignore() -> None:
    """Ignore further signals, so that the interpreter exits with the command's exit code."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _quiet(unraisable: "sys.UnraisableHookArgs") -> None:
    """Do not report a signal that a destructor has swallowed: it is sent again."""
    if not isinstance(unraisable.exc_value, Ended):
        sys.__unraisablehook__(unraisable)


def _is_propagating(error: BaseException | None) -> bool:
    """True while a signal's exception propagates, also as the cause or context of other errors."""
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
