"""The interface of an engine: it provides a sampler of the student."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from schemas.config import Model
from tasks.engines.protocol import Sampler

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


class Backend(Protocol):
    """One kind of engine, constructed from its settings if its requirements are met; it samples from the student.

    Attributes:
        versions: of its components other than transformers and torch, with a trailing space; part of keys.
        longest: most tokens of prompt and completion together; None if only the model limits them.
    """

    versions: str
    longest: int | None

    def sampler(self, model: Model, stop: frozenset[int], scorer: "Callable[[], TransformersScorer]") -> Sampler:
        """The student on this engine.

        Args:
            stop: token ids that end a completion.
            scorer: loads the student for scoring.

        Raises:
            EngineError: the engine cannot run here.
        """
        ...
