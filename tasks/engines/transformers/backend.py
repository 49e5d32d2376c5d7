"""transformers in this process, as an engine; it is imported only when it has to sample."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from schemas.config import Model, TransformersEngine
from tasks.engines.protocol import Sampler

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


class TransformersBackend:
    """A `tasks.engines.backend.Backend` without requirements to check."""

    versions, longest = "", None

    def __init__(self, settings: TransformersEngine) -> None:
        self._settings = settings

    def sampler(self, model: Model, stop: frozenset[int], scorer: "Callable[[], TransformersScorer]") -> Sampler:
        """The student, sampled with the model that scores it."""
        from tasks.engines.transformers.sampler import TransformersSampler

        return TransformersSampler(scorer(), stop, self._settings)
