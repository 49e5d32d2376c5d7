"""Sends the draws of all calls to the servers: a bounded number of requests at a time, none lost.

The draws of a call are assigned to servers in contiguous runs that share prefixes. An idle server steals draws from
the others, and an unreachable one returns its draws until it answers again.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Condition, Thread

from tasks.engines.counts import MODEL_TIME, BusyTime
from tasks.engines.protocol import Continuation, EngineAwayError, EngineError
from tasks.engines.stopping import RunStoppedError, wait_until
from tasks.engines.turn import TURN
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0

_LAST_TRY = 1.0
"""Minimum seconds for the probe of a server that was unreachable, even if less patience is left."""


@dataclass(frozen=True)
class Limits:
    """Concurrent requests for each server, and seconds that a request, and waiting for an answer of any, may take."""

    concurrency: int
    timeout: float
    patience: float


@dataclass(frozen=True)
class Endpoint:
    """A server: how to connect to it, and to check in so many seconds that it serves the student."""

    connect: Callable[[], Connection]
    check: Callable[[Connection, float], None]


@dataclass(eq=False)
class Call:
    """The draws of one call.

    Attributes:
        sample: requests a draw from a server, both by index.
        results: of the draws, where they are known.
        left: number of draws without a result.
        error: why it failed.
    """

    sample: Callable[[Connection, int, int], Continuation]
    results: list[Continuation | None]
    left: int
    error: Exception | None = None


@dataclass(eq=False)
class _Worker:
    """A thread with a connection to one server, and the call that it works for.

    `aborted` connections take no more requests.
    """

    server: int
    connection: Connection
    call: Call | None = None
    aborted: bool = False


class Dispatcher:
    """Works on the calls of all threads, with threads of its own that end when there is nothing to do.

    Attributes:
        at_work: of each server, the time in which it has requests.
    """

    def __init__(self, endpoints: Sequence[Endpoint], limits: Limits) -> None:
        self._endpoints, self._limits = endpoints, limits
        self.at_work = [BusyTime() for _ in endpoints]
        self._changed = Condition()
        self._open: list[Call] = []
        self._waiting = [deque[tuple[Call, int]]() for _ in endpoints]
        self._workers: list[_Worker] = []
        self._silent_since = [math.inf] * len(endpoints)  # of each server; infinity where it answers, or is not asked
        self._unanswered_since: dict[tuple[Call, int], float] = {}  # of draws that servers which answer do not

    def run(self, call: Call, draws: Sequence[int]) -> None:
        """Sample draws of a call, in this order where there is a choice.

        Raises:
            EngineAwayError: for longer than the patience, no server has answered, or none a draw.
            EngineError: a server gives an invalid answer; likewise for any other exception of a request.
            RunStoppedError: the threads of the run are being ended.
        """
        if not draws:
            return
        with TURN.released(), MODEL_TIME.measured():
            try:
                self._submit(call, draws)
                with self._changed:
                    wait_until(self._changed, lambda: call.error is not None or not call.left)
            finally:  # after a stop or an interrupt too
                self._fail(call, RunStoppedError("the run ends"))
        if call.error is not None:
            raise call.error

    def _submit(self, call: Call, draws: Sequence[int]) -> None:
        servers = len(self._endpoints)
        bounds = [len(draws) * s // servers for s in range(servers + 1)]
        with self._changed:
            self._open.append(call)
            for waiting, (start, end) in zip(self._waiting, pairwise(bounds), strict=True):
                waiting.extend((call, draw) for draw in draws[start:end])
            wanted = min(self._limits.concurrency, sum(map(len, self._waiting)))
            for server in range(servers):
                for _ in range(wanted - sum(worker.server == server for worker in self._workers)):
                    self._start(server)
            self._changed.notify_all()

    def _start(self, server: int) -> None:
        worker = _Worker(server, self._endpoints[server].connect())
        try:
            Thread(target=self._work, args=(worker,), name="vllm draws", daemon=True).start()
        except RuntimeError as error:
            threads = self._limits.concurrency * len(self._endpoints)
            raise EngineError(f"{threads} threads cannot be started ({error}); lower engine.concurrency") from error
        self._workers.append(worker)

    def _work(self, worker: _Worker) -> None:
        """Sample draws until none is left."""
        pause = _FIRST_PAUSE
        while (task := self._take(worker)) is not None:
            call, draw = task
            answers = False
            try:
                answers = self._answers(worker)
                with self.at_work[worker.server].measured():
                    result = call.sample(worker.connection, worker.server, draw)
                self._finish(worker, call, draw, result)
                pause = _FIRST_PAUSE
            except NoAnswerError as error:
                if self._give_back(worker, call, draw, error, answers=answers):
                    self._pause(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception as error:  # noqa: BLE001 - the thread of the call raises it
                self._fail(call, error)
        worker.connection.close()

    def _take(self, worker: _Worker) -> tuple[Call, int] | None:
        """A draw for a worker; None once all calls are over. Waits while others may return draws."""
        with self._changed:
            worker.call = None
            if worker.aborted:
                worker.connection.close()
                worker.connection, worker.aborted = self._endpoints[worker.server].connect(), False
            while self._open:
                own, fullest = self._waiting[worker.server], max(self._waiting, key=len)
                if fullest:
                    worker.call, draw = own.popleft() if own else fullest.pop()
                    return worker.call, draw
                self._changed.wait()
            self._workers.remove(worker)
            return None

    def _answers(self, worker: _Worker) -> bool:
        """True if a server that was silent passes its check; False if there was no need of one.

        Raises:
            NoAnswerError: it is still silent.
        """
        if self._silent_since[worker.server] == math.inf:
            return False
        seconds = min(max(self._patience_left(), _LAST_TRY), self._limits.timeout)
        self._endpoints[worker.server].check(worker.connection, seconds)
        self._silent_since[worker.server] = math.inf
        return True

    def _finish(self, worker: _Worker, call: Call, draw: int, result: Continuation) -> None:
        with self._changed:
            self._silent_since[worker.server] = math.inf
            self._unanswered_since.pop((call, draw), None)
            call.results[draw] = result
            call.left -= 1
            if not call.left and call.error is None:
                self._close(call)

    def _give_back(self, worker: _Worker, call: Call, draw: int, error: NoAnswerError, *, answers: bool) -> bool:
        """Return a draw that was not answered; False if the request was aborted, as its call had failed.

        Args:
            answers: the server had just passed its check, so that it is this draw that it does not answer.
        """
        with self._changed:
            if call.error is not None:
                return False
            now, patience = time.monotonic(), self._limits.patience
            self._waiting[worker.server].appendleft((call, draw))
            self._silent_since[worker.server] = min(self._silent_since[worker.server], now)
            silent = now - max(self._silent_since)
            if answers:
                silent = max(silent, now - self._unanswered_since.setdefault((call, draw), now))
            if silent >= patience:
                though = ", though it answers probes" if answers else ""
                what = (
                    f"no server has answered for {silent:.0f} s{though} (engine.patience: {patience:g}); last error: "
                )
                for failing in [call] if answers else list(self._open):
                    self._fail(failing, EngineAwayError(f"{what}{error}"))
            self._changed.notify_all()
            return True

    def _patience_left(self) -> float:
        """Seconds of patience left; all of them while a server answers."""
        return self._limits.patience - max(0.0, time.monotonic() - max(self._silent_since))

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open, min(seconds, max(0.0, self._patience_left())))

    def _fail(self, call: Call, error: Exception) -> None:
        """Fail a call and abort its requests, unless it is over."""
        with self._changed:
            if call not in self._open:
                return
            call.error = error
            for waiting in self._waiting:
                others = [task for task in waiting if task[0] is not call]
                waiting.clear()
                waiting.extend(others)
            for worker in self._workers:
                if worker.call is call:
                    worker.aborted = True
                    worker.connection.stop()
            self._close(call)

    def _close(self, call: Call) -> None:
        self._open.remove(call)
        self._unanswered_since = {task: t for task, t in self._unanswered_since.items() if task[0] is not call}
        if not self._open:
            self._silent_since = [math.inf] * len(self._endpoints)
        self._changed.notify_all()
