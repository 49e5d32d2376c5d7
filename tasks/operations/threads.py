"""Work on several parts beside each other, in threads that end with their caller."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
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
    group, running = Group(), dict[Future[Result | None], Part]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < threads and waiting[0][0] <= time.monotonic():
                    part = waiting.popleft()[1]
                    running[pool.submit(copy_context().run, group.run, work, part)] = part
                pause = POLL_SECONDS
                if waiting and len(running) < threads:
                    pause = min(pause, max(0.0, waiting[0][0] - time.monotonic()))
                if not running:
                    time.sleep(pause)
                for future in wait(running, pause, FIRST_COMPLETED).done:
                    part, result = running.pop(future), future.result()
                    if result is None:
                        waiting.append((time.monotonic() + _WAIT, part))
                    else:
                        yield result
        except BaseException:
            group.stop()
            raise
