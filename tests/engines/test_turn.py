"""Turns: one thread computes at a time, in order, and others work while it waits."""

import threading
from functools import partial

import pytest

from tasks.engines.counts import ThreadCount
from tasks.engines.turn import RunStoppedError, Turn
from tests.helpers.threads import together


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
    turn, ends, waiting = Turn(), [], threading.Barrier(3, timeout=20)

    def ask() -> None:
        waiting.wait()
        while turn._stopper is None:
            pass
        with pytest.raises(RunStoppedError), turn:
            pytest.fail("it was stopped")
        ends.append("asked")

    def come_back() -> None:
        with pytest.raises(RunStoppedError), turn, turn.released():
            waiting.wait()
            while turn._stopper is None:
                pass
        ends.append("came back")

    threads = [threading.Thread(target=work) for work in (ask, come_back)]
    for thread in threads:
        thread.start()
    waiting.wait()
    turn.stop()
    with turn:  # the one that stops the others goes on
        turn.check()
    for thread in threads:
        thread.join(20)
    turn.resume()
    assert sorted(ends) == ["asked", "came back"]
    with turn:
        assert turn._depth == 1


def test_what_a_thread_waits_for_is_aborted() -> None:
    turn, waits, aborted = Turn(), threading.Barrier(2, timeout=20), threading.Event()

    def wait() -> None:
        with pytest.raises(RunStoppedError), turn, turn.released(aborted.set):
            waits.wait()
            assert aborted.wait(20)

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    turn.stop()
    thread.join(20)
    turn.resume()
    assert aborted.is_set() and turn._aborts == []
