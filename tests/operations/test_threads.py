"""Parts beside each other: every one has its result, whoever has to wait; errors and interrupts end the others."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from tasks.engines.turn import TURN, RunStoppedError
from tasks.operations.threads import beside_each_other
from tests.helpers.threads import together

NAME: ContextVar[str] = ContextVar("NAME", default="none")


def wait_until_stopped() -> None:
    """As a thread does that draws or scores: it ends when it asks for its turn."""
    for _ in range(2000):
        TURN.check()
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
    assert together([TURN.check]) == [None]  # they were stopped until all had ended


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
    assert ends and together([TURN.check]) == [None]


def test_a_second_interrupt_leaves_the_others_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those that have not ended yet would go on, and the command wait for them."""
    ends: list[int] = []

    def work(part: int) -> int:
        if part == 0:
            raise KeyboardInterrupt
        with pytest.raises(RunStoppedError):
            wait_until_stopped()
        ends.append(part)
        return part

    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(beside_each_other(work, range(4), 4))
        assert sorted(ends) == [1, 2, 3]
        assert isinstance(together([TURN.check])[0], RunStoppedError)
    finally:
        TURN.resume()


def test_parts_that_wait_do_not_keep_others_from_running() -> None:
    started = time.monotonic()
    blocked = {0, 1}

    def work(part: int) -> int | None:
        if part in blocked and time.monotonic() - started < 0.5:
            return None
        return part

    assert set(list(beside_each_other(work, range(5), 2))[:3]) == {2, 3, 4}
