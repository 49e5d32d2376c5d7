"""The longest sequence a model can process, according to its configuration; no weights are loaded."""

from typing import Any, NamedTuple

from transformers import AutoConfig

from schemas.config import Model
from schemas.text import quoted
from tasks.engines.protocol import EngineError
from tasks.inputs.foreign import reading


class Limit(NamedTuple):
    """The longest sequence, in tokens, and the configuration entry that sets it."""

    tokens: int
    reason: str


def length_limit(config: Any) -> Limit | None:
    """The longest sequence for which a model's output depends on that sequence alone; None if there is no limit.

    Position embeddings end at `max_position_embeddings`. Dynamic RoPE is a single function of position only up to that
    length, and longrope only up to `original_max_position_embeddings`: beyond it, transformers chooses the frequencies
    of a whole batch by its longest sequence. YaRN, if its factor is given, extends to that multiple of the original
    length, and linear RoPE to that multiple of the stated length. The latter is an upper bound, as some configurations
    state the extended length.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    ropes = _rope_parameters(text)
    limits = [
        Limit(int(rope["original_max_position_embeddings"]), "longrope's original_max_position_embeddings")
        for rope in ropes
        if rope["rope_type"] == "longrope"
    ]
    if positions is not None:
        extended = [
            int(rope["factor"] * rope["original_max_position_embeddings"])
            for rope in ropes
            if rope["rope_type"] == "yarn" and rope.get("factor") is not None
        ]
        extended += [int(rope["factor"] * positions) for rope in ropes if rope["rope_type"] == "linear"]
        limits.append(Limit(max(int(positions), *extended, 0), "max_position_embeddings"))
    return min(limits, default=None)


def model_limit(model: Model) -> Limit | None:
    """The `length_limit` of a model folder or hub name.

    Raises:
        EngineError: the configuration cannot be read.
    """
    with reading(f"{quoted(model.path)} cannot be loaded", EngineError):
        return length_limit(AutoConfig.from_pretrained(**model.pretrained, trust_remote_code=model.trust_remote_code))


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """RoPE parameters, one entry per layer type if they differ; empty without RoPE."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [of_layers for of_layers in parameters.values() if isinstance(of_layers, dict)]
    return [p for p in nested or [parameters] if "rope_type" in p]
