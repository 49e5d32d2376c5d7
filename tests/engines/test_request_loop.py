"""The loop of vLLM's requests on an engine that does as it is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.engines.protocol import EngineError
from tasks.engines.vllm.loop import Call, RequestLoop


class Engine:
    """As much of vLLM's `LLMEngine` as the loop needs: a request of n is done in the n-th step; none may be empty."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}

    def add_request(self, number: str, prompt: dict[str, list[int]], parameters: int) -> None:
        if not prompt["prompt_token_ids"]:
            raise ValueError("empty")
        self.left[number] = parameters

    def abort_request(self, numbers: list[str]) -> None:
        for number in numbers:
            del self.left[number]

    def step(self) -> list[Any]:
        self.left = {number: left - 1 for number, left in self.left.items()}
        done = [number for number, left in self.left.items() if not left]
        self.abort_request(done)
        return [SimpleNamespace(request_id=n, outputs=[SimpleNamespace(token_ids=[int(n)])]) for n in done]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def loop(engine: Engine) -> RequestLoop:
    return RequestLoop(engine, (ValueError,))


def test_a_call_is_done_with_its_last_request(loop: RequestLoop, engine: Engine) -> None:
    short, long = Call([[1], [2]], [1, 2]), Call([[3]], [3])
    loop.submit(short)
    loop.submit(long)
    assert [loop.advance(), loop.advance(), loop.advance()] == [[], [(short, None)], [(long, None)]]
    assert short.tokens == {0: [1], 1: [2]} and long.tokens == {0: [3]}
    assert loop.advance() == [] and not engine.left


def test_a_refused_request_fails_its_call_alone(loop: RequestLoop, engine: Engine) -> None:
    refused, other = Call([[1], []], [1, 1]), Call([[2]], [1])
    loop.submit(refused)
    loop.submit(other)
    assert list(engine.left) == ["3"]
    (first, error), *others = loop.advance()
    assert first is refused and isinstance(error, EngineError) and str(error) == "vLLM refuses a draw: empty"
    assert others == [(other, None)] and loop.advance() == []


def test_abort_withdraws_all(loop: RequestLoop, engine: Engine) -> None:
    loop.submit(Call([[1], [2]], [1, 9]))
    loop.submit(Call([[]], [1]))
    loop.abort()
    assert not engine.left and loop.advance() == []
