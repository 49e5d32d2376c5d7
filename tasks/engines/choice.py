"""Selects the engine that samples from the student: checks before loading, its fingerprint in keys, and its sampler."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from schemas.config import AutoEngine, Model, RunConfig, SamplingEngine, TransformersEngine, VLLMEngine
from tasks.engines.backend import Backend
from tasks.engines.device import resolve_device
from tasks.engines.positions import Limit, model_limit
from tasks.engines.protocol import EngineError, Sampler
from tasks.inputs.errors import InputError
from tasks.operations.implementations import implementation
from tasks.store.keys import engine_fingerprint

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


def choose(config: RunConfig) -> tuple[SamplingEngine, str]:
    """The engine that samples, and why.

    Raises:
        InputError: the device does not exist here.
    """
    settings = config.engine
    if not isinstance(settings, AutoEngine):
        return settings, "as set"
    shared = settings.model_dump(exclude={"kind"})
    try:
        device = resolve_device(settings.device)
    except EngineError as error:
        raise InputError("engine.device", str(error)) from error
    if device.type != "cuda":
        return TransformersEngine(**shared), "no GPU here" if settings.device == "auto" else "not on a GPU"
    if config.model.is_gguf:
        return TransformersEngine(**shared), "vLLM does not sample from a GGUF file"
    if find_spec("vllm") is None:
        return TransformersEngine(**shared), "vLLM is not installed"
    return VLLMEngine(**shared), "a GPU, and vLLM is installed"


class EngineChoice:
    """The engine in a run's settings, checked as far as possible without loading a model."""

    def __init__(self, settings: SamplingEngine) -> None:
        """Check the requirements of the engine.

        Raises:
            InputError: the engine is not installed, or a server does not answer.
        """
        self._limits: dict[Model, Limit | None] = {}
        try:
            self._backend: Backend = implementation(settings.implementation)(settings)
        except EngineError as error:
            raise InputError(f"engine.{settings.needs}", str(error)) from error
        self.fingerprint = self._backend.versions + engine_fingerprint(settings.kind)

    def check_draws(self, field: str, model: Model, prompt: int, completion: int, whose: str) -> None:
        """Refuse completions that are too long for the engine to sample or for the student to score.

        Args:
            field: the setting that names the student.
            prompt: tokens of the prompt.
            completion: most tokens of a completion.
            whose: the question, for messages.

        Raises:
            InputError: the message gives the lengths.
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
        """Refuse completions too long for the student or a teacher to score; with any engine, transformers scores.

        Args:
            field: the setting that names the model.
            prompt: tokens of the prompt.
            completion: most tokens of a completion.
            whose: the question, and for a teacher its name and context, for messages.

        Raises:
            InputError: the message gives the lengths, or the model if its configuration cannot be read.
        """
        if model not in self._limits:
            try:
                self._limits[model] = model_limit(model)
            except EngineError as error:
                raise InputError(field, str(error)) from error
        limit = self._limits[model]
        if limit is not None and prompt + completion > limit.tokens:
            room = limit.tokens - prompt
            advice = f"set it to {room} or less" if room >= 2 else "shorten the prompt"
            raise InputError(
                "sampling.max_tokens",
                f"{completion} tokens after a prompt of {prompt} ({whose}) are more than the {limit.tokens} that "
                f"{model.path!r} can take ({limit.reason}); {advice}",
            )

    def sampler(
        self, model: Model, tokenizer: Any, stop_texts: Sequence[str], scorer: "Callable[[], TransformersScorer]"
    ) -> Sampler:
        """The student on this engine.

        Args:
            stop_texts: `sampling.stop`.
            scorer: loads the student for scoring.

        Raises:
            EngineError: the engine cannot run here.
        """
        from tasks.engines.transformers.loading import stop_tokens, tokens_with

        try:
            stop = stop_tokens(model, tokenizer)
        except EngineError as error:
            raise EngineError(f"student.path: {error}") from error
        return self._backend.sampler(model, stop | tokens_with(tokenizer, stop_texts), scorer)
