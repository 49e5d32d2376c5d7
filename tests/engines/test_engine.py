"""The transformers engine against slow references: whole forward passes, no cache, one draw at a time."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.command.configuration import ConfigurationError, checked
from schemas.config import Model, TransformersEngine
from schemas.signals import sources
from tasks.engines.protocol import Draw, EngineError, Trunk
from tasks.engines.sampling import inverse_cdf
from tasks.engines.scoring import View, score_blocks
from tasks.engines.transformers.kernels import Part, attend
from tasks.engines.transformers.loading import load_transformers
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.inputs.errors import InputError
from tasks.run.session import start_session
from tasks.statistics.streams import stream_seed, uniforms
from tests.helpers.sessions import provided

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
    assert [(e.tokens.tolist(), e.truncated) for e in ends] == expected
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


def test_layers_that_are_no_attention_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = TransformersScorer(lambda: model)
    monkeypatch.setattr(model.config, "layer_types", ["linear_attention", "full_attention"])
    with pytest.raises(EngineError, match=r"layers of kind linear_attention; use engine\.kind: vllm"):
        TransformersSampler(scorer, STOP, TransformersEngine(device="cpu"))


@pytest.mark.parametrize("failing", [range(1), range(3, 6), range(10, 40)])
def test_where_memory_runs_out_the_batch_shrinks_and_the_draws_stay(
    model: Any, monkeypatch: pytest.MonkeyPatch, failing: range
) -> None:
    expected = sampler_with(model).continue_prefixes(TRUNKS, DRAWS, 1.0)
    calls = 0
    widest: list[int] = []

    def short_of_memory(*args: Any, **kwargs: Any) -> Part:
        nonlocal calls
        calls += 1
        if args[0].shape[0] > 1:
            widest.append(args[0].shape[0])
            if calls in failing or (len(failing) > 20 and args[0].shape[0] > 4):
                raise torch.OutOfMemoryError("no room")
        return attend(*args, **kwargs)

    sampler = sampler_with(model)
    monkeypatch.setattr("tasks.engines.transformers.batches.attend", short_of_memory)
    got = sampler.continue_prefixes(TRUNKS, DRAWS, 1.0)
    assert [e.tokens.tolist() for e in got] == [e.tokens.tolist() for e in expected]
    assert widest[-1] < max(widest)


def test_no_memory_for_one_draw_is_a_clear_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_at_all(*_: Any, **__: Any) -> Part:
        raise torch.OutOfMemoryError("no room")

    sampler = sampler_with(model)
    monkeypatch.setattr("tasks.engines.transformers.batches.attend", none_at_all)
    with pytest.raises(EngineError, match="not enough memory on cpu for one draw"):
        sampler.continue_prefixes(TRUNKS, DRAWS, 1.0)


def test_ended_rows_leave_and_waiting_ones_enter(model: Any) -> None:
    sampler = sampler_with(model, rows=16)
    draws = [Draw(0, i % 5, 5 + i % 20, 60, i) for i in range(400)]
    ends = sampler.continue_prefixes(TRUNKS, draws, 1.0)
    lengths = [len(e.tokens) for e in ends]
    assert sampler.work.useful_steps == sum(lengths) and 4 * min(lengths) < max(lengths)
    assert sampler.work.row_steps < 1.1 * sum(lengths)


def test_a_scorer_gives_its_memory_back_and_scores_as_before(models: Path, tokenizer: Any) -> None:
    rooms: list[int] = []
    scorer = load_transformers(
        Model(path=str(models / "student")), TransformersEngine(device="cpu"), len(tokenizer), lambda: rooms.append(1)
    )
    sampler = TransformersSampler(scorer, STOP, TransformersEngine(device="cpu"))
    hidden, draws = scorer.hidden(PROMPT[:1], [PROMPT[1:]])[0], sampler.continue_prefixes(TRUNKS, DRAWS, 1.0)
    before = scorer.log_probs(hidden)
    scorer.unload()
    assert not scorer.loaded and torch.equal(scorer.log_probs(hidden), before)  # the head stays
    assert not scorer.loaded
    again = sampler.continue_prefixes(TRUNKS, DRAWS, 1.0)
    assert scorer.loaded and rooms == [1, 1]
    assert [e.tokens.tolist() for e in again] == [e.tokens.tolist() for e in draws]
    assert torch.allclose(scorer.hidden(PROMPT[:1], [PROMPT[1:]])[0], hidden, atol=1e-5)


def test_student_and_teacher_take_turns_where_memory_does_not_hold_both(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start_session(checked(settings))
    monkeypatch.setattr("tasks.run.models.fits", lambda model, device: False)
    models = provided(job)
    student, other = models.student, models.teacher(sources(job.config)[0])
    views = [View(student, PROMPT), View(other, PROMPT)]
    tokens, offsets = np.array([20, 21, 22, 1], dtype=np.int32), np.array([0, 4])
    turned = [x for _, x in score_blocks(views, tokens, offsets)]
    assert (student.loaded, other.loaded) in {(True, False), (False, True)}
    monkeypatch.setattr("tasks.run.models.fits", lambda model, device: True)
    together = [x for _, x in score_blocks(views, tokens, offsets)]
    assert student.loaded and other.loaded
    for a, b in zip(turned[0], together[0], strict=True):
        assert torch.equal(a, b)


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.engines.memory.total_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"student.path: .* GiB of weights in float32, but cpu has 0.00 GiB"):
        start_session(checked(settings))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_missing_vllm_is_a_clear_error(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"engine.kind: vLLM is not installed: pip install -c"):
        start_session(checked({**settings, "engine": {"kind": "vllm"}}))


def test_a_server_that_is_not_there_is_a_clear_error(settings: dict[str, Any]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(InputError, match=f"engine.urls: {url} does not answer as a vLLM server"):
        start_session(checked({**settings, "engine": {"kind": "vllm-server", "urls": [url]}}))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "is not a server address"),
        ("http://user:secret@host:1", "an address contains a password"),
    ],
)
def test_addresses_are_checked(settings: dict[str, Any], url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        checked({**settings, "engine": {"kind": "vllm-server", "urls": [url]}})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("vocabulary", [5, 128, 300])
def test_inverse_cdf_is_that_of_the_whole_row(vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(scale=4, size=(500, vocabulary))).float()
    logits[::3, vocabulary // 2] = -torch.inf
    u = torch.from_numpy(rng.random(500))
    cdf = torch.softmax(logits.double() / 0.8, -1).cumsum(-1)
    slowly = (cdf <= u[:, None] * cdf[:, -1:]).sum(-1)
    assert torch.equal(inverse_cdf(logits, u, torch.full((len(u),), 0.8)), slowly)
    last = torch.tensor([5.0, 1.0, -torch.inf]).repeat(2, 1)
    assert inverse_cdf(last, torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64), torch.ones(2)).tolist() == [1, 0]
    with pytest.raises(EngineError, match="not numbers"):
        inverse_cdf(torch.full((1, 4), torch.nan), u[:1], torch.ones(1))
