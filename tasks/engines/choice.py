"""Which engine samples for the student."""

from collections.abc import Callable
from typing import Any

from schemas.config import Engine, Model, TransformersEngine
from tasks.engines.protocol import Sampler
from tasks.engines.transformers import TransformersScorer, stop_tokens
from tasks.engines.trunks import TransformersSampler


def make_sampler(
    settings: Engine, model: Model, tokenizer: Any, scorer: Callable[[], TransformersScorer]
) -> Sampler:
    """The student on the engine of the settings.

    Args:
        scorer: the student loaded for scoring.

    Raises:
        EngineError: it cannot run here.
    """
    stop = stop_tokens(model, tokenizer)
    if isinstance(settings, TransformersEngine):
        return TransformersSampler(scorer(), stop, settings)
    raise NotImplementedError
