"""The draws of all threads' calls as requests of one vLLM engine, which schedules them together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.engines.counts import MODEL_TIME
from tasks.engines.protocol import EngineError
from tasks.engines.turn import TURN


@dataclass(eq=False)
class Call:
    """The requests of one call.

    Attributes:
        prompts: token ids of each request.
        parameters: vLLM's `SamplingParams` of each request; outputs are final only.
        tokens: sampled by each request that is done.
    """

    prompts: list[list[int]]
    parameters: list[Any]
    tokens: dict[int, Sequence[int]] = field(default_factory=dict)


class RequestLoop:
    """A `tasks.engines.stream.Loop` of calls on a vLLM engine: a call's requests enter at once, and wait there."""

    def __init__(self, engine: Any, refusals: tuple[type[Exception], ...]) -> None:
        """`engine` is vLLM's `LLMEngine`; `refusals` are the errors that it refuses a request with."""
        self._engine, self._refusals = engine, refusals
        self._numbers = 0
        self._requests: dict[str, tuple[Call, int]] = {}
        self._refused: list[tuple[Call, Exception]] = []

    def submit(self, call: Call) -> None:
        """Add a call's requests; those that vLLM refuses fail it."""
        for i, (prompt, parameters) in enumerate(zip(call.prompts, call.parameters, strict=True)):
            self._numbers += 1
            try:
                self._engine.add_request(str(self._numbers), {"prompt_token_ids": prompt}, parameters)
            except self._refusals as error:
                self._refused.append((call, EngineError(f"vLLM refuses a draw: {error}")))
                self._withdraw(call)
                return
            self._requests[str(self._numbers)] = (call, i)

    def advance(self) -> Sequence[tuple[Call, Exception | None]]:
        """One step of vLLM's scheduler."""
        closed: list[tuple[Call, Exception | None]] = [*self._refused]
        self._refused = []
        with TURN, MODEL_TIME.measured():
            outputs = self._engine.step() if self._requests else []
        for output in outputs:
            call, i = self._requests.pop(output.request_id)
            call.tokens[i] = output.outputs[0].token_ids
            if len(call.tokens) == len(call.prompts):
                closed.append((call, None))
        return closed

    def abort(self) -> None:
        """Withdraw all requests."""
        self._engine.abort_request(list(self._requests))
        self._requests.clear()
        self._refused = []

    def _withdraw(self, call: Call) -> None:
        numbers = [number for number, (other, _) in self._requests.items() if other is call]
        self._engine.abort_request(numbers)
        for number in numbers:
            del self._requests[number]
