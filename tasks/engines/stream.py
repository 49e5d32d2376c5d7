"""One loop for the draws of many threads: a thread that waits for its own draws works on those of all."""

from collections.abc import Sequence
from threading import Condition
from typing import Generic, Protocol, TypeVar

from tasks.engines.stopping import RunStoppedError, check_stopped, wait_until
from tasks.engines.turn import TURN

J = TypeVar("J")


class Loop(Protocol[J]):
    """Advances jobs in lockstep; one thread at a time calls it."""

    def submit(self, job: J) -> None:
        """Queue a job; it starts when there is room for it."""
        ...

    def advance(self) -> Sequence[tuple[J, Exception | None]]:
        """Advance the running jobs by one step; returns those that finished, with the error of those that failed."""
        ...

    def abort(self) -> None:
        """Drop all jobs, after an error in `advance`."""
        ...


class Stream(Generic[J]):
    """Runs the jobs of several threads on one loop.

    Every thread blocks until its own job is finished. One of them drives the loop; when its own job is finished,
    another takes over. So there is no thread to start or stop, and an error reaches the threads that wait.
    """

    def __init__(self, loop: Loop[J]) -> None:
        self._loop = loop
        self._changed = Condition()
        self._submitted: list[J] = []
        self._open: list[J] = []
        self._errors: list[tuple[J, BaseException]] = []
        self._driven = False

    def run(self, job: J) -> None:
        """Run a job to its end.

        Raises:
            EngineError: the job failed.
            RunStoppedError: the threads of the run are being ended.
        """
        with TURN.released():
            self._run(job)

    def _run(self, job: J) -> None:
        with self._changed:
            self._submitted.append(job)
            self._open.append(job)
        while True:
            with self._changed:
                wait_until(self._changed, lambda: not self._driven or not self._is_open(job))
                if not self._is_open(job):
                    break
                self._driven = True
            try:
                self._drive(job)
            finally:
                with self._changed:
                    self._driven = False
                    self._changed.notify_all()
        self._raise_error(job)

    def _is_open(self, job: J) -> bool:
        return any(other is job for other in self._open)

    def _drive(self, job: J) -> None:
        while self._is_open(job):
            with self._changed:
                submitted, self._submitted = self._submitted, []
            try:
                for new in submitted:
                    self._loop.submit(new)
                check_stopped()
                finished = self._loop.advance()
            except BaseException as error:
                self._loop.abort()
                self._fail_all(error)
                if not isinstance(error, Exception):
                    raise
                return
            if finished:
                self._close(finished)

    def _close(self, finished: Sequence[tuple[J, Exception | None]]) -> None:
        with self._changed:
            for job, error in finished:
                self._open = [other for other in self._open if other is not job]
                if error is not None:
                    self._errors.append((job, error))
            self._changed.notify_all()

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            shared = error if isinstance(error, Exception) else RunStoppedError("the run is interrupted")
            self._errors += [(job, shared) for job in self._open if not any(job is new for new in self._submitted)]
            self._open = list(self._submitted)
            self._changed.notify_all()

    def _raise_error(self, job: J) -> None:
        with self._changed:
            found = [error for other, error in self._errors if other is job]
            self._errors = [(other, error) for other, error in self._errors if other is not job]
        if found:
            raise found[0]
