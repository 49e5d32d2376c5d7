"""Attention of decoding rows, past every window and at every mix of depths, for small models of each family."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from schemas.config import TransformersEngine
from tasks.engines.protocol import Continuation, Draw, EngineError, Trunk
from tasks.engines.transformers import kernels
from tasks.engines.transformers.attention import NAME
from tasks.engines.transformers.attention import _forward as forward_of_models
from tasks.engines.transformers.batches import Batch
from tasks.engines.transformers.kernels import Part, attend, by_products, hidden_as_bias, joined
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import PROBE_LENGTH, TransformersScorer
from tasks.statistics.streams import uniforms
from tests.helpers.families import FAMILIES, WINDOW, tiny

PROMPTS = (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 20)
"""Tokens of a prompt: a row of the first has nothing before its input token."""
LIMIT = 2 * WINDOW + 5


def random_ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(2, 40, size=length).tolist())


TRUNKS = [Trunk(random_ids(n, n), random_ids(2 * WINDOW + 3, 100 + n)) for n in PROMPTS]
EVERY_DEPTH = [
    Draw(t, depth, None if i % 3 else 5 + depth, LIMIT - depth // 2, 1000 * t + i)
    for t in range(len(TRUNKS))
    for i, depth in enumerate((0, 0, 0, 1, 2, 3, 5, 6, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 2))
]


def sampled(model: Any, draws: Sequence[Draw], **settings: Any) -> list[Continuation]:
    scorer = TransformersScorer(lambda: model)
    sampler = TransformersSampler(scorer, frozenset(), TransformersEngine(device="cpu", **settings))
    return sampler.continue_prefixes(TRUNKS, draws, 1.0)


@torch.inference_mode()
def wrong_tokens(model: Any, draws: Sequence[Draw], ends: Sequence[Continuation]) -> int:
    """Sampled tokens that are not the inverse cdf, in one whole pass over all sequences, of their uniforms."""
    model.set_attn_implementation("eager")
    prefixes = [TRUNKS[draw.trunk].prefix(draw) for draw in draws]
    sequences = [torch.tensor([*p, *end.tokens.tolist()]) for p, end in zip(prefixes, ends, strict=True)]
    logits = model(input_ids=torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), use_cache=False).logits
    wrong = 0
    for row, draw, prefix, end in zip(logits, draws, prefixes, ends, strict=True):
        assert len(end.tokens) == draw.limit
        start, tokens = len(prefix) - 1, torch.from_numpy(end.tokens).long()[:, None]
        cdf = torch.softmax(row[start : start + draw.limit].double(), -1).cumsum(-1)
        u = torch.from_numpy(uniforms(np.array(draw.seed, dtype=np.uint64), np.arange(draw.limit)))
        above = cdf.gather(1, tokens)[:, 0]
        below = torch.where(tokens > 0, cdf.gather(1, (tokens - 1).clamp(min=0)), 0.0)[:, 0]
        wrong += int(((u < below - 2e-4) | (u > above + 2e-4)).sum())
    return wrong


@pytest.fixture(params=["fused", "products"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fused kernel of the CPU, and what devices without one use."""
    if request.param == "products":
        monkeypatch.delitem(kernels.KERNELS, "cpu")
    kernels.fused.cache_clear()
    yield
    kernels.fused.cache_clear()


@pytest.mark.parametrize("rows", [None, 5], ids=["all rows at once", "five rows at once"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_draw_is_from_whole_passes_past_every_window(family: str, rows: int | None, kernel: None) -> None:
    """Both numbers of rows meet rows whose trunk is out of sight."""
    model = tiny(family)
    draws = EVERY_DEPTH if rows is None else EVERY_DEPTH[::7]
    assert wrong_tokens(model, draws, sampled(model, draws, rows=rows)) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_in_chunks_shorter_than_the_window_are_whole_passes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.engines.transformers.trunks._CHUNK", {"cpu": WINDOW - 3})
    model = tiny(family)
    draws = EVERY_DEPTH[::5]
    assert wrong_tokens(model, draws, sampled(model, draws)) == 0


def disagrees(query: torch.Tensor, *others: Any) -> Part:
    part = by_products(query, *others)
    return part._replace(lse=part.lse + 0.01)


def is_missing(*arguments: Any) -> Part:
    raise RuntimeError("not built for this device")


@pytest.mark.parametrize("wrong", [disagrees, is_missing])
def test_a_kernel_that_fails_or_disagrees_is_not_used(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.KERNELS, "cpu", wrong)
    kernels.fused.cache_clear()
    assert kernels.fused(torch.device("cpu"), torch.float32, 8) is by_products
    kernels.fused.cache_clear()


@pytest.mark.parametrize("size", [8, 20, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_of_the_cpu_is_used_with_heads_of_any_size(dtype: torch.dtype, size: int) -> None:
    kernels.fused.cache_clear()
    assert kernels.fused(torch.device("cpu"), dtype, size) is kernels.KERNELS["cpu"]


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["", "capped"])
@pytest.mark.parametrize("queries", [1, 3, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parts_of_the_keys_joined_are_attention_to_all(
    dtype: torch.dtype, queries: int, softcap: float | None, kernel: None
) -> None:
    """Of a long first part, queries see all, a stretch in any place, or nothing; of the second all."""
    generator = torch.Generator().manual_seed(queries)
    shapes = ((1, 2, n, 8) for n in (1300, 1300, queries))
    keys, values, query = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    first = 1290
    starts = torch.linspace(0, first, queries).long()
    lengths = torch.tensor([first, 0, 5, 700])[torch.arange(queries) % 4]
    place = torch.arange(first)[None]
    bias = hidden_as_bias((place >= starts[:, None]) & (place < (starts + lengths)[:, None]))
    shared = attend(query, keys[:, :, :first], values[:, :, :first], 0.35, bias=bias, softcap=softcap)
    own = attend(query, keys[:, :, first:], values[:, :, first:], 0.35, softcap=softcap)
    scores = query.double() @ keys.double().transpose(-1, -2) * 0.35
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores[..., :first] += bias
    expected = torch.softmax(scores, -1) @ values.double()
    error = (joined(own, shared).double() - expected).abs().max()
    assert float(error) < {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
    sums = scores[..., :first].exp().sum(-1).float()
    assert torch.allclose(shared.lse.exp(), sums, rtol=1e-3 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["", "capped"])
def test_even_attention_to_many_large_values_stays_in_range(softcap: float | None) -> None:
    """The sum of all values is more than float16 can hold; their mean is not."""
    keys, values = torch.zeros(1, 2, 1000, 8).half(), torch.full((1, 2, 1000, 8), 100.0).half()
    part = attend(torch.ones(1, 2, 4, 8).half(), keys, values, 0.35, softcap=softcap)
    assert torch.allclose(part.out.float(), torch.tensor(100.0), rtol=1e-3)


def test_the_self_test_finds_rows_that_see_what_they_should_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log-sum-exp of 0 for no keys, as the fused kernel of the CPU gives it."""

    def of_no_keys_zero(*args: Any, **kwargs: Any) -> Part:
        part = attend(*args, **kwargs)
        return part._replace(lse=part.lse.masked_fill(part.lse == -torch.inf, 0.0))

    monkeypatch.setattr("tasks.engines.transformers.batches.attend", of_no_keys_zero)
    with pytest.raises(EngineError, match="log-probabilities by shared prefixes differ"):
        sampled(tiny("Llama"), EVERY_DEPTH[:1])


def test_the_self_test_goes_past_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    window = 3 * PROBE_LENGTH

    def without_window(batch: Any, layer: int, query: Any, scale: float, window: int | None, softcap: Any) -> Any:
        return attended(batch, layer, query, scale, None, softcap)

    attended = Batch.attend
    monkeypatch.setattr(Batch, "attend", without_window)
    with pytest.raises(EngineError, match="log-probabilities by shared prefixes differ"):
        sampled(tiny("Mistral", sliding_window=window), EVERY_DEPTH[:1])


def test_the_self_test_measures_against_the_models_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole passes by the attention that decoding sets would make the same mistake twice."""
    model = tiny("Llama")
    plain: Any = forward_of_models

    def wider(module: Any, query: Any, *args: Any, scaling: float, **kwargs: Any) -> Any:
        return plain(module, query, *args, scaling=1.2 * scaling, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, NAME, wider)
    with pytest.raises(EngineError, match="log-probabilities by shared prefixes differ"):
        sampled(model, EVERY_DEPTH[:1])


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = tiny("Llama")
    model.config.is_causal = False
    with pytest.raises(EngineError, match="log-probabilities of a shorter sequence differ"):
        TransformersScorer(lambda: model)


def test_scores_are_of_capped_attention_as_the_model_defines_it() -> None:
    """SDPA, which transformers chooses for Gemma 2, leaves the cap out."""
    model, ids = tiny("Gemma2"), random_ids(30, 0)
    assert model.config._attn_implementation == "sdpa"
    scored = TransformersScorer(lambda: model).hidden(ids[:1], [ids[1:]])[0]
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        own = model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, :-1]
    assert torch.allclose(scored, own, atol=1e-4)


def test_a_latent_attention_is_refused() -> None:
    """DeepSeek's caches what keys and values are made from."""
    sizes = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6, "head_dim": 4}
    model = tiny("DeepseekV3", **sizes, num_key_value_heads=4, q_lora_rank=None, first_k_dense_replace=2)
    with pytest.raises(EngineError, match="DeepseekV3Attention caches keys other than those it attends to"):
        sampled(model, EVERY_DEPTH[:1])


def test_windows_that_only_the_models_masks_know_are_refused() -> None:
    """PhiMoE does not tell its attention of the window; it was decoded without one."""
    with pytest.raises(EngineError, match="log-probabilities by shared prefixes differ"):
        sampled(tiny("Phimoe", sliding_window=WINDOW, num_local_experts=4), EVERY_DEPTH[:1])
