"""vllm-server's client against servers that answer badly, slowly, endlessly or not at all, on loopback.

Whatever a server does, the caller has the right draws or one clear line within seconds.
"""

import gzip
import itertools
import json
import logging
import math
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import VLLMServerEngine
from schemas.limits import MOST_SECONDS
from tasks.engines.protocol import Continuation, Draw, EngineAwayError, EngineError, Trunk
from tasks.engines.vllm import answers, connection, dispatch, requests, served
from tasks.engines.vllm.bounds import NoAnswerError
from tasks.engines.vllm.served import look_up
from tasks.engines.vllm.server import ServerSampler
from tests.helpers.fake_vllm import (
    STOP,
    VOCABULARY,
    Behaviour,
    FakeServer,
    Reply,
    Student,
    completion,
    drip,
    honest,
    http,
    is_draw,
    tokens,
)
from tests.helpers.threads import stopped_when, together

T = TypeVar("T")
TRUNKS = [Trunk(tuple(range(5, 17)), tuple(range(18, 28)))]
LIMIT = 8
DRAWS = [Draw(0, i % 4, None, LIMIT, i) for i in range(12)]
EXPECTED = [tokens(draw.seed, LIMIT) for draw in DRAWS]
KEY = "sk-do\\not'show/\"me"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_FIRST_PAUSE", 0.05)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result, or the error it ends with; it must not take longer."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except LateError:
        if future.done():
            raise
        pytest.fail(f"not over after {seconds} s")


def engine(*servers: FakeServer | str, **settings: Any) -> VLLMServerEngine:
    urls = [s if isinstance(s, str) else s.url for s in servers]
    return VLLMServerEngine(urls=urls, **{"timeout": 20.0, "patience": 0.3, "concurrency": 3, **settings})


def sampler(settings: VLLMServerEngine) -> ServerSampler:
    student: Any = Student()
    return ServerSampler(STOP, settings, look_up(settings), lambda: student)


def sampled(settings: VLLMServerEngine, draws: list[Draw] | None = None) -> list[list[int]]:
    ends = sampler(settings).continue_prefixes(TRUNKS, DRAWS if draws is None else draws, 1.0)
    return [end.tokens.tolist() for end in ends]


def one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert message.isprintable() and len(message) < 800
    for part in parts:
        assert part in message, message


def at_draws(reply: Callable[[dict[str, Any]], Reply]) -> Behaviour:
    return lambda path, body: reply(body) if is_draw(path, body) else honest(path, body)


def at_probes(reply: Reply) -> Behaviour:
    return lambda path, body: reply if "prompt_logprobs" in body else honest(path, body)


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    while True:
        yield piece


def test_an_honest_server_is_understood() -> None:
    with FakeServer() as one, FakeServer() as two:
        assert within(5, lambda: sampled(engine(one, two))) == EXPECTED
        assert one.connections <= 3 + 2 and two.connections <= 3 + 2  # a connection serves many draws
        forced = [Draw(0, 2, 1, 9, 1), Draw(0, 3, 25, 0, 2), Draw(0, 0, None, 1, 4)]
        assert within(5, lambda: sampled(engine(one), forced)) == [[], [], tokens(4, 1)]


LASTING: dict[str, tuple[Callable[[dict[str, Any]], Reply], str]] = {
    "a list": (lambda body: [], "does not answer with one completion"),
    "a text": (lambda body: http(b'"hello"'), "does not answer with one completion"),
    "a number": (lambda body: http(b"5"), "does not answer with one completion"),
    "null": (lambda body: http(b"null"), "does not answer with one completion"),
    "NaN": (lambda body: http(b"NaN"), "does not answer with one completion"),
    "no choices": (lambda body: {"id": "x"}, "does not answer with one completion: {'id': 'x'}"),
    "choices null": (lambda body: {"choices": None}, "does not answer with one completion"),
    "choices a text": (lambda body: {"choices": "abc"}, "does not answer with one completion"),
    "choices an object": (lambda body: {"choices": {"0": {}}}, "does not answer with one completion"),
    "choices empty": (lambda body: {"choices": []}, "does not answer with one completion"),
    "choice null": (lambda body: {"choices": [None]}, "does not answer with one completion"),
    "choice a list": (lambda body: {"choices": [[5]]}, "does not answer with one completion"),
    "two choices": (lambda body: {"choices": [{"token_ids": [5] * LIMIT}] * 2}, "does not answer with one completion"),
    "a shortened prompt": (
        lambda body: completion(prompt_token_ids=body["prompt"][1:], token_ids=[5] * LIMIT),
        "continued a prompt other than the one of 1",
    ),
    "a prompt that is no list": (
        lambda body: completion(prompt_token_ids={}, token_ids=[5] * LIMIT),
        "continued a prompt other than the one of 1",
    ),
    "no ids": (lambda body: completion(), "returns no token ids (vLLM 0.10.2 or newer is needed)"),
    "ids null": (lambda body: completion(token_ids=None), "returns no token ids"),
    "ids a text": (lambda body: completion(token_ids="5" * LIMIT), "returns token_ids that are not a list: '55555555'"),
    "ids an object": (lambda body: completion(token_ids={"0": 5}), "returns token_ids that are not a list"),
    "id negative": (lambda body: completion(token_ids=[5] * 7 + [-5]), "sampled token -5, but"),
    "id a float": (lambda body: completion(token_ids=[5] * 7 + [5.9]), "sampled something that is not a token id: 5.9"),
    "id a whole float": (
        lambda body: completion(token_ids=[5] * 7 + [5.0]),
        "sampled something that is not a token id: 5.0",
    ),
    "id a text": (lambda body: completion(token_ids=[5] * 7 + ["5"]), "sampled something that is not a token id: '5'"),
    "id true": (lambda body: completion(token_ids=[5] * 7 + [True]), "sampled something that is not a token id: True"),
    "id null": (lambda body: completion(token_ids=[None] * LIMIT), "sampled something that is not a token id: None"),
    "id a list": (lambda body: completion(token_ids=[[5]] * LIMIT), "sampled something that is not a token id: [5]"),
    "id beyond the vocabulary": (
        lambda body: completion(token_ids=[VOCABULARY] * LIMIT),
        "sampled token 30, but the tokenizer's tokens are 0 to 29",
    ),
    "id of 41 bits": (lambda body: completion(token_ids=[2**40] * LIMIT), "sampled token 1099511627776, but"),
    "id of 401 digits": (lambda body: completion(token_ids=[10**400] * LIMIT), "sampled token 1000000000"),
    "id of 5,000 digits": (
        lambda body: http(b'{"choices": [{"token_ids": [' + b"1" * 5000 + b"]}]}"),
        "JSON that cannot be read",
    ),
    "too many": (lambda body: completion(token_ids=[5] * 401), "sampled 401 tokens where the limit is 8"),
    "too many, the last a stop": (lambda body: completion(token_ids=[5] * 8 + [1]), "sampled 9 tokens where"),
    "stop in the middle": (
        lambda body: completion(token_ids=[5, 1, 5, 5, 5, 5, 5, 5]),
        "continued after a stop token, number 2 of 8",
    ),
    "stop twice": (lambda body: completion(token_ids=[5, 1, 1]), "continued after a stop token, number 2 of 3"),
    "too few": (lambda body: completion(token_ids=[5, 5]), "ended a draw after 2 of 8 tokens without a stop"),
    "none": (lambda body: completion(token_ids=[]), "ended a draw after 0 of 8 tokens"),
    "nested deeply": (lambda body: http(b"[" * 100_000), "JSON that cannot be read"),
    "nested less deeply": (lambda body: http(b"[" * 900 + b"]" * 900), ""),
    "compressed": (
        lambda body: http(gzip.compress(b"{}"), "200 OK", "content-encoding: gzip"),
        "compressed (gzip), which was not requested",
    ),
    "a compressed bomb": (
        lambda body: http(gzip.compress(bytes(10**7)), "200 OK", "content-encoding: gzip"),
        "compressed (gzip), which was not requested",
    ),
    "redirect": (
        lambda body: http(b"", "307 Temporary Redirect", "location: http://127.0.0.1:1/"),
        "status 307; redirects are not followed",
    ),
    "refused": (
        lambda body: http(b'{"detail": "no"}', "400 Bad Request"),
        'refuses /v1/completions (status 400): {"de',
    ),
    "control characters": (
        lambda body: http(b"a\x1b[2Jb\r\nc\x00\xff" * 1000, "404 Not Found"),
        r"(status 404): a\x1b[2Jb\r\nc\x00",
    ),
    "lone surrogates": (lambda body: http(b'{"choices": "\\ud800"}'), r"{'choices': '\ud800'}"),
    "endless": (
        lambda body: endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(2**16)),
        "answers with more than",
    ),
    "endless, with a length": (
        lambda body: endless(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", bytes(2**16)),
        "answers with more than",
    ),
    "endless chunks": (
        lambda body: endless(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(2**16) + b"\r\n"
        ),
        "answers with more than",
    ),
}


@pytest.mark.parametrize("case", LASTING)
def test_an_answer_that_breaks_the_contract_is_an_error_at_once(case: str) -> None:
    reply, message = LASTING[case]
    with FakeServer(at_draws(reply)) as fake, pytest.raises(EngineError) as raised:
        # a patience that is not used up: the server would answer so again
        within(5, lambda: sampled(engine(fake, patience=60.0)))
    one_line(raised.value, fake.url, message)
    assert not isinstance(raised.value, EngineAwayError)
    assert fake.sent < 60 * 2**20  # of three workers, each with what fits into sockets' buffers


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
PASSING: dict[str, tuple[Callable[[dict[str, Any]], Reply], str]] = {
    "closed": (lambda body: b"", "RemoteProtocolError"),
    "switching protocols": (
        lambda body: b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "RemoteProtocolError",
    ),
    "endless chunks of a byte": (
        lambda body: endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n[\r\n" * 9999),
        "",
    ),
    "garbage": (lambda body: b"\x00\xff\x13garbage\r\n\r\n", "RemoteProtocolError"),
    "another protocol": (lambda body: b"SSH-2.0-OpenSSH_9.9\r\n", "RemoteProtocolError"),
    "headers cut": (lambda body: OK, "RemoteProtocolError"),
    "headers too long": (lambda body: OK + b"x: " + b"y" * 200_000 + b"\r\n\r\n{}", "RemoteProtocolError"),
    "body cut": (lambda body: http(json.dumps(honest("/v1/completions", body)).encode())[:-9], "RemoteProtocolError"),
    "body cut, no length": (lambda body: OK + b'\r\n{"choices": [{"token_ids": [5, 5', "something other than JSON"),
    "no body": (lambda body: http(b""), "something other than JSON"),
    "no content": (lambda body: b"HTTP/1.1 204 No Content\r\n\r\n", "something other than JSON"),
    "length no number": (lambda body: OK + b"content-length: -5\r\n\r\n{}", "RemoteProtocolError"),
    "two lengths": (lambda body: OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}", "RemoteProtocolError"),
    "bad chunk": (lambda body: OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n", "RemoteProtocolError"),
    "a page of a proxy": (lambda body: http(b"<html>Welcome</html>"), "than JSON: <html>Welcome</html>"),
    "not text": (lambda body: http(b"\xff\xfe\x80"), "something other than JSON"),
    "bad gateway": (lambda body: http(b"<html>502</html>", "502 Bad Gateway"), "with status 502: <html>502</html>"),
    "overloaded": (lambda body: http(b"", "429 Too Many Requests"), "with status 429"),
    "unavailable": (lambda body: http(b"x" * 10**6, "503 Service Unavailable"), "with status 503: xxx"),
    "no status that there is": (lambda body: http(b"", "999 What"), "with status 999"),
    "given up": (lambda body: completion(token_ids=[5], finish_reason="abort"), "aborted a draw (abort)"),
    "silent": (lambda body: drip(b"H", 9.0), "no complete answer within 0.6 s"),
    "headers a byte at a time": (lambda body: drip(OK + b"x: " + b"y" * 9999), "no complete answer within 0.6 s"),
    "body a byte at a time": (lambda body: drip(OK + b"\r\n" + b" " * 9999), "no complete answer within 0.6 s"),
    "chunks a byte at a time": (
        lambda body: itertools.chain([OK + b"transfer-encoding: chunked\r\n\r\n"], drip(b"1\r\n \r\n" * 9999)),
        "no complete answer within 0.6 s",
    ),
    "continue for ever": (
        lambda body: drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 9999, 1e-4),
        "no complete answer within 0.6 s",
    ),
}


QUICK = {"timeout": 0.6, "patience": 0.2, "concurrency": 1}


@pytest.mark.parametrize("case", PASSING)
def test_what_may_pass_is_tried_again_until_the_patience_ends(case: str) -> None:
    reply, message = PASSING[case]
    with FakeServer(at_draws(reply)) as fake, pytest.raises(EngineAwayError) as raised:
        within(5, lambda: sampled(engine(fake, **QUICK)))
    one_line(raised.value, fake.url, "no server has answered for", "engine.patience: 0.2", message)
    assert fake.requests > 4  # models, version, probe, a draw: it was tried again


def once(reply: Callable[[dict[str, Any]], Reply]) -> Behaviour:
    """Bad for the first two draws, then honest."""
    count = itertools.count()
    return at_draws(lambda body: reply(body) if next(count) < 2 else honest("/v1/completions", body))


@pytest.mark.parametrize("case", ["closed", "body cut", "bad gateway", "given up", "body a byte at a time"])
def test_nothing_is_lost_where_it_passes(case: str) -> None:
    with FakeServer(once(PASSING[case][0])) as fake:
        assert within(8, lambda: sampled(engine(fake, timeout=0.6, patience=30.0))) == EXPECTED


def test_a_server_that_is_away_leaves_its_draws_to_the_other() -> None:
    with FakeServer(at_draws(lambda body: b"")) as bad, FakeServer() as good:
        assert within(5, lambda: sampled(engine(bad, good, patience=30.0))) == EXPECTED


def test_of_several_servers_the_one_that_is_malformed_is_named() -> None:
    asked = threading.Event()

    def malformed(body: dict[str, Any]) -> Reply:
        asked.set()
        return completion(token_ids={})

    def unhurried(path: str, body: dict[str, Any]) -> Reply:
        if is_draw(path, body):
            asked.wait(5)  # else it may have answered everything before the other is asked
        return honest(path, body)

    with FakeServer(at_draws(malformed)) as bad, FakeServer(unhurried) as good:
        with pytest.raises(EngineError) as raised:
            within(5, lambda: sampled(engine(good, bad)))
        one_line(raised.value, bad.url, "token_ids that are not a list")
        bad.behaviour = lambda path, body: {"data": 5}
        with pytest.raises(EngineError) as raised:
            within(5, lambda: look_up(engine(good, bad)))
        one_line(raised.value, bad.url, "lists no models")


def one_step(**step: Any) -> dict[str, Any]:
    return completion(token_ids=[5], prompt_logprobs=[None, *[{str(t): step} for t in Student().probe()[1:]]])


NAN = http(json.dumps(one_step(logprob=math.nan)).encode())
PROBES: dict[str, tuple[Reply, str]] = {
    "a list": ([], "does not answer with one completion"),
    "choices empty": ({"choices": []}, "does not answer with one completion"),
    "none": (completion(token_ids=[5]), "gives no prompt_logprobs of the probe's 6 tokens"),
    "null": (completion(token_ids=[5], prompt_logprobs=None), "gives no prompt_logprobs of the probe's 6 tokens: None"),
    "a text": (completion(token_ids=[5], prompt_logprobs="abcdef"), "gives no prompt_logprobs of the probe's 6 tokens"),
    "too few": (
        completion(token_ids=[5], prompt_logprobs=[None] * 5),
        "gives no prompt_logprobs of the probe's 6 tokens",
    ),
    "too many": (
        completion(token_ids=[5], prompt_logprobs=[None] * 7),
        "gives no prompt_logprobs of the probe's 6 tokens",
    ),
    "steps null": (
        completion(token_ids=[5], prompt_logprobs=[None] * 6),
        "gives no log-probability of the probe's token 3: None",
    ),
    "steps numbers": (
        completion(token_ids=[5], prompt_logprobs=[None, -1, -1, -1, -1, -1]),
        "of the probe's token 3: -1",
    ),
    "steps lists": (completion(token_ids=[5], prompt_logprobs=[None, *[[-1.5]] * 5]), "of the probe's token 3: [-1.5]"),
    "another token": (
        completion(token_ids=[5], prompt_logprobs=[None, *[{"99": {"logprob": -1.5}}] * 5]),
        "of the probe's token 3",
    ),
    "a bare number": (
        completion(token_ids=[5], prompt_logprobs=[None, *[{"3": -1.5}] * 5]),
        "of the probe's token 3: {'3': -1.5}",
    ),
    "no logprob": (one_step(rank=1), "of the probe's token 3: {'3': {'rank': 1}}"),
    "logprob null": (one_step(logprob=None), "of the probe's token 3"),
    "logprob a text": (one_step(logprob="-1.5"), "of the probe's token 3"),
    "logprob false": (one_step(logprob=False), "of the probe's token 3"),
    "logprob NaN": (NAN, "of the probe's token 3: {'3': {'logprob': nan}}"),
    "logprob infinite": (NAN.replace(b"NaN", b"1e9"), "of the probe's token 3"),
    "logprob of 401 digits": (one_step(logprob=-(10**400)), "of the probe's token 3"),
    "others": (one_step(logprob=-2.5), "log-probabilities by http://127.0.0.1"),
}


@pytest.mark.parametrize("case", PROBES)
def test_a_probe_without_its_log_probabilities_is_an_error(case: str) -> None:
    reply, message = PROBES[case]
    with FakeServer(at_probes(reply)) as fake:
        settings = engine(fake)
        served, student = look_up(settings), Student()
        scorer: Any = lambda: student  # noqa: E731
        with pytest.raises(EngineError) as raised:
            within(5, lambda: ServerSampler(STOP, settings, served, scorer))
        one_line(raised.value, fake.url, message)
        # and where the probe comes in the middle of work
        fake.behaviour = honest
        ready, bad = ServerSampler(STOP, settings, served, scorer), at_probes(reply)
        lost = itertools.count()
        fake.behaviour = lambda path, body: b"" if is_draw(path, body) and next(lost) < 3 else bad(path, body)
        with pytest.raises(EngineError) as raised:
            within(5, lambda: ready.continue_prefixes(TRUNKS, DRAWS, 1.0))
        one_line(raised.value, fake.url, message)


def test_calls_of_several_threads_have_their_own_draws() -> None:
    with FakeServer() as fake:
        ready = sampler(engine(fake))
        ends = together([partial(ready.continue_prefixes, TRUNKS, draws, 1.0) for draws in (DRAWS, DRAWS[::-1], DRAWS)])
        assert [[end.tokens.tolist() for end in one] for one in ends] == [EXPECTED, EXPECTED[::-1], EXPECTED]


def test_a_stopped_run_aborts_what_servers_are_asked() -> None:
    """Also the calls that wait for another one."""
    asked = threading.Event()

    def never(body: dict[str, Any]) -> Reply:
        asked.set()
        return endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")

    with FakeServer() as fake:
        ready = sampler(engine(fake, patience=60.0, timeout=60.0))
        fake.behaviour = at_draws(never)
        works: list[Callable[[], Any]] = [partial(ready.continue_prefixes, TRUNKS, DRAWS, 1.0)] * 2
        assert within(20, lambda: stopped_when(asked, works)) == 2


def models(**entry: Any) -> dict[str, Any]:
    return {"data": [entry]}


MODELS: dict[str, tuple[Reply, str]] = {
    "a list": ([], "lists no models"),
    "a text": (http(b'"x"'), "lists no models: 'x'"),
    "empty": ({}, "lists no models: {}"),
    "data null": ({"data": None}, "lists no models"),
    "data an object": ({"data": {"id": "x"}}, "lists no models"),
    "data empty": ({"data": []}, "lists no models"),
    "an entry null": ({"data": [None]}, "lists a model without a name"),
    "no id": (models(max_model_len=9), "lists a model without a name: {'max_model_len': 9}"),
    "id a number": (models(id=5, max_model_len=9), "lists a model without a name"),
    "id a list": (models(id=["x"], max_model_len=9), "lists a model without a name"),
    "id empty": (models(id="", max_model_len=9), "lists a model without a name"),
    "several": ({"data": [{"id": "a"}, {"id": "b"}]}, "set engine.model to one of them: ['a', 'b']"),
    "thousands": ({"data": [{"id": f"\x1b{i}" * 50} for i in range(999)]}, "set engine.model to one of them"),
    "no length": (models(id="x"), "gives no max_model_len from 1 to 2147483647: {'x': None}"),
    "length null": (models(id="x", max_model_len=None), "gives no max_model_len"),
    "length negative": (models(id="x", max_model_len=-1), "gives no max_model_len"),
    "length 0": (models(id="x", max_model_len=0), "gives no max_model_len"),
    "length true": (models(id="x", max_model_len=True), "gives no max_model_len"),
    "length a text": (models(id="x", max_model_len="4096"), "gives no max_model_len"),
    "length a float": (models(id="x", max_model_len=4096.5), "gives no max_model_len"),
    "length huge": (models(id="x", max_model_len=10**30), "gives no max_model_len"),
    "not there": (http(b"no", "404 Not Found"), "refuses /v1/models (status 404): no"),
    "no key": (http(b'{"error": "Unauthorized"}', "401 Unauthorized"), "refuses /v1/models (status 401)"),
    "a page": (http(b"<html>"), "does not answer as a vLLM server"),
    "broken": (http(b"", "500 Internal Server Error"), "does not answer as a vLLM server"),
    "nested deeply": (http(b'{"data":' * 99_999), "JSON that cannot be read"),
    "a bomb": (http(gzip.compress(bytes(10**7)), "200 OK", "Content-Encoding: gzip"), "compressed (gzip)"),
}
VERSIONS: dict[str, tuple[Reply, str]] = {
    "a list": ([], "gives no version of vLLM: []"),
    "none": ({}, "gives no version of vLLM"),
    "null": ({"version": None}, "gives no version of vLLM"),
    "a number": ({"version": 0.32}, "gives no version of vLLM"),
    "a list of texts": ({"version": ["0.32.0"]}, "gives no version of vLLM"),
    "empty": ({"version": ""}, "gives no version of vLLM"),
    "control characters": ({"version": "0.32\n\x1b[1m"}, r"gives no version of vLLM: {'version': '0.32\n\x1b[1m'}"),
    "a line's end": ({"version": "0.32.0\n"}, "gives no version of vLLM"),
    "long": ({"version": "1" * 10**6}, "gives no version of vLLM"),
    "redirect": (http(b"", "302 Found", "location: /login"), "redirects are not followed"),
}


@pytest.mark.parametrize(("path", "case"), [("/v1/models", c) for c in MODELS] + [("/version", c) for c in VERSIONS])
def test_what_a_server_says_of_itself_is_checked(path: str, case: str) -> None:
    reply, message = (MODELS if path == "/v1/models" else VERSIONS)[case]
    with FakeServer(lambda asked, body: reply if asked == path else honest(asked, body)) as fake:
        with pytest.raises(EngineError) as raised:
            within(5, lambda: look_up(engine(fake)))
        one_line(raised.value, fake.url, message)


def test_models_beside_the_wanted_one_need_no_length() -> None:
    listed = {"data": [{"id": "adapter", "max_model_len": None}, {"id": "student", "max_model_len": 99}]}
    with FakeServer(lambda path, body: listed if path == "/v1/models" else honest(path, body)) as fake:
        (served,) = look_up(engine(fake, model="student"))
        assert (served.model, served.length, served.version) == ("student", 99, "0.32.0")
        with pytest.raises(EngineError, match=r"serves other models than engine.model 'x': \['adapter', 'student'\]"):
            look_up(engine(fake, model="x"))


@pytest.mark.parametrize("path", ["/v1/models", "/version"])
@pytest.mark.parametrize("data", [OK + b"x: " + b"y" * 9999, OK + b"\r\n" + b" " * 9999])
def test_looking_up_keeps_to_its_time(path: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_LOOK_UP_SECONDS", 0.5)
    with FakeServer(lambda asked, body: drip(data) if asked == path else honest(asked, body)) as fake:
        start = time.monotonic()
        with pytest.raises(EngineError) as raised:
            within(5, lambda: look_up(engine(fake, timeout=3600.0)))
        assert 0.4 < time.monotonic() - start < 1.5
        one_line(raised.value, fake.url, "does not answer as a vLLM server", "no complete answer within 0.5 s")


def test_a_request_that_nobody_reads_ends_too() -> None:
    """The server takes no more of it than the buffers of sockets do."""
    wide = [Trunk(tuple([5] * 4_000_000))]
    with FakeServer() as fake, socket.create_server(("127.0.0.1", 0)) as deaf:
        ready = sampler(engine(fake, **QUICK))
        ready._served = [replace(ready._served[0], url=f"http://127.0.0.1:{deaf.getsockname()[1]}")]
        with pytest.raises(EngineAwayError, match=r"no complete answer within 0.6 s"):
            within(8, lambda: ready.continue_prefixes(wide, [Draw(0, 0, None, 8, 1)], 1.0))


def test_a_failure_ends_the_requests_under_way() -> None:
    """They may take an hour; the failure is told at once."""
    count = itertools.count()
    bad = at_draws(lambda body: completion(token_ids=[-1]) if next(count) == 2 else drip(b" ", 9.0))
    with FakeServer(bad) as fake, pytest.raises(EngineError, match="sampled token -1"):
        within(4, lambda: sampled(engine(fake, timeout=3600.0, patience=600.0)))


def test_an_interrupt_ends_the_requests_under_way() -> None:
    with FakeServer(at_draws(lambda body: drip(b" ", 9.0))) as fake:
        ready = sampler(engine(fake, timeout=3600.0, patience=600.0))
        main = threading.main_thread().ident
        assert main is not None
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever tests before this one have left
        timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
        timer.start()
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                ready.continue_prefixes(TRUNKS, DRAWS, 1.0)
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - start < 3


def test_any_exception_of_a_worker_fails_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class UnforeseenError(Exception):
        """Of no kind that the client knows."""

    count = itertools.count()
    continuation = requests.continuation

    def breaks(*args: Any) -> Continuation:
        if next(count) == 3:
            raise UnforeseenError
        return continuation(*args)

    with FakeServer() as fake:
        ready = sampler(engine(fake))
        monkeypatch.setattr(requests, "continuation", breaks)
        with pytest.raises(UnforeseenError):
            within(4, lambda: ready.continue_prefixes(TRUNKS, DRAWS, 1.0))


def test_too_many_threads_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as fake:
        ready = sampler(engine(fake))
        monkeypatch.setattr(fake, "_connected", lambda sock: None)
        start, count = threading.Thread.start, itertools.count()

        def starts(thread: threading.Thread) -> None:
            if thread.name == "vllm draws" and next(count) == 2:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", starts)
        with pytest.raises(EngineError, match=r"3 threads cannot be started .*; lower engine.concurrency"):
            within(4, lambda: ready.continue_prefixes(TRUNKS, DRAWS, 1.0))


def test_many_requests_at_a_time_to_two_servers() -> None:
    draws = [Draw(0, i % 4, None, LIMIT, i) for i in range(1500)]
    with FakeServer() as one, FakeServer() as two:
        got = within(25, lambda: sampled(engine(one, two, concurrency=256, patience=20.0), draws))
        assert got == [tokens(draw.seed, LIMIT) for draw in draws]


def test_the_longest_limits_are_kept() -> None:
    with FakeServer() as fake:
        most = float(MOST_SECONDS)
        assert within(5, lambda: sampled(engine(fake, timeout=most, patience=most))) == EXPECTED


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_no_key_is_none(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with FakeServer() as fake:
        look_up(engine(fake, api_key_variable="SOME_KEY"))
        assert all("authorization" not in headers for _, headers in fake.seen)


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{}\r\n", "{}\u2028"])
def test_whitespace_around_a_key_is_dropped(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", around.format(KEY))
    with FakeServer() as fake:
        sampled(engine(fake, api_key_variable="SOME_KEY"))
        assert {headers["authorization"] for _, headers in fake.seen} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "inside", ["se cret", "se\ncret", "se\x00cret", "sécret", "se\x7fcret", "se\udc80cret", "秘密"]
)
def test_a_key_that_cannot_be_sent_is_refused_by_its_variable(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\x00" in inside:
        monkeypatch.setattr("os.environ", {"SOME_KEY": inside})
    else:
        monkeypatch.setenv("SOME_KEY", inside)
    with FakeServer() as fake, pytest.raises(EngineError) as raised:
        look_up(engine(fake, api_key_variable="SOME_KEY"))
    one_line(raised.value, "the key in SOME_KEY contains")
    told = "".join(traceback.format_exception(raised.value))
    assert inside not in told and ascii(inside)[1:-1] not in told and "cret" not in told and not fake.seen


ECHO: dict[str, Callable[[str], Reply]] = {
    "a refusal": lambda key: http(f"wrong key {key}".encode(), "401 Unauthorized"),
    "in JSON": lambda key: http(json.dumps({"error": key}).encode(), "403 Forbidden"),
    "in JSON with slashes escaped": lambda key: http(
        json.dumps({"error": key}).replace("/", "\\/").encode(), "403 Forbidden"
    ),
    "at the cut": lambda key: http(b"x" * 295 + key.encode(), "401 Unauthorized"),
    "many times": lambda key: http(key.encode() * 500, "401 Unauthorized"),
    "a failure": lambda key: http(key.encode(), "500 Internal Server Error"),
    "no JSON": lambda key: http(key.encode()),
    "a value": lambda key: {"choices": key},
    "an id": lambda key: completion(token_ids=[key]),
    "a status line": lambda key: f"HTTP/1.1 {key}\r\n\r\n".encode(),
    "a header": lambda key: f"HTTP/1.1 200 OK\r\n{key} {key}\r\n\r\n".encode(),
    "an encoding": lambda key: http(b"", "200 OK", f"content-encoding: {key}"),
}


@pytest.mark.parametrize("case", ECHO)
@pytest.mark.parametrize("key", [KEY, "sk-1234567890"])
def test_a_key_is_never_shown(
    case: str, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the server repeats it: in no message, traceback, log or repr."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", key)
    with FakeServer() as fake:
        ready = sampler(engine(fake, api_key_variable="SOME_KEY"))
        caplog.set_level(logging.INFO, "httpcore")  # which quotes answers' headers below that, none of requests'
        fake.behaviour = lambda path, body: ECHO[case](key)
        with pytest.raises(EngineError) as drawn:
            within(5, lambda: ready.continue_prefixes(TRUNKS, DRAWS, 1.0))
        with pytest.raises(EngineError) as looked:
            within(5, lambda: look_up(engine(fake, api_key_variable="SOME_KEY")))
    told = caplog.text + repr(vars(ready)) + repr(vars(connection.Connection(fake.url, connection.api_key("SOME_KEY"))))
    for error in (drawn.value, looked.value):
        one_line(error)
        told += "".join(traceback.format_exception(error)) + repr(error)
    for part in (key, key[:6], key[-6:]):
        assert part not in told and ascii(part)[1:-1] not in told


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://127.0.0.1:abc", "http://a b", "http://\x01", "http://[::1"]
)
def test_an_address_that_is_none_is_an_error(url: str) -> None:
    settings = VLLMServerEngine.model_construct(urls=[url])
    with pytest.raises(EngineError) as raised:
        within(5, lambda: look_up(settings))
    one_line(raised.value)


def test_a_name_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(EngineError, match="does not answer as a vLLM server"):
        within(20, lambda: look_up(engine("http://nobody.invalid:8000")))


def certificate(folder: Path) -> Path:
    """For 127.0.0.1, signed by itself; with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, plain)
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_the_same_bounds_hold_under_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    with FakeServer(tls=tls) as fake:
        with pytest.raises(EngineError, match="CERTIFICATE_VERIFY_FAILED"):
            within(5, lambda: look_up(engine(fake)))
        trusting = ssl.create_default_context(cafile=str(path))
        monkeypatch.setattr(connection, "_certificates", lambda: trusting)
        assert within(5, lambda: sampled(engine(fake))) == EXPECTED
        for case, error in (("body a byte at a time", EngineAwayError), ("endless", EngineError)):
            fake.behaviour = at_draws((PASSING | LASTING)[case][0])
            with pytest.raises(error) as raised:
                within(5, lambda: sampled(engine(fake, **QUICK)))
            one_line(raised.value, (PASSING | LASTING)[case][1])
        count = itertools.count()
        fake.behaviour = at_draws(lambda body: completion(token_ids=[-1]) if next(count) == 2 else drip(b" ", 9.0))
        with pytest.raises(EngineError, match="sampled token -1"):
            within(4, lambda: sampled(engine(fake, timeout=3600.0, patience=600.0)))


class SlowHandshake(FakeServer):
    """Speaks TLS, a byte at a time."""

    def _answered(self, sock: socket.socket) -> bool:
        for byte in drip(b"\x16\x03\x03\x40\x00" + bytes(9999)):
            sock.sendall(byte)
        return False


def test_a_handshake_a_byte_at_a_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_LOOK_UP_SECONDS", 0.5)
    with SlowHandshake() as fake, pytest.raises(EngineError, match="does not answer as a vLLM server"):
        within(5, lambda: look_up(engine(fake.url.replace("http:", "https:"))))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["choices", "token_ids", "x"]), inner),
    max_leaves=12,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """An answer with one part of it, anywhere, replaced by other JSON."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    where = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copied: Any = value.copy()
    copied[where] = draw(changed(value[where]))
    return copied


@settings(deadline=None)
@given(changed(completion(token_ids=[5, 6, 7, 1])), st.integers(1, 9))
def test_any_json_is_a_lawful_draw_or_an_error(value: Any, limit: int) -> None:
    answer = connection.Answer("http://x", json.loads(json.dumps(value)))
    try:
        got = requests.continuation(answers.token_ids(answer, []), Draw(0, 0, None, limit, 1), STOP, VOCABULARY)
    except (EngineError, NoAnswerError) as error:
        one_line(error)
        return
    ids = got.tokens.tolist()
    assert got.tokens.dtype == np.int32 and len(ids) <= limit and all(0 <= t < VOCABULARY for t in ids)
    assert (
        not STOP & set(ids[:-1]) and got.truncated == (ids[-1] not in STOP) and (not got.truncated or len(ids) == limit)
    )


PROBED = completion(token_ids=[5], prompt_logprobs=[None, {"3": {"logprob": -1.5}}, {"2": {"logprob": -0.5}}])


@settings(deadline=None)
@given(changed(PROBED))
def test_any_json_is_a_scored_probe_or_an_error(value: Any) -> None:
    answer = connection.Answer("http://x", json.loads(json.dumps(value)))
    try:
        scores = answers.prompt_log_probs(answer, [7, 3, 2])
    except EngineError as error:
        one_line(error)
        return
    assert len(scores) == 2 and all(math.isfinite(s) for s in scores)


@settings(deadline=None)
@given(changed({"data": [{"id": "a", "max_model_len": 9}, {"id": "b"}]}), changed({"version": "1.0"}))
def test_any_json_names_a_model_or_is_an_error(listed: Any, versioned: Any) -> None:
    try:
        name, length = answers.model(connection.Answer("http://x", listed), "a")
        assert name == "a" and type(length) is int and 0 < length < 2**31
        assert answers.version(connection.Answer("http://x", versioned)).isascii()
    except EngineError as error:
        one_line(error)
