"""What every kind of engine gives: a sampler of the student."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from schemas.config import Model
from tasks.engines.protocol import Sampler

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


class Backend(Protocol):
    """One kind of engine, made from its settings where what it needs is there; it draws for the student.

    Attributes:
        versions: of what it is made of beside transformers and torch, with a space at the end; in keys.
        longest: prompt and completion together, tokens; None where only the model limits them.
    """

    versions: str
    longest: int | None

    def sampler(self, model: Model, stop: frozenset[int], scorer: "Callable[[], TransformersScorer]") -> Sampler:
        """The student on this engine.

        Args:
            stop: ids of the tokens that end a completion.
            scorer: loads the student for scoring.

        Raises:
            EngineError: it cannot run here.
        """
        ...
