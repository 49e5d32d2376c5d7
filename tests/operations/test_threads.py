"""Parts beside each other: every one has its result, whoever has to wait; errors and interrupts end the others."""

import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest

from tasks.engines.stopping import RunStoppedError, check_stopped
from tasks.operations.threads import beside_each_other
from tests.helpers.places import ROOT

NAME: ContextVar[str] = ContextVar("NAME", default="none")


def wait_until_stopped() -> None:
    """As a thread does that draws or scores: it ends when it asks for its turn."""
    for _ in range(2000):
        check_stopped()
        time.sleep(0.01)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_part_has_a_result_also_those_that_have_to_wait(threads: int) -> None:
    tries: dict[int, int] = {}

    def work(part: int) -> int | None:
        tries[part] = tries.get(part, 0) + 1
        return None if part % 3 == 0 and tries[part] < 3 else part * 10

    results = list(beside_each_other(work, range(7), threads))
    assert sorted(results) == [10 * part for part in range(7)]
    assert tries == {part: 3 if part % 3 == 0 else 1 for part in range(7)}
    assert results[-3:] == [0, 30, 60] or threads > 1


def test_so_many_run_at_once_with_the_callers_context() -> None:
    met, names = threading.Barrier(4, timeout=20), []
    NAME.set("caller")

    def work(part: int) -> int:
        met.wait()
        names.append(NAME.get())
        return part

    assert sorted(beside_each_other(work, range(8), 4)) == list(range(8)) and set(names) == {"caller"}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_stops_the_others_and_is_raised(error: BaseException) -> None:
    ends: list[BaseException | None] = []

    def work(part: int) -> int:
        if part == 1:
            raise error
        try:
            wait_until_stopped()
        except RunStoppedError as stopped:
            ends.append(stopped)
            raise
        return part

    with pytest.raises(type(error)):
        list(beside_each_other(work, range(4), 2))
    assert len(ends) == 1


def test_a_caller_that_leaves_stops_the_others() -> None:
    ends: list[int] = []

    def work(part: int) -> int:
        if part:
            with pytest.raises(RunStoppedError):
                wait_until_stopped()
            ends.append(part)
        return part

    results = beside_each_other(work, range(3), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert ends


INTERRUPTED = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import polars  # after the handler, as in commands: it installs its own, which does not wake a waiting thread
from tasks.engines.stopping import check_stopped
from tasks.operations.threads import beside_each_other

def work(part):
    os.write(1, b"started\\n")
    for _ in range(300):
        time.sleep(0.1)
        check_stopped()

def again():
    return list(beside_each_other(lambda part: part, range(4), 4))

try:
    list(beside_each_other(work, range(4), 4))
except KeyboardInterrupt:
    print("interrupted", sorted(again()) == [0, 1, 2, 3], flush=True)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupt_is_heard_while_parts_run_and_the_process_goes_on(signals: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline() == "started\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        if signals == 1:
            assert process.stdout.readline() == "interrupted True\n"
        else:
            time.sleep(0.02)
            process.send_signal(signal.SIGINT)
        process.wait(20)
        assert time.monotonic() - began < 5  # not 30


def test_parts_that_wait_do_not_keep_others_from_running() -> None:
    started = time.monotonic()
    blocked = {0, 1}

    def work(part: int) -> int | None:
        if part in blocked and time.monotonic() - started < 0.5:
            return None
        return part

    assert set(list(beside_each_other(work, range(5), 2))[:3]) == {2, 3, 4}
