"""The models of a run: loaded when they are first asked for, and as many of them as memory holds."""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from schemas.config import Model, RunConfig
from schemas.signals import Source, model_sources
from tasks.engines.choice import EngineChoice
from tasks.engines.device import resolve_device
from tasks.engines.identity import ModelLibrary
from tasks.engines.memory import fits
from tasks.engines.protocol import Sampler
from tasks.inputs.prompts import PLAIN, encode_prompt, prompt_text
from tasks.inputs.questions import Question
from tasks.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


class LoadedModels:
    """Student and teachers with their prompts: an implementation of `tasks.stages.protocol.Models`."""

    def __init__(
        self, config: RunConfig, library: ModelLibrary, engine: EngineChoice, questions: Mapping[str, Question]
    ) -> None:
        """Load nothing yet."""
        self._config, self._library, self._engine, self._questions = config, library, engine, questions
        self._sources = model_sources(config)
        self._scorers: dict[Model, TransformersScorer] = {}
        self._sampler: Sampler | None = None

    @property
    def student(self) -> "TransformersScorer":
        """The student, for its distributions."""
        return self._scorer(self._config.model)

    @property
    def sampler(self) -> Sampler:
        """The student, for draws."""
        if self._sampler is None:
            self._sampler = self._engine.sampler(self._config.model, self.tokenizer, lambda: self.student)
        return self._sampler

    @property
    def tokenizer(self) -> Any:
        """The student's."""
        return self._library.tokenizer(self._config.model)

    @cached_property
    def verifier(self) -> Verifier:
        """The verifier of the run."""
        return Verifier(self._config.verifier)

    def answer(self, question: str) -> str:
        """The reference answer."""
        return self._questions[question].answer

    def prompt(self, question: str) -> list[int]:
        """The student's prompt, token ids.

        Raises:
            InputError: the model's chat template refuses it, or it is longer than any model reads.
        """
        prompt = self._config.prompt
        return encode_prompt(self.tokenizer, prompt_text(prompt, PLAIN, self._questions[question]), prompt)

    def teacher(self, source: Source) -> "TransformersScorer":
        """The model of a teacher; of the same content as the student's, it is the student."""
        model = self._sources[source][0].model or self._config.model
        same = self._library.fingerprint(model) == self._library.fingerprint(self._config.model)
        return self.student if same else self._scorer(model)

    def teacher_prompt(self, source: Source, question: str) -> list[int]:
        """A teacher's prompt with its context, token ids.

        Raises:
            InputError: as for the student's.
        """
        teacher, context = self._sources[source]
        own = teacher.chat_template == "own" and teacher.model is not None
        tokenizer = self._library.tokenizer(teacher.model) if own and teacher.model is not None else self.tokenizer
        text = prompt_text(self._config.prompt, context, self._questions[question])
        return encode_prompt(tokenizer, text, self._config.prompt)

    @property
    def decoded(self) -> int:
        """Tokens that have been sampled so far."""
        return 0 if self._sampler is None else self._sampler.decoded

    def close(self) -> None:
        """End worker processes, and what samples."""
        if "verifier" in self.__dict__:
            self.verifier.close()
        if self._sampler is not None:
            self._sampler.release()

    def _scorer(self, model: Model) -> "TransformersScorer":
        """A model, loaded; the student stays, of the teachers only the last one."""
        if model not in self._scorers:
            from tasks.engines.transformers.scorer import load_transformers, vocabulary_size

            for other in [m for m in self._scorers if m != self._config.student]:
                del self._scorers[other]
            vocabulary = vocabulary_size(self._library.tokenizer(model))
            room = partial(self._make_room, model)
            self._scorers[model] = load_transformers(model, self._config.engine, vocabulary, room)
        return self._scorers[model]

    def _make_room(self, model: Model) -> None:
        """Where memory does not hold a model beside what is there, that goes, and is loaded again when needed."""
        device = resolve_device(self._config.engine.device)
        if not fits(model, device) and self._sampler is not None:
            self._sampler.release()
        for other in [s for m, s in self._scorers.items() if m != model]:
            if not fits(model, device):
                other.unload()
