"""Samples with vLLM's OpenAI-compatible servers: token ids in and out, many requests at a time, none lost.

Draws are dealt to the servers in stretches that share prefixes; a server that is done takes from the others, and one
that is away gives its draws back until it answers again.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Condition
from typing import TYPE_CHECKING, Any

import httpx
import torch

from schemas.config import VLLMServerEngine
from tasks.engines import vllm_requests
from tasks.engines.protocol import Continuation, Draw, EngineAwayError, EngineError, Trunk, ended

if TYPE_CHECKING:
    from tasks.engines.transformers import TransformersScorer

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_TRY_AGAIN = {408, 409, 425, 429}
_PADDING_BIAS = -100.0
"""What servers limit a bias to; e^-100 of the probability is left."""


@dataclass(frozen=True)
class Served:
    """What a server says of itself: the model's name, the longest sequence, vLLM's version."""

    url: str
    model: str
    length: int
    version: str


def look_up(settings: VLLMServerEngine) -> list[Served]:
    """Ask every server what it serves.

    Raises:
        EngineError: one cannot be reached, does not serve the model, or differs from the others.
    """
    with _client(settings, seconds=10.0) as client:
        found = [_served(client, url, settings.model) for url in settings.urls]
    for other in found[1:]:
        if (other.model, other.version) != (found[0].model, found[0].version):
            raise EngineError(
                f"{other.url} serves {other.model!r} with vLLM {other.version}, but {found[0].url} serves "
                f"{found[0].model!r} with vLLM {found[0].version}; give servers of one kind"
            )
    return found


def _served(client: httpx.Client, url: str, wanted: str | None) -> Served:
    try:
        models = client.get(f"{url}/v1/models").raise_for_status().json()["data"]
        version = client.get(f"{url}/version").raise_for_status().json()["version"]
        names = {str(m["id"]): int(m["max_model_len"]) for m in models}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{url} does not answer as a vLLM server ({_reason(error)})") from error
    if wanted is None and len(names) != 1:
        raise EngineError(f"{url} serves {sorted(names)}; set engine.model to one of them")
    name = wanted if wanted is not None else next(iter(names))
    if name not in names:
        raise EngineError(f"{url} serves {sorted(names)} and not engine.model {name!r}")
    return Served(url, name, names[name], str(version))


def _client(settings: VLLMServerEngine, seconds: float) -> httpx.Client:
    key = os.environ.get(settings.api_key_variable)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(timeout=httpx.Timeout(seconds, connect=10.0), limits=limits, headers=headers, trust_env=False)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


@dataclass
class _Work:
    """Draws of one call: what waits for each server, and what has come of it."""

    waiting: list[deque[int]]
    results: list[Continuation | None]
    left: int
    failure: EngineError | None = None
    last_answer: float = field(default_factory=time.monotonic)
    changed: Condition = field(default_factory=Condition)
    was_away: set[int] = field(default_factory=set)
    """Servers that have to show again what they serve."""

    def take(self, server: int) -> int | None:
        """A draw for a server; None where all are done or the call has failed. Waits where others may give back."""
        with self.changed:
            while self.left and self.failure is None:
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
            self.changed.notify_all()

    def finish(self, draw: int, result: Continuation) -> None:
        with self.changed:
            self.results[draw] = result
            self.left -= 1
            self.last_answer = time.monotonic()
            if not self.left:
                self.changed.notify_all()

    def fail(self, error: EngineError) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def pause(self, seconds: float) -> bool:
        """Wait; false where the call has failed or is done meanwhile."""
        with self.changed:
            self.changed.wait_for(lambda: self.failure is not None or not self.left, seconds)
            return self.failure is None and self.left > 0


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
        with _client(settings, settings.timeout) as client:
            for server in served:
                try:
                    self._check(client, server)
                except httpx.HTTPError as error:
                    raise EngineAwayError(f"{server.url} does not score a probe ({_reason(error)})") from error

    def release(self) -> None:
        """Nothing is held here."""

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """See the protocol."""
        results = [ended(draw, self._stop) for draw in draws]
        wanted = vllm_requests.in_order(draws, [i for i, r in enumerate(results) if r is None])
        servers = len(self._served)
        cuts = [len(wanted) * s // servers for s in range(servers + 1)]
        work = _Work([deque(wanted[a:b]) for a, b in pairwise(cuts)], results, len(wanted))
        workers = min(self._settings.concurrency, len(wanted))

        def ask(client: httpx.Client, server: int, i: int) -> Continuation:
            draw = draws[i]
            body = {
                **vllm_requests.fields(draw, self._stop, temperature),
                "model": self._served[server].model,
                "prompt": trunks[draw.trunk].prefix(draw),
                "add_special_tokens": False,
                "return_token_ids": True,
                **({"logit_bias": self._bias} if self._bias else {}),
            }
            choice = self._post(client, self._served[server].url, body)
            return vllm_requests.continuation(choice["token_ids"], draw, self._stop, self._vocabulary)

        def serve(client: httpx.Client, server: int) -> None:
            pause = _FIRST_PAUSE
            while (i := work.take(server)) is not None:
                try:
                    if server in work.was_away:
                        self._check(client, self._served[server])
                        work.was_away.discard(server)
                    work.finish(i, ask(client, server, i))
                    pause = _FIRST_PAUSE
                except EngineError as error:
                    work.fail(error)
                except httpx.HTTPError as error:
                    work.give_back(server, i)
                    away = time.monotonic() - work.last_answer
                    if away > self._settings.patience:
                        work.fail(EngineAwayError(f"no server has answered for {away:.0f} s; last: {_reason(error)}"))
                    elif not work.pause(pause):
                        return
                    pause = min(2 * pause, _LONGEST_PAUSE)

        with (
            _client(self._settings, self._settings.timeout) as client,
            ThreadPoolExecutor(max(1, workers * servers)) as pool,
        ):
            running = [pool.submit(serve, client, s) for s in range(servers) for _ in range(workers)]
            try:
                for future in running:
                    future.result()
            finally:
                if work.left:  # else workers would go on behind an interrupt
                    work.fail(EngineError("interrupted"))
        if work.failure is not None:
            raise work.failure
        done = [r for r in work.results if r is not None]
        self.decoded += sum(len(r.tokens) for r in done)
        return done

    def _post(self, client: httpx.Client, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """One completion.

        Raises:
            EngineError: the server refuses the request, and would again.
            httpx.HTTPError: it is away, overloaded or broken, or answers with something else.
        """
        response = client.post(f"{url}/v1/completions", json=body)
        if response.is_client_error and response.status_code not in _TRY_AGAIN:
            raise EngineError(f"{url} refuses a draw ({response.status_code}): {response.text[:300]}")
        response.raise_for_status()
        try:
            choice = response.json()["choices"][0]
        except (ValueError, LookupError, TypeError) as error:
            raise httpx.DecodingError(f"{url}: not a completion: {response.text[:100]!r}") from error
        if not isinstance(choice.get("token_ids"), list):
            raise EngineError(f"{url} returns no token ids; vLLM 0.10.2 or newer is needed")
        return dict(choice)

    def _check(self, client: httpx.Client, server: Served) -> None:
        """Log-probabilities of a probe must be those of the model the stages score with.

        Raises:
            EngineError: they are not.
            httpx.HTTPError: the server is away.
        """
        body = {
            "model": server.model,
            "prompt": self._probe,
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
            "return_token_ids": True,
        }
        steps = self._post(client, server.url, body)["prompt_logprobs"][1:]
        theirs = [step[str(token)]["logprob"] for token, step in zip(self._probe[1:], steps, strict=True)]
        self._compare(f"by {server.url}", self._probe_scores, torch.tensor(theirs))
