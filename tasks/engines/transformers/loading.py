"""Loads models for scoring, and reads what goes with them: tokens that end a completion, size of the vocabulary."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from schemas.config import Model, ScoringSettings
from schemas.text import quoted, reason
from tasks.engines.device import resolve_device
from tasks.engines.memory import is_out_of_memory
from tasks.engines.protocol import EngineError
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.inputs.foreign import reading


def load_transformers(
    model: Model, settings: ScoringSettings, vocabulary: int, make_room: Callable[[], None] = lambda: None
) -> TransformersScorer:
    """Load a model folder or hub name.

    Args:
        make_room: called before weights are loaded, the first time and after each `unload`.

    Raises:
        EngineError: the device does not exist, or the model cannot be loaded.
    """
    device = resolve_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)

    def load() -> Any:
        make_room()
        with reading(f"{quoted(model.path)} cannot be loaded", EngineError):
            result: Any = AutoModelForCausalLM.from_pretrained(
                **model.pretrained,
                dtype=getattr(torch, model.dtype),
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
            )
            loaded, found = result
            loaded = loaded.to(device)
        _check_complete(model, found["missing_keys"])
        return loaded

    try:
        return TransformersScorer(load, vocabulary)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, EngineError) or is_out_of_memory(error):
            raise
        raise EngineError(f"{model.path!r} cannot be run: {reason(error)}") from error


def _check_complete(model: Model, missing: Collection[str]) -> None:
    """Refuse a model some of whose weights are not in its files: transformers makes them up, anew at each load.

    Raises:
        EngineError: the message names the first of them.
    """
    if missing:
        raise EngineError(
            f"{model.path!r} is incomplete: its files lack {len(missing)} of its weights, such as {min(missing)!r}"
        )


def stop_tokens(model: Model, tokenizer: Any) -> frozenset[int]:
    """Token ids that end a completion: those of the tokenizer and of the model's generation settings."""
    with reading(f"{quoted(model.path)} has generation settings that cannot be read", EngineError):
        own = _generation_settings(model).eos_token_id
    ends = [e for e in (tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])) if e is not None]
    wrong = [e for e in ends if not isinstance(e, int)]
    if wrong:
        raise EngineError(f"{quoted(model.path)} has an eos_token_id of {quoted(wrong[0])}; it must be a token id")
    return frozenset(ends)


def tokens_with(tokenizer: Any, texts: Sequence[str]) -> frozenset[int]:
    """Token ids whose text contains one of some texts.

    Raises:
        EngineError: no token contains one of them.
    """
    if not texts:
        return frozenset()
    ids = sorted(tokenizer.get_vocab().values())
    found = dict(zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True))
    for text in texts:
        if not any(text in of_token for of_token in found.values()):
            raise EngineError(f"no token contains {quoted(text)}; give a shorter text")
    return frozenset(i for i, of_token in found.items() if any(text in of_token for text in texts))


def _generation_settings(model: Model) -> GenerationConfig:
    """A model's own settings of generation, or those that follow from its configuration."""
    if not model.is_gguf:
        with suppress(OSError):
            return GenerationConfig.from_pretrained(model.path, revision=model.revision or "main")
    config = AutoConfig.from_pretrained(**model.pretrained, trust_remote_code=model.trust_remote_code)
    return GenerationConfig.from_model_config(config)


def vocabulary_size(tokenizer: Any) -> int:
    """Number of token ids that the tokenizer can encode or decode; output rows beyond it are padding."""
    return 1 + int(max(tokenizer.get_vocab().values()))
