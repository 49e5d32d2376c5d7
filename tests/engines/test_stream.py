"""A stream: jobs of many threads on one loop; each has its own end, and an error reaches those that wait."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from tasks.engines.protocol import EngineError
from tasks.engines.stopping import RunStoppedError
from tasks.engines.stream import Stream
from tests.helpers.threads import stopped_when, together


@dataclass(eq=False)
class Job:
    steps: int
    fails: bool = False
    done: int = 0


@dataclass
class CountingLoop:
    """Advances all jobs by a step, which it counts."""

    running: list[Job] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    inside: int = 0
    hook: Callable[[], None] = lambda: None

    def submit(self, job: Job) -> None:
        self.running.append(job)

    def advance(self) -> Sequence[tuple[Job, EngineError | None]]:
        self.inside += 1
        assert self.inside == 1
        self.hook()
        self.together.append(len(self.running))
        for job in self.running:
            job.done += 1
        over = [job for job in self.running if job.done >= job.steps]
        self.running = [job for job in self.running if job.done < job.steps]
        self.inside -= 1
        return [(job, EngineError("refused") if job.fails else None) for job in over]

    def abort(self) -> None:
        self.inside = 0
        self.running.clear()


def in_threads(stream: Stream[Job], jobs: Sequence[Job]) -> list[BaseException | None]:
    """How the jobs ended."""
    return together([partial(stream.run, job) for job in jobs])


def test_jobs_of_many_threads_run_together_to_their_own_ends() -> None:
    loop = CountingLoop(hook=lambda: time.sleep(0.001))
    jobs = [Job(steps=10 * n + 1) for n in range(12)]
    assert in_threads(Stream(loop), jobs) == [None] * 12
    assert [job.done for job in jobs] == [job.steps for job in jobs] and max(loop.together) > 1


def test_a_job_that_fails_leaves_the_others() -> None:
    jobs = [Job(400), Job(3, fails=True), Job(400)]
    ends = in_threads(Stream(CountingLoop()), jobs)
    assert isinstance(ends[1], EngineError) and ends[0] is ends[2] is None


def test_an_error_of_the_loop_reaches_all_and_the_stream_goes_on() -> None:
    loop = CountingLoop()
    stream = Stream(loop)

    def broken() -> None:
        if len(loop.running) == 3:
            raise RuntimeError("broken")

    loop.hook = broken
    assert [str(end) for end in in_threads(stream, [Job(10**9), Job(10**9), Job(10**9)])] == ["broken"] * 3
    stream.run(Job(5))


def test_an_interrupt_of_the_thread_that_drives_ends_the_others() -> None:
    loop = CountingLoop()
    stream, driving = Stream(loop), threading.Event()
    other: list[BaseException | None] = []

    def wait() -> None:
        assert driving.wait(20)
        other.extend(in_threads(stream, [Job(10**9)]))

    thread = threading.Thread(target=wait)
    thread.start()

    def interrupt() -> None:
        driving.set()
        if len(loop.running) == 2:
            raise KeyboardInterrupt

    loop.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        stream.run(Job(10**9))
    thread.join(20)
    assert isinstance(other[0], RunStoppedError)


def test_a_stopped_run_ends_the_calls_of_a_stream() -> None:
    loop = CountingLoop()
    stream = Stream(loop)
    long_enough = threading.Event()
    loop.hook = lambda: long_enough.set() if len(loop.together) == 20 else None

    assert stopped_when(long_enough, [partial(stream.run, Job(10**9)) for _ in range(2)]) == 2
    loop.hook = lambda: None
    stream.run(Job(5))
