"""A prompt and its completions in one pass: each scored as it is alone, by every family of models."""

from typing import Any

import pytest
import torch

from tasks.engines.counts import SCORED
from tasks.engines.transformers.attention import NAME, Completions
from tasks.engines.transformers.scorer import TransformersScorer
from tests.helpers.families import FAMILIES, tiny


def random_ids(length: int, seed: int) -> list[int]:
    return torch.randint(2, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPT = random_ids(9, 1)
COMPLETIONS = [random_ids(30, 2), random_ids(1, 3), [], random_ids(17, 4), random_ids(40, 5)]


@torch.inference_mode()
def alone(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Hidden states by the model's own attention, from a pass over one sequence."""
    states = model.base_model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).last_hidden_state[0]
    return torch.as_tensor(states[len(prompt) - 1 : len(prompt) + len(completion) - 1])


@pytest.mark.parametrize("family", ["Llama", *(f for f in FAMILIES if f != "Llama")])
def test_every_completion_is_scored_as_it_is_alone(family: str) -> None:
    scorer, own = TransformersScorer(lambda: tiny(family)), tiny(family)
    if getattr(own.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        own.set_attn_implementation("eager")
    for prompt in (PROMPT, PROMPT[:1]):
        for found, completion in zip(scorer.hidden(prompt, COMPLETIONS), COMPLETIONS, strict=True):
            assert found.shape == (len(completion), own.config.get_text_config().hidden_size)
            assert torch.allclose(found, alone(own, prompt, completion), atol=2e-4)
    assert scorer.hidden(PROMPT, []) == []


def test_nothing_is_computed_twice_and_nothing_padded() -> None:
    scorer = TransformersScorer(lambda: tiny("Llama"))
    before = SCORED.value
    scorer.hidden(PROMPT, COMPLETIONS)
    assert SCORED.value - before == len(PROMPT) + sum(max(0, len(c) - 1) for c in COMPLETIONS)
    assert Completions(3, [2, 0, 4]).positions().tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]


def test_a_model_that_does_not_keep_completions_apart_is_scored_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose attention does not hear of them."""
    model = tiny("Llama")
    forward = model.base_model.forward

    def deaf(*args: Any, completions: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", deaf)
    scorer = TransformersScorer(lambda: model)
    assert scorer.model.config._attn_implementation == "sdpa"
    for found, completion in zip(scorer.hidden(PROMPT, COMPLETIONS), COMPLETIONS, strict=True):
        assert torch.allclose(found, alone(model, PROMPT, completion), atol=1e-4)


@pytest.mark.parametrize(
    ("window", "positions", "packed"),
    [(None, 128, True), (16, 128, True), (1024, 4096, True), (2048, 4096, False), (4096, 4096, True)],
)
def test_a_window_that_the_self_test_does_not_reach_is_left_to_the_model(
    window: int | None, positions: int, packed: bool
) -> None:
    model = tiny("Mistral", sliding_window=window, max_position_embeddings=positions)
    assert (TransformersScorer(lambda: model).model.config._attn_implementation == NAME) == packed


def test_a_completion_without_room_is_refused_and_others_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = TransformersScorer(lambda: tiny("Llama"))
    whole = scorer.hidden(PROMPT, COMPLETIONS)
    passed = scorer._states

    def small(ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        if ids.numel() > 60:
            raise torch.OutOfMemoryError("no room")
        return passed(ids, **arguments)

    monkeypatch.setattr(scorer, "_states", small)
    for found, expected in zip(scorer.hidden(PROMPT, COMPLETIONS), whole, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
