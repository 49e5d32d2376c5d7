"""Samples with vLLM's OpenAI-compatible servers: token ids in and out, many concurrent requests, none lost.

Draws are assigned to servers in contiguous runs that share prefixes. An idle server steals draws from the others, and
an unreachable one returns its draws until it answers again.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Condition, Lock
from typing import TYPE_CHECKING

import torch

from schemas.config import Model, VLLMServerEngine
from tasks.engines.counts import ThreadCount
from tasks.engines.protocol import Continuation, Draw, EngineAwayError, EngineError, Trunk, ended
from tasks.engines.turn import TURN, RunStoppedError
from tasks.engines.vllm import answers, requests
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection, api_key
from tasks.engines.vllm.served import Served, look_up

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


_LAST_TRY = 1.0
"""Minimum seconds for the probe of a server that was unreachable, even if less patience is left."""


_PADDING_BIAS = -100.0
"""The lowest bias that servers accept; e^-100 of the probability remains."""


@dataclass
class _Work:
    """The draws of one call: the queue of each server, and the results."""

    waiting: list[deque[int]]
    results: list[Continuation | None]
    left: int
    patience: float
    stopped: bool = False
    failing_since: float = math.inf
    """When requests began to fail; reset to infinity by each finished draw."""
    changed: Condition = field(default_factory=Condition)
    unverified: set[int] = field(default_factory=set)
    """Servers that were unreachable and have to pass the probe again."""

    def take(self, server: int) -> int | None:
        """A draw for a server; None once all are done or the call is stopped. Waits while others may return draws."""
        with self.changed:
            while self.left and not self.stopped:
                fullest = max(self.waiting, key=len)
                if self.waiting[server]:
                    return self.waiting[server].popleft()
                if fullest:
                    return fullest.pop()
                self.changed.wait()
            return None

    def give_back(self, server: int, draw: int) -> None:
        with self.changed:
            self.waiting[server].appendleft(draw)
            self.unverified.add(server)
            self.failing_since = min(self.failing_since, time.monotonic())
            self.changed.notify_all()

    def finish(self, draw: int, result: Continuation) -> None:
        with self.changed:
            self.results[draw] = result
            self.left -= 1
            self.failing_since = math.inf
            if not self.left:
                self.changed.notify_all()

    def patience_left(self) -> float:
        """Seconds of patience left; all of them while no request fails."""
        with self.changed:
            return self.patience - max(0.0, time.monotonic() - self.failing_since)

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def pause(self, seconds: float) -> bool:
        """Wait; False if the call is stopped or finishes meanwhile."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or not self.left, seconds)
            return not self.stopped and self.left > 0


_Sample = Callable[[Connection, Served, int], Continuation]
"""Requests a draw from a server, by its index."""


class ServerBackend:
    """vLLM's servers: `tasks.engines.backend.Backend`."""

    def __init__(self, settings: VLLMServerEngine) -> None:
        """Ask every server what it serves.

        Raises:
            EngineError: as `look_up`.
        """
        self._settings, self._served = settings, look_up(settings)
        self.versions = f"vllm {self._served[0].version} "
        self.longest = min(server.length for server in self._served)

    def sampler(
        self, model: Model, stop: frozenset[int], scorer: "Callable[[], TransformersScorer]"
    ) -> "ServerSampler":
        """The student on the servers."""
        return ServerSampler(stop, self._settings, self._served, scorer)


class ServerSampler:
    """`tasks.engines.protocol.Sampler` on one or many servers."""

    def __init__(
        self,
        stop: frozenset[int],
        settings: VLLMServerEngine,
        served: Sequence[Served],
        scorer: "Callable[[], TransformersScorer]",
    ) -> None:
        """Compare every server with the student on transformers.

        Raises:
            EngineError: a server is unreachable, or serves another model.
        """
        self._decoded, self._one_at_a_time = ThreadCount(), Lock()
        self._stop, self._settings, self._served = stop, settings, served
        student = scorer()
        self._vocabulary = student.vocabulary
        self._bias = {str(i): _PADDING_BIAS for i in range(student.vocabulary, student.rows)}
        self._probe, self._probe_scores, self._compare = student.probe(), student.probe_scores(), student.compare
        key = api_key(settings.api_key_variable)
        for server in served:
            with Connection(server.url, key) as connection:
                try:
                    self._check(connection, server, settings.timeout)
                except NoAnswerError as error:
                    raise EngineAwayError(f"{server.url} does not score a probe ({error})") from error

    @property
    def decoded(self) -> int:
        """Tokens of the calling thread's finished draws."""
        return self._decoded.value

    def release(self) -> None:
        """Nothing to free."""

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol."""
        results = [ended(draw, self._stop) for draw in draws]
        wanted = requests.in_order(draws, [i for i, r in enumerate(results) if r is None])
        servers = len(self._served)
        bounds = [len(wanted) * s // servers for s in range(servers + 1)]
        queues = [deque(wanted[a:b]) for a, b in pairwise(bounds)]
        work = _Work(queues, results, len(wanted), self._settings.patience)

        def sample(connection: Connection, server: Served, i: int) -> Continuation:
            return self._sample(connection, server, trunks[draws[i].trunk].prefix(draws[i]), draws[i], temperature)

        with TURN.released(), self._one_at_a_time:
            self._run(work, sample)
        done = [r for r in work.results if r is not None]
        self._decoded.add(sum(len(r.tokens) for r in done))
        return done

    def _run(self, work: _Work, sample: _Sample) -> None:
        """Sample all draws with threads that each have their own connection.

        Raises:
            EngineError: the first error of a thread; likewise for any other exception.
        """
        key = api_key(self._settings.api_key_variable)
        workers = min(self._settings.concurrency, work.left)
        connections = [
            (s, Connection(server.url, key)) for s, server in enumerate(self._served) for _ in range(workers)
        ]

        def abort() -> None:
            work.stop()
            for _, connection in connections:
                connection.stop()

        with TURN.released(abort), ThreadPoolExecutor(max(1, len(connections))) as pool:
            TURN.check()
            try:
                for future in as_completed(self._start(pool, work, connections, sample)):
                    future.result()
            finally:  # after a failure or an interrupt too, so that the threads end
                abort()
        if work.left:
            raise RunStoppedError("the run ends")

    def _start(
        self, pool: ThreadPoolExecutor, work: _Work, connections: list[tuple[int, Connection]], sample: _Sample
    ) -> list[Future[None]]:
        try:
            return [pool.submit(self._serve, work, connection, s, sample) for s, connection in connections]
        except RuntimeError as error:
            raise EngineError(
                f"{len(connections)} threads cannot be started ({error}); lower engine.concurrency"
            ) from error

    def _serve(self, work: _Work, connection: Connection, server: int, sample: _Sample) -> None:
        """Sample draws on a server until none is left.

        Raises:
            EngineAwayError: no server has answered for longer than the patience.
            EngineError: a server gives an invalid answer.
        """
        pause = _FIRST_PAUSE
        with connection:
            while (i := work.take(server)) is not None:
                try:
                    if server in work.unverified:
                        seconds = min(max(work.patience_left(), _LAST_TRY), self._settings.timeout)
                        self._check(connection, self._served[server], seconds)
                        work.unverified.discard(server)
                    work.finish(i, sample(connection, self._served[server], i))
                    pause = _FIRST_PAUSE
                except NoAnswerError as error:
                    work.give_back(server, i)
                    left = work.patience_left()
                    if left <= 0:
                        raise EngineAwayError(
                            f"no server has answered for {work.patience - left:.0f} s (engine.patience: "
                            f"{work.patience:g}); last error: {error}"
                        ) from error
                    if not work.pause(min(pause, left)):
                        return
                    pause = min(2 * pause, _LONGEST_PAUSE)

    def _sample(
        self, connection: Connection, server: Served, prompt: list[int], draw: Draw, temperature: float
    ) -> Continuation:
        """Sample one draw.

        Raises:
            EngineError: the server refuses the draw, or gives an invalid answer.
            NoAnswerError: the server is unreachable, overloaded or broken.
        """
        body = {
            **requests.fields(draw, self._stop, temperature),
            "model": server.model,
            "prompt": prompt,
            "add_special_tokens": False,
            "return_token_ids": True,
            **({"logit_bias": self._bias} if self._bias else {}),
        }
        answer = connection.ask("/v1/completions", body, seconds=self._settings.timeout, tokens=draw.limit)
        tokens = answers.token_ids(answer, prompt)
        return requests.continuation(tokens, draw, self._stop, self._vocabulary, f"vLLM at {server.url}")

    def _check(self, connection: Connection, server: Served, seconds: float) -> None:
        """Check that the log-probabilities of a probe match those of the scoring model.

        Raises:
            EngineError: they differ or are missing.
            NoAnswerError: the server is unreachable.
        """
        body = {
            "model": server.model,
            "prompt": self._probe,
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
            "return_token_ids": True,
        }
        answer = connection.ask("/v1/completions", body, seconds=seconds, tokens=len(self._probe) + 1)
        log_probs = answers.prompt_log_probs(answer, self._probe)
        self._compare(f"by {server.url}", self._probe_scores, torch.tensor(log_probs))
