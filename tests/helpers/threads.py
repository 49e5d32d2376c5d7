"""Works in threads of their own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event
from typing import Any

from tasks.engines.stopping import Group, RunStoppedError

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


def stopped_when(event: Event, works: Sequence[Callable[[], Any]]) -> int:
    """How many works end with `RunStoppedError`, where threads of one group do them that is stopped after an event."""
    group = Group()

    def stop() -> None:
        assert event.wait(_SECONDS)
        group.stop()

    *ends, _ = together([*(partial(group.run, lambda work: work(), work) for work in works), stop])
    return sum(isinstance(end, RunStoppedError) for end in ends)
