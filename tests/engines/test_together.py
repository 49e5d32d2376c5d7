"""Calls of many threads, decoded together: each gets what it gets on its own, bit for bit, whatever memory there is."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.config import TransformersEngine
from tasks.engines.protocol import Continuation, Draw, EngineError, Trunk
from tasks.engines.transformers import loop as looping
from tasks.engines.transformers.kernels import Part
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import TransformersScorer
from tests.helpers.threads import stopped_when, together

Call = tuple[list[Trunk], list[Draw]]


@pytest.fixture(scope="module")
def model(models: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(models / "student").eval()


@pytest.fixture
def sampler(model: Any) -> TransformersSampler:
    return TransformersSampler(TransformersScorer(lambda: model), frozenset([1]), TransformersEngine(device="cpu"))


def calls(n: int, draws: int = 14) -> list[Call]:
    """Questions with rollouts to branch off, and draws at all depths of them, forced and free."""
    rng = np.random.default_rng(0)
    out: list[Call] = []
    for question in range(n):
        prompt = tuple(rng.integers(2, 25, 3 + question).tolist())
        trunks = [Trunk(prompt), *(Trunk(prompt, tuple(rng.integers(2, 25, 9).tolist())) for _ in range(2))]
        some = [
            Draw(i % 3, 0 if i % 3 == 0 else i % 8, None if i % 2 else 5 + i, 4 + 2 * i, 1000 * question + i)
            for i in range(draws)
        ]
        out.append((trunks, some))
    return out


def in_threads(sampler: TransformersSampler, wanted: list[Call]) -> list[list[Continuation] | BaseException]:
    """The results of calls of one thread each."""
    return together([partial(sampler.continue_prefixes, *call, 1.0) for call in wanted])


def tokens(ends: Any) -> list[tuple[list[int], bool]]:
    return [(end.tokens.tolist(), end.truncated) for end in ends]


def test_a_decoders_states_are_those_that_it_has_alone(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, at every step, not only the tokens that follow from them."""
    forward, recorded = vars(looping)["forward"], dict[int, list[torch.Tensor]]()

    loop: Any = sampler._stream._loop

    def kept(model: Any, joined: Any, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = forward(model, joined, inputs)
        for running, start, end in zip(
            loop._running,
            joined.bounds,
            joined.bounds[1:],
            strict=False,
        ):
            recorded.setdefault(len(running.call.trunks[0].prompt), []).append(out[start:end].clone())
        return out

    monkeypatch.setattr(looping, "forward", kept)
    wanted = calls(8)
    for call in wanted:
        sampler.continue_prefixes(*call, 1.0)
    alone, recorded = recorded, {}
    in_threads(sampler, wanted)
    assert alone.keys() == recorded.keys()
    for question, steps in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(steps, recorded[question], strict=True))


def test_calls_beside_each_other_are_those_on_their_own(sampler: TransformersSampler) -> None:
    wanted = calls(10)
    alone = [sampler.continue_prefixes(*call, 1.0) for call in wanted]
    steps = sampler.work.steps
    beside = in_threads(sampler, wanted)
    assert [tokens(ends) for ends in beside] == [tokens(ends) for ends in alone]
    assert sampler.work.steps - steps < steps / 2


def test_every_temperature_is_its_callers(sampler: TransformersSampler) -> None:
    (trunks, draws), *_ = calls(1)
    alone = {t: tokens(sampler.continue_prefixes(trunks, draws, t)) for t in (0.5, 1.0, 1.5)}
    found = together([partial(sampler.continue_prefixes, trunks, draws, t) for t in alone])
    assert [tokens(ends) for ends in found] == list(alone.values())
    assert len({str(ends) for ends in alone.values()}) == 3


@pytest.mark.parametrize("capacity", [40, 150, 600])
def test_where_memory_is_short_calls_wait_and_their_draws_stay(sampler: TransformersSampler, capacity: int) -> None:
    wanted = calls(6)
    sampler._stream._loop.limits = replace(sampler._limits, capacity=capacity)  # type: ignore[attr-defined]
    alone = [tokens(sampler.continue_prefixes(*call, 1.0)) for call in wanted]
    assert [tokens(ends) for ends in in_threads(sampler, wanted)] == alone


def test_a_failed_allocation_puts_calls_back_and_their_draws_stay(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = calls(6)
    alone = [tokens(sampler.continue_prefixes(*call, 1.0)) for call in wanted]
    attend, seen = vars(looping)["forward"], []

    def failing(model: Any, joined: Any, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        if len(joined._batches) > 2:
            raise torch.OutOfMemoryError("no room")
        out: torch.Tensor = attend(model, joined, inputs)
        return out

    monkeypatch.setattr(looping, "forward", failing)
    assert [tokens(ends) for ends in in_threads(sampler, wanted)] == alone


def test_without_room_for_one_draw_every_call_fails_clearly(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_at_all(*_: Any, **__: Any) -> Part:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("tasks.engines.transformers.batches.attend", none_at_all)
    for end in in_threads(sampler, calls(3)):
        assert isinstance(end, EngineError) and "not enough memory on cpu for one draw" in str(end)


def test_rows_compute_alike_from_a_number_on_or_calls_run_alone(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampler._limits.min_rows == 16
    wanted = calls(4)
    alone = [tokens(sampler.continue_prefixes(*call, 1.0)) for call in wanted]
    sampler._stream._loop.limits = replace(sampler._limits, min_rows=None)  # type: ignore[attr-defined]
    assert [tokens(ends) for ends in in_threads(sampler, wanted)] == alone

    forward = sampler._scorer.logits
    monkeypatch.setattr(sampler._scorer, "logits", lambda hidden: forward(hidden) * (1 + len(hidden) * 1e-6))
    with torch.inference_mode():
        assert sampler._rows_that_compute_alike() is None


def test_caches_are_kept_for_later_calls_while_there_is_room(sampler: TransformersSampler) -> None:
    wanted = calls(3)
    for call in wanted:
        sampler.continue_prefixes(*call, 1.0)
    before = sampler.work.prefix_tokens
    in_threads(sampler, wanted)
    assert sampler.work.prefix_tokens == before
    assert sampler._caches.used == 0
    sampler.release()
    sampler.continue_prefixes(*wanted[0], 1.0)
    assert sampler.work.prefix_tokens > before


def test_each_thread_knows_its_own_tokens(sampler: TransformersSampler) -> None:
    counted: list[tuple[int, int]] = []

    def run(call: Call) -> None:
        ends = sampler.continue_prefixes(*call, 1.0)
        counted.append((sampler.decoded, sum(len(end.tokens) for end in ends)))

    together([partial(run, call) for call in calls(4)])
    assert len(counted) == 4 and all(a == b for a, b in counted) and sampler.decoded == 0


def test_a_stopped_run_ends_the_calls_of_a_sampler(sampler: TransformersSampler) -> None:
    (call,) = calls(1)
    at_once = threading.Event()
    at_once.set()
    for _ in range(3):  # so often that the stop comes before, between and after the steps
        stopped_when(at_once, [partial(sampler.continue_prefixes, *call, 1.0)] * 2)
    alone = tokens(sampler.continue_prefixes(*call, 1.0))
    assert [tokens(end) for end in in_threads(sampler, [call, call])] == [alone] * 2


def test_a_prefix_that_failed_is_computed_anew(sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else some of its layers would be longer than others, and draws silently wrong."""
    wanted = calls(4)
    alone = [tokens(sampler.continue_prefixes(*call, 1.0)) for call in wanted]
    sampler.release()
    layer, failed = sampler._scorer.model.model.layers[1], 0
    forward = layer.forward

    def failing(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if hidden.shape[1] > 1:
            failed += 1
            if failed in (4, 6):
                raise torch.OutOfMemoryError("no room")
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", failing)
    ends = in_threads(sampler, wanted)
    assert failed > 6
    for end, expected in zip(ends, alone, strict=True):
        assert isinstance(end, EngineError) or tokens(end) == expected
    assert [tokens(sampler.continue_prefixes(*call, 1.0)) for call in wanted] == alone


def test_a_call_that_fails_leaves_the_others(sampler: TransformersSampler) -> None:
    good = calls(3)
    alone = [tokens(sampler.continue_prefixes(*call, 1.0)) for call in good]
    foreign = ([Trunk((5,), (10_000,))], [Draw(0, 1, None, 5, 1)])
    ends = in_threads(sampler, [*good, foreign])
    assert isinstance(ends[3], IndexError) and [tokens(end) for end in ends[:3]] == alone
