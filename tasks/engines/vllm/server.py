"""Samples with vLLM's OpenAI-compatible servers: token ids in and out, many concurrent requests."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from schemas.config import Model, VLLMServerEngine
from tasks.engines.counts import ThreadCount
from tasks.engines.protocol import Capacity, Continuation, Draw, EngineAwayError, Trunk, ended
from tasks.engines.vllm import answers, requests
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.connection import Connection, api_key
from tasks.engines.vllm.dispatch import Call, Dispatcher, Endpoint, Limits
from tasks.engines.vllm.served import Served, look_up

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


_PADDING_BIAS = -100.0
"""The lowest bias that servers accept; e^-100 of the probability remains."""


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
        self._decoded = ThreadCount()
        self._stop, self._settings, self._served = stop, settings, served
        student = scorer()
        self._vocabulary = student.vocabulary
        self._bias = {str(i): _PADDING_BIAS for i in range(student.vocabulary, student.rows)}
        self._probe, self._probe_scores, self._compare = student.probe(), student.probe_scores(), student.compare
        for s, server in enumerate(served):
            with self._connect(s) as connection:
                try:
                    self._check(s, connection, settings.timeout)
                except NoAnswerError as error:
                    raise EngineAwayError(f"{server.url} does not score a probe ({error})") from error
        self._dispatcher = Dispatcher(
            [Endpoint(partial(self._connect, s), partial(self._check, s)) for s in range(len(served))],
            Limits(settings.concurrency, settings.timeout, settings.patience),
        )

    @property
    def decoded(self) -> int:
        """Tokens of the calling thread's finished draws."""
        return self._decoded.value

    @property
    def busy_seconds(self) -> list[float]:
        """Seconds in which each server had requests."""
        return [time.seconds for time in self._dispatcher.at_work]

    @property
    def capacity(self) -> Capacity:
        """What servers are asked for at once; caches are theirs."""
        return Capacity(self._settings.concurrency * len(self._served), 0)

    def release(self) -> None:
        """Nothing to free."""

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol."""
        results = [ended(draw, self._stop) for draw in draws]
        wanted = requests.in_order(draws, [i for i, r in enumerate(results) if r is None])

        def sample(connection: Connection, server: int, i: int) -> Continuation:
            prompt = trunks[draws[i].trunk].prefix(draws[i])
            return self._sample(connection, self._served[server], prompt, draws[i], temperature)

        call = Call(sample, results, len(wanted))
        self._dispatcher.run(call, wanted)
        done = [r for r in call.results if r is not None]
        self._decoded.add(sum(len(r.tokens) for r in done))
        return done

    def _connect(self, server: int) -> Connection:
        return Connection(self._served[server].url, api_key(self._settings.api_key_variable))

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

    def _check(self, server: int, connection: Connection, seconds: float) -> None:
        """Check that the log-probabilities of a probe match those of the scoring model.

        Raises:
            EngineError: they differ or are missing.
            NoAnswerError: the server is unreachable.
        """
        served = self._served[server]
        body = {
            "model": served.model,
            "prompt": self._probe,
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
            "return_token_ids": True,
        }
        answer = connection.ask("/v1/completions", body, seconds=seconds, tokens=len(self._probe) + 1)
        log_probs = answers.prompt_log_probs(answer, self._probe)
        self._compare(f"by {served.url}", self._probe_scores, torch.tensor(log_probs))
