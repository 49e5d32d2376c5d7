"""The transformers engine against slow references: whole forward passes, no cache, one draw at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.config import Model, TransformersEngine
from tasks.engines.protocol import Draw, EngineError, Trunk
from tasks.engines.scoring import View, score_blocks
from tasks.engines.streams import stream_seed, uniforms
from tasks.engines.transformers import TransformersScorer, load_transformers
from tasks.engines.trunks import TransformersSampler

STOP = frozenset([1])


@pytest.fixture(scope="module")
def model(models: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(models / "student").eval()


def sampler_with(model: Any, **settings: Any) -> TransformersSampler:
    return TransformersSampler(TransformersScorer(lambda: model), STOP, TransformersEngine(device="cpu", **settings))


PROMPT = (2, 9, 11, 3)
TRUNKS = [Trunk(PROMPT, (20, 21, 22, 23, 24)), Trunk(PROMPT, (20, 25, 8)), Trunk(PROMPT)]
DRAWS = [
    Draw(0, 2, 12, 10, 1),
    Draw(0, 5, None, 12, 2),
    Draw(1, 1, 7, 3, 3),
    Draw(1, 3, None, 15, 4),
    Draw(2, 0, None, 20, 5),
    Draw(2, 0, 1, 9, 6),  # a forced end of sequence
    Draw(0, 4, 10, 0, 7),  # no room left
    *(Draw(i % 3, 0, 5 + i, 18, 100 + i) for i in range(20)),
]


@torch.inference_mode()
def slow(model: Any, draw: Draw, temperature: float = 1.0, trunks: Any = TRUNKS) -> tuple[list[int], bool]:
    """One draw by whole forward passes."""
    ids = trunks[draw.trunk].prefix(draw)
    if draw.token in STOP:
        return [], False
    out: list[int] = []
    for step in range(draw.limit):
        logits = model(input_ids=torch.tensor([ids + out])).logits[0, -1].double()
        cdf = torch.softmax(logits / temperature, -1).cumsum(-1)
        u = float(uniforms(np.array([draw.seed], dtype=np.uint64), step)[0])
        out.append(int((cdf <= u * cdf[-1]).sum()))
        if out[-1] in STOP:
            return out, False
    return out, True


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_are_those_of_whole_forward_passes(model: Any, temperature: float) -> None:
    sampler = sampler_with(model)
    ends = sampler.continue_prefixes(TRUNKS, DRAWS, temperature)
    expected = [slow(model, draw, temperature) for draw in DRAWS]
    assert [(e.tokens.tolist(), e.cut) for e in ends] == expected
    assert sampler.decoded == sum(len(tokens) for tokens, _ in expected)
    assert any(len(tokens) < draw.limit for (tokens, _), draw in zip(expected, DRAWS, strict=True))


def test_draws_do_not_depend_on_batch_or_order(model: Any) -> None:
    whole = sampler_with(model).continue_prefixes(TRUNKS, DRAWS, 1.0)
    order = np.random.default_rng(0).permutation(len(DRAWS))
    shuffled = sampler_with(model).continue_prefixes(TRUNKS, [DRAWS[i] for i in order], 1.0)
    for settings in ({"rows": 1}, {"rows": 5, "score_rows": 1}, {"memory": 1e-5}, {"memory": 1e-9}):
        narrow = sampler_with(model, **settings).continue_prefixes(TRUNKS, DRAWS, 1.0)
        assert [e.tokens.tolist() for e in narrow] == [e.tokens.tolist() for e in whole]
    for i, end in enumerate(whole):
        assert shuffled[int(np.flatnonzero(order == i)[0])].tokens.tolist() == end.tokens.tolist()


def test_streamed_log_probabilities_are_the_models_own(model: Any) -> None:
    scorer = TransformersScorer(lambda: model)
    prompt = list(PROMPT)
    tokens = np.array([20, 21, 22, 23, 1, 26, 27, 1], dtype=np.int32)
    offsets = np.array([0, 5, 8])
    with torch.inference_mode():
        own = torch.cat(
            [
                torch.log_softmax(model(input_ids=torch.tensor([prompt + part.tolist()])).logits[0, 3:-1], -1)
                for part in (tokens[:5], tokens[5:])
            ]
        )
    for rows in (None, np.array([1, 4, 6])):
        for block, group in ((2, 8), (64, 4096)):
            parts = list(
                score_blocks([View(scorer, prompt)], tokens, offsets, rows=rows, block=block, group_tokens=group)
            )
            positions = np.concatenate([p for p, _ in parts])
            assert positions.tolist() == (list(range(8)) if rows is None else rows.tolist())
            assert all(len(p) <= block for p, _ in parts)
            assert torch.allclose(torch.cat([x for _, (x,) in parts]).float(), own[positions], atol=1e-5)


def test_a_shared_prefix_is_computed_once(model: Any) -> None:
    sampler = sampler_with(model)
    seen: list[int] = []
    forward = model.base_model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    before = sampler.work.prefix_tokens
    model.base_model.forward = counted
    try:
        for _ in range(2):
            draws = [Draw(i % 3, len(TRUNKS[i % 3].completion), 5 + i % 20, 1, i) for i in range(40)]
            sampler.continue_prefixes(TRUNKS, draws, 1.0)
    finally:
        model.base_model.forward = forward
    # the prompt once, then each completion, and one token a draw; nothing of trunks in a second call
    assert sum(seen) == 4 + 5 + 3 + 40 + 40
    assert sampler.work.prefix_tokens - before == 4 + 5 + 3


def test_streams_are_uniform_and_independent() -> None:
    seeds = np.array([stream_seed(0, "q", r) for r in range(2000)], dtype=np.uint64)
    u = np.stack([uniforms(seeds, step) for step in range(50)])
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size)
    for a, b in ((u[0], u[1]), (u[:, 0], u[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))
    assert stream_seed(1, "2") != stream_seed("1", 2) and stream_seed("a", "b") != stream_seed("ab")


def test_an_engine_that_cannot_reproduce_the_model_is_refused(model: Any) -> None:
    class Scaled(type(model)):  # type: ignore[misc] # a model whose logits are not its head's outputs
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 0.5
            return out

    scaled = Scaled(model.config)
    scaled.load_state_dict(model.state_dict())
    with pytest.raises(EngineError, match="log-probabilities by head differ"):
        TransformersScorer(lambda: scaled)


def test_no_gpu_for_a_gpu_setting_is_a_clear_error(models: Path, tokenizer: Any) -> None:
    if torch.cuda.is_available():
        device, message = "cuda:99", "cuda:99"
    else:
        device, message = "cuda", "this machine has 0 GPUs"
    with pytest.raises(EngineError, match=message):
        load_transformers(Model(path=str(models / "student")), TransformersEngine(device=device), len(tokenizer))
