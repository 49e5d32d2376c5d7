"""Parts beside each other: every one has its result, whoever has to wait; errors and interrupts end the others."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import pytest

from tasks.operations.threads import beside_each_other

NAME: ContextVar[str] = ContextVar("NAME", default="none")


def never() -> AbstractContextManager[None]:
    pytest.fail("nothing is to be stopped")


def setting(event: threading.Event) -> Callable[[], AbstractContextManager[None]]:
    """Sets the event while it stops."""

    @contextmanager
    def stopped() -> Iterator[None]:
        event.set()
        yield
        event.clear()

    return stopped


@pytest.mark.parametrize("threads", [1, 3])
def test_every_part_has_a_result_also_those_that_have_to_wait(threads: int) -> None:
    tries: dict[int, int] = {}

    def work(part: int) -> int | None:
        tries[part] = tries.get(part, 0) + 1
        return None if part % 3 == 0 and tries[part] < 3 else part * 10

    results = list(beside_each_other(work, range(7), threads, never))
    assert sorted(results) == [10 * part for part in range(7)]
    assert tries == {part: 3 if part % 3 == 0 else 1 for part in range(7)}
    assert results[-3:] == [0, 30, 60] or threads > 1


def test_so_many_run_at_once_with_the_callers_context() -> None:
    together, names = threading.Barrier(4, timeout=20), []
    NAME.set("caller")

    def work(part: int) -> int:
        together.wait()
        names.append(NAME.get())
        return part

    assert sorted(beside_each_other(work, range(8), 4, never)) == list(range(8)) and set(names) == {"caller"}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_stops_the_others_and_is_raised(error: BaseException) -> None:
    stopped = threading.Event()

    def work(part: int) -> int:
        if part == 1:
            raise error
        assert stopped.wait(20)
        return part

    with pytest.raises(type(error)):
        list(beside_each_other(work, range(4), 2, setting(stopped)))
    assert not stopped.is_set()  # it was, until all had ended


def test_a_caller_that_leaves_stops_the_others() -> None:
    stopped = threading.Event()

    def work(part: int) -> int:
        if part:
            assert stopped.wait(20)
        return part

    results = beside_each_other(work, range(3), 2, setting(stopped))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not stopped.is_set()  # it was, until all had ended


def test_parts_that_wait_do_not_keep_others_from_running() -> None:
    started = time.monotonic()
    blocked = {0, 1}

    def work(part: int) -> int | None:
        if part in blocked and time.monotonic() - started < 0.5:
            return None
        return part

    assert set(list(beside_each_other(work, range(5), 2, never))[:3]) == {2, 3, 4}
