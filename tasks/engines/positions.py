"""How long a sequence a model can take, as its configuration says; nothing of the model is loaded."""

from typing import Any, NamedTuple

from transformers import AutoConfig

from schemas.config import Model
from tasks.engines.protocol import EngineError


class Limit(NamedTuple):
    """The longest sequence, tokens, and what of the configuration says so."""

    tokens: int
    reason: str


def length_limit(config: Any) -> Limit | None:
    """The longest sequence that a model's numbers are defined for by the sequence alone; None where any is.

    Position embeddings end at `max_position_embeddings`. So does dynamic RoPE as one function for all lengths, and
    longrope at `original_max_position_embeddings`: past it, transformers chooses the frequencies of a whole batch by
    its longest sequence. YaRN, where its factor is given, reaches to that multiple of the original length, and linear
    RoPE to that of the stated one: some configurations state the stretched length, so at the most.
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
        stretched = [
            int(rope["factor"] * rope["original_max_position_embeddings"])
            for rope in ropes
            if rope["rope_type"] == "yarn" and rope.get("factor") is not None
        ]
        stretched += [int(rope["factor"] * positions) for rope in ropes if rope["rope_type"] == "linear"]
        limits.append(Limit(max(int(positions), *stretched, 0), "max_position_embeddings"))
    return min(limits, default=None)


def model_limit(model: Model) -> Limit | None:
    """The same of a model folder or hub name.

    Raises:
        EngineError: its configuration cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{model.path!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return length_limit(config)


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Parameters of RoPE, one for each type of layer where they differ; none without RoPE."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [of_layers for of_layers in parameters.values() if isinstance(of_layers, dict)]
    return [p for p in nested or [parameters] if "rope_type" in p]
