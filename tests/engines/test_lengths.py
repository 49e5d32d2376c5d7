"""The longest sequence of a model: positions, and kinds of RoPE whose batches are one; checked before a run starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flows.command.configuration import checked
from schemas.config import TransformersEngine, VLLMEngine
from tasks.engines.positions import length_limit
from tasks.engines.protocol import Draw, EngineError, Trunk
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.engines.vllm.offline import _context_length
from tasks.inputs.errors import InputError
from tasks.run.session import start_session
from tests.helpers.families import tiny
from tests.helpers.sessions import provided


def longrope(original: int) -> dict[str, Any]:
    """New each time: configurations change what they are given."""
    return {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": original,
    }


LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "settings", "limit"),
    [
        ("Llama", {"max_position_embeddings": 48}, (48, "max_position_embeddings")),
        ("GPT2", {"n_positions": 48}, (48, "max_position_embeddings")),
        ("Gemma3", {}, (131_072, "max_position_embeddings")),
        ("Bloom", {}, None),
        ("Mamba", {}, None),
        ("Llama", {"max_position_embeddings": 64, "rope_parameters": DYNAMIC}, (64, "max_position_embeddings")),
        ("Llama", {"max_position_embeddings": 40, "rope_parameters": YARN}, (128, "max_position_embeddings")),
        ("Llama", {"max_position_embeddings": 24, "rope_parameters": LINEAR}, (96, "max_position_embeddings")),
        (
            "Phi3",
            {
                "hidden_size": 32,
                "num_attention_heads": 4,
                "original_max_position_embeddings": 16,
                "rope_parameters": longrope(16),
            },
            (16, "longrope's original_max_position_embeddings"),
        ),
        (
            "Gemma3Text",
            {
                "head_dim": 8,
                "rope_parameters": {
                    "full_attention": longrope(16),
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                },
            },
            (16, "longrope's original_max_position_embeddings"),
        ),
    ],
)
def test_limits_of_configurations(config: str, settings: dict[str, Any], limit: tuple[int, str] | None) -> None:
    made = getattr(transformers, f"{config}Config")(**settings)
    assert length_limit(made) == limit
    tokens = None if limit is None else limit[0]
    assert _context_length(VLLMEngine(), made) == tokens
    assert _context_length(VLLMEngine(context_length=8), made) == 8


@pytest.mark.parametrize(
    ("family", "settings", "limit"),
    [
        ("Phi3", {"rope_parameters": longrope(40), "original_max_position_embeddings": 40}, 40),
        ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 40}, 40),
    ],
)
def test_a_sequence_never_depends_on_a_longer_one_beside_it(family: str, settings: dict[str, Any], limit: int) -> None:
    model = tiny(family, hidden_size=32, **settings)
    scorer = TransformersScorer(lambda: model)
    short, longest = list(range(2, 12)), [2 + i % 30 for i in range(limit)]
    alone = scorer.hidden(short[:1], [short[1:]])[0]
    assert torch.allclose(scorer.hidden(short[:1], [short[1:], longest[1:]])[0], alone, atol=1e-4)
    message = f"a sequence of {limit + 1} tokens is longer than the {limit} that {family}ForCausalLM can take"
    with pytest.raises(EngineError, match=message):
        scorer.hidden(short[:1], [short[1:], [*longest[1:], 2]])
    sampler = TransformersSampler(scorer, frozenset([1]), TransformersEngine(device="cpu"))
    trunks = [Trunk(tuple(short[:4]), tuple(short[4:]))]
    sampler.continue_prefixes(trunks, [Draw(0, 6, 2, limit - 11, 0), Draw(0, 0, None, 1, 1)], 1.0)
    with pytest.raises(EngineError, match=message):
        sampler.continue_prefixes(trunks, [Draw(0, 6, 2, limit - 10, 0)], 1.0)


def shortened(folder: Path, positions: int) -> None:
    """Let a model's configuration say that it has fewer positions."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": positions}))


@pytest.fixture
def copied(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run's settings with models of its own."""
    student, teacher = settings["student"], settings["teachers"][0]["model"]
    for name, model in (("student", student), ("teacher", teacher)):
        model["path"] = str(shutil.copytree(model["path"], tmp_path / name))
    return settings


def test_completions_past_the_students_positions_are_refused_before_anything_is_loaded(
    copied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened(Path(copied["student"]["path"]), 48)
    copied["sampling"]["max_tokens"] = 9000

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("tasks.engines.transformers.loading.load_transformers", never)
    with pytest.raises(InputError) as raised:
        start_session(checked(copied))
    message = str(raised.value)
    assert message.startswith("sampling.max_tokens: 9000 tokens after a prompt of ") and "\n" not in message
    prompt = int(message.split("prompt of ")[1].split()[0])
    assert f"more than the 48 that '{copied['student']['path']}' can take (max_position_embeddings)" in message
    assert message.endswith(f"; set it to {48 - prompt} or less")
    longest = 48 - max(len(job_prompt) for job_prompt in prompts(copied))
    copied["sampling"]["max_tokens"] = longest
    copied["teachers"] = copied["teachers"][:1]
    start_session(checked(copied))
    copied["sampling"]["max_tokens"] = longest + 1
    with pytest.raises(InputError, match=rf"set it to {longest} or less"):
        start_session(checked(copied))


def prompts(settings: dict[str, Any]) -> list[list[int]]:
    short = start_session(checked({**settings, "sampling": {**settings["sampling"], "max_tokens": 2}}))
    return [provided(short).prompt(question) for question in short.keys.questions]


def test_a_teachers_prompt_with_its_context_counts(copied: dict[str, Any]) -> None:
    longest = max(map(len, prompts(copied)))
    shortened(Path(copied["teachers"][0]["model"]["path"]), longest + 24)
    start_session(checked(copied))
    copied["teachers"][0]["contexts"] = [{"kind": "answer", "template": "{{ prompt }} answer {{ answer }}"}]
    with pytest.raises(InputError, match=r"teacher 'large' with context 'answer'\) are more than the .*/teacher'"):
        start_session(checked(copied))


def test_a_prompt_without_room_is_to_be_shortened(copied: dict[str, Any]) -> None:
    shortened(Path(copied["student"]["path"]), 3)
    with pytest.raises(InputError, match=r"that '.*' can take \(max_position_embeddings\); shorten the prompt"):
        start_session(checked(copied))


def test_a_configuration_that_cannot_be_read_is_an_error_of_its_field(copied: dict[str, Any]) -> None:
    path = Path(copied["teachers"][0]["model"]["path"]) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "of_another_world"}))
    with pytest.raises(InputError, match=r"^teachers\[0\]\.model\.path: '.*' cannot be loaded: .*of_another_world"):
        start_session(checked(copied))
