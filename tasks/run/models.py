"""The models of a run: loaded on first use, as many at a time as fit in memory."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from schemas.arrays import Arrays
from schemas.config import Model, RunConfig, ScoringSettings, TransformersEngine
from schemas.signals import Source, model_sources
from tasks.engines.choice import EngineChoice
from tasks.engines.device import resolve_device
from tasks.engines.identity import ModelLibrary
from tasks.engines.memory import fits, free_memory, total_memory, weights
from tasks.engines.protocol import EngineError, Sampler
from tasks.engines.translation import Translation
from tasks.inputs.questions import Question
from tasks.run.contexts import Prompts
from tasks.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer
    from tasks.engines.vllm.teacher import ServedTeacher, ServedView


class LoadedModels:
    """Student and teachers with their prompts; implements `tasks.stages.protocol.Models`."""

    def __init__(
        self, config: RunConfig, library: ModelLibrary, engine: EngineChoice, questions: Mapping[str, Question]
    ) -> None:
        """Create the object; models are loaded later."""
        self._config, self._library, self._engine, self._questions = config, library, engine, questions
        self._sources = model_sources(config)
        self._scorers: dict[Model, TransformersScorer] = {}
        self._sampler: Sampler | None = None
        self._samplers: dict[tuple[Model, tuple[str, ...]], Sampler] = {}
        self._given: Mapping[str, Arrays] = {}

    @property
    def student(self) -> "TransformersScorer":
        """The student, as a scorer."""
        return self._scorer(self._config.model)

    @property
    def differentiable(self) -> "TransformersScorer":
        """See the protocol."""
        return self.student

    @property
    def sampler(self) -> Sampler:
        """The student, as a sampler."""
        if self._sampler is None:
            self._sampler = self._engine.sampler(
                self._config.model, self.tokenizer, self._config.sampling.stop, lambda: self.student
            )
        return self._sampler

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return self._library.tokenizer(self._config.model)

    @cached_property
    def verifier(self) -> Verifier:
        """The verifier of the run."""
        return Verifier(self._config.verifier)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a completion of the student's."""
        from tasks.engines.transformers.loading import stop_tokens, tokens_with

        own = stop_tokens(self._config.model, self.tokenizer)
        return own | tokens_with(self.tokenizer, self._config.sampling.stop)

    def answer(self, question: str) -> str:
        """The reference answer."""
        return self._questions[question].answer

    def prompt(self, question: str) -> list[int]:
        """Token ids of the student's prompt."""
        return self.prompts.student(question)

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts of student, teachers and writers."""
        return Prompts(self._config, self._library, self._questions)

    def give_rollouts(self, of_question: Mapping[str, Arrays]) -> None:
        """Let questions have the rollouts of a table."""
        self._given = of_question

    def given_rollouts(self, question: str) -> Arrays | None:
        """See the protocol."""
        return self._given.get(question)

    def teacher(self, source: Source) -> "TransformersScorer":
        """The model of a teacher; the student itself if both have the same content."""
        return self._scorer(self._teacher_model(source))

    def served_view(
        self, source: Source, prompt: Sequence[int], by_rollout: Sequence[Sequence[int]]
    ) -> "ServedView | None":
        """See the protocol."""
        if self._sources[source][0].server is None:
            return None
        from tasks.engines.vllm.teacher import ServedView

        return ServedView(self.served(source), prompt, by_rollout, self.student.vocabulary)

    def served(self, source: Source) -> "ServedTeacher":
        """The server of a teacher.

        Raises:
            EngineError: it cannot be used.
        """
        server = self._sources[source][0].server
        if server is None:
            raise ValueError(f"teacher {source.teacher} is on no server")
        return self._library.served(server, self.tokenizer)

    def translation(self, source: Source) -> Translation | None:
        """See the protocol."""
        teacher = self._sources[source][0]
        if teacher.tokenizer != "own" or teacher.model is None:
            return None
        return self._library.translation(self._config.model, teacher.model)

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Sources in groups, in their order, whose models fit in memory together, with the student."""
        device, models = resolve_device(self._config.engine.device), [self._teacher_model(s) for s in sources]
        sizes = {model: weights(model) or 0 for model in {self._config.model, *models, *self._scorers}}
        loaded = sum(sizes[model] for model, scorer in self._scorers.items() if scorer.loaded)
        room = free_memory(device) + loaded - total_memory(device) // 10
        groups: list[list[Source]] = []
        held: set[Model] = set()
        for source, model in zip(sources, models, strict=True):
            if groups and (model in held or sum(sizes[m] for m in held | {model}) <= room):
                groups[-1].append(source)
                held.add(model)
            else:
                groups.append([source])
                held = {self._config.model, model}
        return groups

    def _teacher_model(self, source: Source) -> Model:
        model = self._sources[source][0].model or self._config.model
        same = self._library.fingerprint(model) == self._library.fingerprint(self._config.model)
        return self._config.model if same else model

    def teacher_prompts(
        self, source: Source, question: str, rollouts: Arrays, texts: Arrays | None = None
    ) -> tuple[list[int], Sequence[Sequence[int]]]:
        """See the protocol."""
        return self.prompts.after_rollouts(source, question, rollouts, texts)

    def writer_prompts(self, source: Source, question: str, rollouts: Arrays) -> list[list[int]]:
        """See the protocol."""
        return self.prompts.writer(source, question, rollouts)

    def writer(self, source: Source) -> Sampler:
        """See the protocol: a text does not end where `sampling.stop` ends a completion."""
        return self._sampler_of(self.writer_model(source), ())

    def answerer(self, source: Source) -> Sampler:
        """See the protocol."""
        return self._sampler_of(self._teacher_model(source), self._config.sampling.stop)

    def answer_tokenizer(self, source: Source) -> Any:
        """See the protocol."""
        return self._library.tokenizer(self._teacher_model(source)) if self._own_tokens(source) else self.tokenizer

    def as_students(self, source: Source, tokens: Sequence[int]) -> list[int]:
        """See the protocol."""
        if not self._own_tokens(source):
            return list(tokens)
        text = self.answer_tokenizer(source).decode(list(tokens), skip_special_tokens=True)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _own_tokens(self, source: Source) -> bool:
        return self._sources[source][0].tokenizer == "own"

    def _sampler_of(self, model: Model, stop: Sequence[str]) -> Sampler:
        """Another model than the student samples with transformers, whatever the engine."""
        if model == self._config.model and list(stop) == self._config.sampling.stop:
            return self.sampler
        key = model, tuple(stop)
        if key not in self._samplers:
            self._samplers[key] = self._new_sampler(model, stop)
        return self._samplers[key]

    def _new_sampler(self, model: Model, stop: Sequence[str]) -> Sampler:
        if model == self._config.model:
            return self._engine.sampler(model, self.tokenizer, stop, lambda: self.student)
        from tasks.engines.transformers.loading import stop_tokens, tokens_with
        from tasks.engines.transformers.sampler import TransformersSampler

        tokenizer = self._library.tokenizer(model)
        ends = stop_tokens(model, tokenizer)
        for text in stop:  # another tokenizer may have no token with it
            with suppress(EngineError):
                ends |= tokens_with(tokenizer, [text])
        shared = self._config.engine.model_dump(include=set(ScoringSettings.model_fields))
        return TransformersSampler(self._scorer(model), ends, TransformersEngine(**shared))

    def writer_tokenizer(self, source: Source) -> Any:
        """See the protocol."""
        return self.prompts.writer_tokenizer(source)

    def writer_model(self, source: Source) -> Model:
        """The model that writes the text of a context."""
        generation = self._sources[source][1].generate
        by_teacher = generation is not None and generation.by == "teacher"
        return self._teacher_model(source) if by_teacher else self._config.model

    @property
    def decoded(self) -> int:
        """Tokens sampled so far for the calling thread."""
        samplers = [sampler for sampler in (self._sampler, *self._samplers.values()) if sampler is not None]
        return sum(sampler.decoded for sampler in samplers)

    def close(self) -> None:
        """End worker processes and release the sampler."""
        if "verifier" in self.__dict__:
            self.verifier.close()
        for sampler in (self._sampler, *self._samplers.values()):
            if sampler is not None:
                sampler.release()

    def _scorer(self, model: Model) -> "TransformersScorer":
        """A loaded model; besides the student, as many teachers are kept as fit in memory."""
        if model not in self._scorers:
            from tasks.engines.transformers.loading import load_transformers, vocabulary_size

            device = resolve_device(self._config.engine.device)
            for other in [m for m in self._scorers if m != self._config.student]:
                if not fits(model, device):
                    del self._scorers[other]
            vocabulary = vocabulary_size(self._library.tokenizer(model))
            make_room = partial(self._make_room, model)
            try:
                self._scorers[model] = load_transformers(model, self._config.engine, vocabulary, make_room)
            except EngineError as error:
                raise EngineError(f"{self._field(model)}: {error}") from error
        return self._scorers[model]

    def _field(self, model: Model) -> str:
        """The field of the configuration that names a model."""
        if model == self._config.student:
            return "student.path"
        teachers = enumerate(self._config.model_teachers)
        return next(f"teachers[{i}].model.path" for i, teacher in teachers if teacher.model == model)

    def _make_room(self, model: Model) -> None:
        """Unload other models if a model does not fit in memory; they are loaded again when needed."""
        device = resolve_device(self._config.engine.device)
        if not fits(model, device) and self._sampler is not None:
            self._sampler.release()
        for other in [s for m, s in self._scorers.items() if m != model]:
            if not fits(model, device):
                other.unload()
