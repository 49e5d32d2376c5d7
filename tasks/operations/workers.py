"""Work in processes beside this one, whose progress is told here, and which end with it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from tasks.operations.progress import Step, listen, publish

Item = TypeVar("Item", bound=tuple[Any, ...])
Result = TypeVar("Result")

_SECONDS = 0.5
"""Between two looks at what the processes report."""


def in_processes(
    function: Callable[..., Result], ready: Callable[[], Sequence[Item]], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Results of a function of this project in processes of their own, as they come.

    Args:
        ready: arguments of the calls that can begin, each given once; asked again after every result.
        workers: processes at once.

    Raises:
        Exception: what a call raises; calls that have not begun are not made then.
    """
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Step] = context.SimpleQueue()
    ends, open_while_wanted = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(queue, ends)) as pool:
        waiting: dict[Future[Result], Item] = {}
        try:
            while True:
                waiting |= {pool.submit(function, *item): item for item in ready()}
                if not waiting:
                    return
                done, _ = wait(waiting, timeout=_SECONDS, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    step = queue.get()
                    publish(step.stage, step.done, tokens=step.tokens)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            if waiting:  # an error: whatever is being computed is not waited for
                open_while_wanted.close()
            pool.shutdown(cancel_futures=True)


def _begin(queue: "SimpleQueue[Step]", ends: Connection) -> None:
    """Tell progress to the process that started this one, and end when that no longer waits, even if it is killed."""
    listen(queue.put)
    threading.Thread(target=_end_with, args=(ends,), daemon=True).start()


def _end_with(ends: Connection) -> None:
    wait_for([ends])
    os._exit(1)
