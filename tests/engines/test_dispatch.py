"""Draws of several calls on servers at once: bounded, none lost, and a call's failure is its own."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from schemas.config import VLLMServerEngine
from tasks.engines.protocol import Draw, EngineAwayError, EngineError, Trunk
from tasks.engines.vllm import dispatch
from tasks.engines.vllm.served import look_up
from tasks.engines.vllm.server import ServerSampler
from tests.helpers.fake_vllm import STOP, FakeServer, Reply, Student, completion, honest, http, is_draw, tokens
from tests.helpers.threads import stopped_when, together

TRUNKS = [Trunk((5, 6, 7))]
LIMIT, SECONDS = 6, 20.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_FIRST_PAUSE", 0.02)


def draws(*seeds: int) -> list[Draw]:
    return [Draw(0, 0, None, LIMIT, seed) for seed in seeds]


def sampler(*servers: FakeServer, **settings: Any) -> ServerSampler:
    student: Any = Student()
    urls = [server.url for server in servers]
    engine = VLLMServerEngine(urls=urls, **{"timeout": SECONDS, "patience": 0.3, "concurrency": 3, **settings})
    return ServerSampler(STOP, engine, look_up(engine), lambda: student)


def sampled(ready: ServerSampler, *seeds: int) -> list[list[int]]:
    return [end.tokens.tolist() for end in ready.continue_prefixes(TRUNKS, draws(*seeds), 1.0)]


def expected(*seeds: int) -> list[list[int]]:
    return [tokens(seed, LIMIT) for seed in seeds]


def behave(server: FakeServer, reply: Callable[[int], Reply | None]) -> None:
    """Answer draws by their seed; None for an honest answer."""

    def behaviour(path: str, body: dict[str, Any]) -> Reply:
        other = reply(body["seed"]) if is_draw(path, body) else None
        return honest(path, body) if other is None else other

    server.behaviour = behaviour


def test_a_call_does_not_wait_for_the_straggler_of_another() -> None:
    asked, free = threading.Event(), threading.Event()

    def slow(seed: int) -> None:
        if seed == 99:
            asked.set()
            assert free.wait(SECONDS)

    def other() -> list[list[int]]:
        assert asked.wait(SECONDS)
        try:
            return sampled(ready, 3, 4, 5, 6)
        finally:
            free.set()

    with FakeServer() as server:
        ready = sampler(server)
        behave(server, slow)
        ends = together([partial(sampled, ready, 99, 1), other])
    assert ends == [expected(99, 1), expected(3, 4, 5, 6)]


def test_a_call_that_fails_leaves_the_others_their_draws() -> None:
    """Its own requests under way are aborted, so that their threads work for the others."""
    failing, beside = threading.Event(), threading.Event()

    def reply(seed: int) -> Reply | None:
        if seed == 98:
            failing.set()
            assert beside.wait(SECONDS)
            return completion(token_ids=[-1])
        if seed == 99:
            time.sleep(SECONDS)  # longer than the test
        beside.set()
        return None

    def others() -> list[list[int]]:
        assert failing.wait(SECONDS)
        return sampled(ready, 1, 2, 3, 4, 5, 6)

    with FakeServer() as server:
        ready = sampler(server, concurrency=3)
        behave(server, reply)
        start = time.monotonic()
        error, ends = together([partial(sampled, ready, 99, 98), others])
        assert isinstance(error, EngineError) and "sampled token -1" in str(error)
        assert ends == expected(1, 2, 3, 4, 5, 6)
        assert sampled(ready, *range(20, 40)) == expected(*range(20, 40))
        assert time.monotonic() - start < SECONDS / 2


def test_no_more_requests_at_a_time_than_the_settings_say() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def reply(seed: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    with FakeServer() as one, FakeServer() as two:
        ready = sampler(one, two, concurrency=3)
        behave(one, reply)
        behave(two, reply)
        seeds = [range(30 * i, 30 * i + 30) for i in range(5)]
        ends = together([partial(sampled, ready, *of_call) for of_call in seeds])
    assert ends == [expected(*of_call) for of_call in seeds]
    assert 3 < most <= 6


def test_servers_that_are_away_fail_every_call() -> None:
    with FakeServer() as server:
        ready = sampler(server)
        server.close()
        errors = together([partial(sampled, ready, 1, 2), partial(sampled, ready, 3)])
    assert [type(error) for error in errors] == [EngineAwayError] * 2
    assert all("no server has answered" in str(error) for error in errors)


def test_after_a_stop_calls_are_worked_on_again_and_threads_end_with_the_last() -> None:
    asked = threading.Event()

    def never(seed: int) -> None:
        asked.set()
        time.sleep(SECONDS)

    with FakeServer() as server:
        ready = sampler(server)
        behave(server, never)
        assert stopped_when(asked, [partial(sampled, ready, 1, 2, 3, 4), partial(sampled, ready, 5)]) == 2
        behave(server, lambda seed: None)
        assert sampled(ready, *range(9)) == expected(*range(9))
    end = time.monotonic() + 5
    while any(thread.name == "vllm draws" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


UNAVAILABLE = http(b"busy", "503 Service Unavailable")


def test_the_time_when_nothing_is_asked_is_no_silence() -> None:
    """A call fails while a server is silent; the next one has all of its patience."""

    def refuses(seed: int) -> Reply | None:
        if seed == 50:
            return UNAVAILABLE
        return completion(token_ids=[-1]) if seed == 51 else None

    hiccups = iter([UNAVAILABLE])
    with FakeServer() as server:
        ready = sampler(server, patience=0.5, concurrency=2)
        behave(server, refuses)
        with pytest.raises(EngineError, match="sampled token -1"):
            sampled(ready, 50, 51)
        time.sleep(0.6)
        behave(server, lambda seed: next(hiccups, None))
        assert sampled(ready, 1, 2, 3) == expected(1, 2, 3)


def test_a_server_at_work_outlasts_the_patience_with_another_one() -> None:
    with FakeServer() as dead, FakeServer() as alive:
        ready = sampler(dead, alive, patience=0.3, concurrency=1)
        dead.close()
        behave(alive, lambda seed: time.sleep(0.8))
        assert sampled(ready, 1, 2) == expected(1, 2)


def test_hiccups_between_answered_probes_are_not_one_silence() -> None:
    began = time.monotonic()

    def reply(seed: int) -> Reply | None:
        return UNAVAILABLE if seed == 1 and time.monotonic() - began < 0.3 else None

    with FakeServer() as server:
        ready = sampler(server, patience=0.9, concurrency=1)
        began = time.monotonic()
        behave(server, reply)
        assert sampled(ready, 1, 2) == expected(1, 2)
        began = time.monotonic() + 0.7  # the second one, later than the patience
        assert sampled(ready, 1, 2) == expected(1, 2)


def test_a_draw_that_no_server_answers_fails_its_call() -> None:
    """Though they answer probes, and the draws of others."""
    with FakeServer() as server:
        ready = sampler(server, patience=0.3)
        behave(server, lambda seed: UNAVAILABLE if seed == 7 else None)
        error, ends = together([partial(sampled, ready, 7, 8), partial(sampled, ready, *range(20, 60))])
    assert isinstance(error, EngineAwayError) and "though it answers probes" in str(error)
    assert ends == expected(*range(20, 60))
