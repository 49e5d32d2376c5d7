"""Turns: one thread computes at a time, in order, and others work while it waits."""

import threading
from contextvars import copy_context
from functools import partial

import pytest

from tasks.engines.counts import ThreadCount
from tasks.engines.stopping import Group, RunStoppedError, check_stopped
from tasks.engines.turn import Turn
from tests.helpers.threads import stopped_when, together


def test_one_at_a_time_and_again_within() -> None:
    turn, inside, most = Turn(), [], []

    def work() -> None:
        for _ in range(50):
            with turn, turn:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    together([work] * 6)
    assert len(most) == 300 and max(most) == 1


def test_turns_come_in_the_order_of_asking() -> None:
    turn, order = Turn(), []

    def ask(name: int) -> None:
        with turn:
            order.append(name)

    with turn:
        threads = []
        for name in range(5):
            thread = threading.Thread(target=ask, args=(name,))
            thread.start()
            threads.append(thread)
            while len(turn._queue) <= name:
                pass
    for thread in threads:
        thread.join(20)
    assert order == list(range(5))


def test_others_work_while_a_block_waits() -> None:
    turn, done = Turn(), threading.Event()

    def work() -> None:
        with turn:
            done.set()

    with turn, turn:
        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.05)
        with turn.released():
            assert done.wait(20)
        assert turn._owner == threading.get_ident() and turn._depth == 2
    thread.join(20)
    with turn.released():  # nothing to release
        assert turn._owner is None


def test_an_error_gives_the_turn_on() -> None:
    turn = Turn()
    with pytest.raises(ValueError, match="wrong"), turn:
        raise ValueError("wrong")
    with pytest.raises(ValueError, match="wrong"), turn, turn.released():
        raise ValueError("wrong")
    assert turn._owner is None and not turn._queue


def test_every_thread_counts_for_itself() -> None:
    count, seen = ThreadCount(), []

    def work(n: int) -> None:
        count.add(n)
        count.add(n)
        seen.append(count.value)

    together([partial(work, n) for n in (1, 5)])
    assert sorted(seen) == [2, 10] and count.value == 0


def test_threads_that_are_to_end_get_no_turn_and_give_none_away() -> None:
    turn, held, over = Turn(), threading.Event(), threading.Event()

    def ask() -> None:
        assert held.wait(20)
        with turn:
            pytest.fail("it was stopped")

    def come_back() -> None:
        with turn, turn.released():
            assert held.wait(20)

    def keep() -> None:
        """Of no group: it has its turn while the others are stopped, and is not stopped itself."""
        with turn:
            held.set()
            check_stopped()
            assert over.wait(20)

    thread = threading.Thread(target=keep)
    thread.start()
    assert held.wait(20)
    assert stopped_when(held, [ask, ask]) == 2
    over.set()
    thread.join(20)
    held.clear()
    gone = threading.Thread(target=lambda: held.set())
    gone.start()
    assert stopped_when(held, [come_back]) <= 1
    with turn:
        assert turn._depth == 1 and not turn._queue


def test_a_group_ends_with_the_one_that_it_was_made_in() -> None:
    outer, inner = Group(), list[Group]()

    def work(_: int) -> None:
        inner.append(Group())
        assert not inner[0].stopped
        outer.stop()
        assert inner[0].stopped
        with pytest.raises(RunStoppedError):
            check_stopped()

    copy_context().run(outer.run, work, 0)
    other = Group()
    assert inner[0].stopped and not other.stopped
    check_stopped()  # this thread is of no group
