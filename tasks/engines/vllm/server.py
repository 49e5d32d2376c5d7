"""Samples with vLLM's OpenAI-compatible servers: token ids in and out, many requests at a time, none lost.

Draws are dealt to the servers in stretches that share prefixes; a server that is done takes from the others, and one
that is away gives its draws back until it answers again.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Condition
from typing import TYPE_CHECKING

import torch

from schemas.config import Model, VLLMServerEngine
from tasks.engines.protocol import Continuation, Draw, EngineAwayError, EngineError, Trunk, ended
from tasks.engines.vllm import answers, requests
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection, api_key
from tasks.engines.vllm.served import Served, look_up

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


_LAST_TRY = 1.0
"""Seconds that a server which was away has to answer a probe, however little is left of the patience."""


_PADDING_BIAS = -100.0
"""What servers limit a bias to; e^-100 of the probability is left."""


@dataclass
class _Work:
    """Draws of one call: what waits for each server, and what has come of it."""

    waiting: list[deque[int]]
    results: list[Continuation | None]
    left: int
    patience: float
    stopped: bool = False
    failing_since: float = math.inf
    """When requests began to fail; infinite again with each draw that is done."""
    changed: Condition = field(default_factory=Condition)
    was_away: set[int] = field(default_factory=set)
    """Servers that have to show again what they serve."""

    def take(self, server: int) -> int | None:
        """A draw for a server; None where all are done or the call is stopped. Waits where others may give back."""
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
            self.was_away.add(server)
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
        """Seconds; all of them while no request fails."""
        with self.changed:
            return self.patience - max(0.0, time.monotonic() - self.failing_since)

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def pause(self, seconds: float) -> bool:
        """Wait; false where the call is stopped or done meanwhile."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or not self.left, seconds)
            return not self.stopped and self.left > 0


_Sample = Callable[[Connection, Served, int], Continuation]
"""Asks a server for a draw, by its number."""


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
        """Compare every server with the student as transformers has it.

        Raises:
            EngineError: a server is away, or serves another model.
        """
        self.decoded = 0
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

    def release(self) -> None:
        """Nothing is held here."""

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol."""
        results = [ended(draw, self._stop) for draw in draws]
        wanted = requests.in_order(draws, [i for i, r in enumerate(results) if r is None])
        servers = len(self._served)
        cuts = [len(wanted) * s // servers for s in range(servers + 1)]
        queues = [deque(wanted[a:b]) for a, b in pairwise(cuts)]
        work = _Work(queues, results, len(wanted), self._settings.patience)

        def sample(connection: Connection, server: Served, i: int) -> Continuation:
            return self._sample(connection, server, trunks[draws[i].trunk].prefix(draws[i]), draws[i], temperature)

        self._run(work, sample)
        done = [r for r in work.results if r is not None]
        self.decoded += sum(len(r.tokens) for r in done)
        return done

    def _run(self, work: _Work, sample: _Sample) -> None:
        """Let threads, each with a connection of its own, do all draws.

        Raises:
            EngineError: the first that a thread ends with; likewise any other exception.
        """
        key = api_key(self._settings.api_key_variable)
        workers = min(self._settings.concurrency, work.left)
        connections = [
            (s, Connection(server.url, key)) for s, server in enumerate(self._served) for _ in range(workers)
        ]
        with ThreadPoolExecutor(max(1, len(connections))) as pool:
            try:
                for future in as_completed(self._started(pool, work, connections, sample)):
                    future.result()
            finally:  # a failure or an interrupt: what is under way ends, and the threads with it
                work.stop()
                for _, connection in connections:
                    connection.stop()

    def _started(
        self, pool: ThreadPoolExecutor, work: _Work, connections: list[tuple[int, Connection]], sample: _Sample
    ) -> list[Future[None]]:
        try:
            return [pool.submit(self._serve, work, connection, s, sample) for s, connection in connections]
        except RuntimeError as error:
            raise EngineError(
                f"{len(connections)} threads cannot be started ({error}); lower engine.concurrency"
            ) from error

    def _serve(self, work: _Work, connection: Connection, server: int, sample: _Sample) -> None:
        """Do draws on a server until none is left.

        Raises:
            EngineAwayError: no server answers for longer than the patience.
            EngineError: a server answers what it should not.
        """
        pause = _FIRST_PAUSE
        with connection:
            while (i := work.take(server)) is not None:
                try:
                    if server in work.was_away:
                        seconds = min(max(work.patience_left(), _LAST_TRY), self._settings.timeout)
                        self._check(connection, self._served[server], seconds)
                        work.was_away.discard(server)
                    work.finish(i, sample(connection, self._served[server], i))
                    pause = _FIRST_PAUSE
                except NoAnswerError as error:
                    work.give_back(server, i)
                    left = work.patience_left()
                    if left <= 0:
                        raise EngineAwayError(
                            f"no server has answered for {work.patience - left:.0f} s (engine.patience: "
                            f"{work.patience:g}); last: {error}"
                        ) from error
                    if not work.pause(min(pause, left)):
                        return
                    pause = min(2 * pause, _LONGEST_PAUSE)

    def _sample(
        self, connection: Connection, server: Served, prompt: list[int], draw: Draw, temperature: float
    ) -> Continuation:
        """One draw.

        Raises:
            EngineError: the server refuses it, or answers what is no draw.
            NoAnswerError: it is away, overloaded or broken.
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
        """Log-probabilities of a probe must be those of the model the stages score with.

        Raises:
            EngineError: they are not, or there are none.
            NoAnswerError: the server is away.
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
        theirs = answers.prompt_log_probs(answer, self._probe)
        self._compare(f"by {server.url}", self._probe_scores, torch.tensor(theirs))
