"""Work on several parts beside each other, in threads that end with their caller."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TypeVar

from tasks.engines.stopping import POLL_SECONDS, Group

Part = TypeVar("Part")
Result = TypeVar("Result")

_WAIT = 0.2
"""Seconds until a part that has to wait is tried again."""


def beside_each_other(
    work: Callable[[Part], Result | None],
    parts: Sequence[Part],
    threads: int,
) -> Iterator[Result]:
    """The results of all parts, in the order in which they come; of one thread, it is the calling one.

    Where the caller or a call of `work` has failed, the other threads are stopped (`tasks.engines.stopping`).

    Args:
        work: returns None if the part has to wait; it is tried again later.

    Raises:
        Exception: the first that `work` raises.
    """
    waiting = deque((0.0, part) for part in parts)
    if threads <= 1:
        while waiting:
            due, part = waiting.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            if (result := work(part)) is None:
                waiting.append((time.monotonic() + _WAIT, part))
            else:
                yield result
        return
    # not `concurrent.futures.wait`, which an interrupt can leave with the locks of futures held
    group, ended, running = Group(), SimpleQueue[tuple[Part, Result | None, BaseException | None]](), 0

    def run(part: Part) -> None:
        try:
            ended.put((part, group.run(work, part), None))
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            ended.put((part, None, error))

    with ThreadPoolExecutor(threads) as pool:
        try:
            while waiting or running:
                while waiting and running < threads and waiting[0][0] <= time.monotonic():
                    pool.submit(copy_context().run, run, waiting.popleft()[1])
                    running += 1
                pause = POLL_SECONDS
                if waiting and running < threads:
                    pause = min(pause, max(0.0, waiting[0][0] - time.monotonic()))
                try:
                    part, result, error = ended.get(timeout=pause)
                except Empty:
                    continue
                running -= 1
                if error is not None:
                    raise error
                if result is None:
                    waiting.append((time.monotonic() + _WAIT, part))
                else:
                    yield result
        finally:  # the caller may have left, or a part failed
            group.stop()
