"""Works in threads of their own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

_SECONDS = 60


def together(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each work returns or raises; they start at once, each in a thread."""
    start = Barrier(len(works), timeout=_SECONDS)

    def run(work: Callable[[], Any]) -> Any:
        start.wait()
        return work()

    pool = ThreadPoolExecutor(len(works))
    try:
        futures = [pool.submit(run, work) for work in works]
        return [future.exception(_SECONDS) or future.result() for future in futures]
    finally:
        pool.shutdown(wait=False)
