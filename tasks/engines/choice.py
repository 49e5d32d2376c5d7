"""Which engine samples for the student: what must hold before it is loaded, its name in keys, and the engine itself."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from schemas.config import Engine, Model
from tasks.engines.backend import Backend
from tasks.engines.positions import Limit, model_limit
from tasks.engines.protocol import EngineError, Sampler
from tasks.inputs.questions import InputError
from tasks.operations.implementations import implementation
from tasks.store.keys import engine_fingerprint

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


class EngineChoice:
    """The engine of a run's settings, checked as far as it can be without loading a model."""

    def __init__(self, settings: Engine) -> None:
        """Look for what the engine needs.

        Raises:
            InputError: it is not installed, or a server does not answer.
        """
        self._limits: dict[Model, Limit | None] = {}
        try:
            self._backend: Backend = implementation(settings.implementation)(settings)
        except EngineError as error:
            raise InputError(f"engine.{settings.needs}", str(error)) from error
        self.fingerprint = self._backend.versions + engine_fingerprint(settings.kind)

    def check_draws(self, field: str, model: Model, prompt: int, completion: int, whose: str) -> None:
        """Refuse completions that the engine would not finish, or that the student cannot score.

        Args:
            field: where the student is named.
            prompt: its tokens.
            completion: tokens at most.
            whose: the question.

        Raises:
            InputError: naming the lengths.
        """
        longest = self._backend.longest
        if longest is not None and prompt + completion > longest:
            raise InputError(
                "sampling.max_tokens",
                f"{completion} tokens after a prompt of {prompt} are more than the engine's {longest}; "
                "lower it, or raise the engine's context length",
            )
        self.check_length(field, model, prompt, completion, whose)

    def check_length(self, field: str, model: Model, prompt: int, completion: int, whose: str) -> None:
        """Refuse completions that a model, the student or a teacher, cannot score; transformers does on every engine.

        Args:
            field: where the model is named.
            prompt: its tokens.
            completion: tokens at most.
            whose: the question, and for a teacher its name and context.

        Raises:
            InputError: naming the lengths, or the model if its configuration cannot be read.
        """
        if model not in self._limits:
            try:
                self._limits[model] = model_limit(model)
            except EngineError as error:
                raise InputError(field, str(error)) from error
        limit = self._limits[model]
        if limit is not None and prompt + completion > limit.tokens:
            room = limit.tokens - prompt
            right = f"set it to {room} or less" if room >= 2 else "shorten the prompt"
            raise InputError(
                "sampling.max_tokens",
                f"{completion} tokens after a prompt of {prompt} ({whose}) are more than the {limit.tokens} that "
                f"{model.path!r} can take ({limit.reason}); {right}",
            )

    def sampler(self, model: Model, tokenizer: Any, scorer: "Callable[[], TransformersScorer]") -> Sampler:
        """The student on this engine.

        Args:
            scorer: loads the student for scoring.

        Raises:
            EngineError: it cannot run here.
        """
        from tasks.engines.transformers.scorer import stop_tokens

        return self._backend.sampler(model, stop_tokens(model, tokenizer), scorer)
