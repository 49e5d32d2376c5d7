"""The models of a run: loaded on first use, as many at a time as fit in memory."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.arrays import Arrays
from schemas.config import Model, RunConfig
from schemas.config.teachers import OF_ROLLOUTS
from schemas.signals import Source, model_sources
from schemas.text import after_thinking
from tasks.engines.choice import EngineChoice
from tasks.engines.device import resolve_device
from tasks.engines.identity import ModelLibrary
from tasks.engines.memory import fits, free_memory, total_memory, weights
from tasks.engines.protocol import EngineError, Sampler
from tasks.inputs.prompts import PLAIN, PromptText, encode_prompt, prompt_text
from tasks.inputs.questions import Question
from tasks.verifiers.verifier import Verifier

if TYPE_CHECKING:
    from tasks.engines.transformers.scorer import TransformersScorer


_STANDING_IN = {name: f"({name})" for name in OF_ROLLOUTS}
"""What stands for rollouts where there are none yet."""


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
        self._given: Mapping[str, Arrays] = {}

    @property
    def student(self) -> "TransformersScorer":
        """The student, as a scorer."""
        return self._scorer(self._config.model)

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

    def answer(self, question: str) -> str:
        """The reference answer."""
        return self._questions[question].answer

    def prompt(self, question: str) -> list[int]:
        """Token ids of the student's prompt.

        Raises:
            InputError: the model's chat template rejects it, or it is longer than any model can process.
        """
        return encode_prompt(self.tokenizer, prompt_text(self._config.prompt, PLAIN, self._questions[question]))

    def give_rollouts(self, of_question: Mapping[str, Arrays]) -> None:
        """Let questions have the rollouts of a table."""
        self._given = of_question

    def given_rollouts(self, question: str) -> Arrays | None:
        """See the protocol."""
        return self._given.get(question)

    def teacher(self, source: Source) -> "TransformersScorer":
        """The model of a teacher; the student itself if both have the same content."""
        return self._scorer(self._teacher_model(source))

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

    def teacher_prompt(self, source: Source, question: str) -> list[int]:
        """Token ids of a teacher's prompt with its context; where it is of rollouts, their names stand for them.

        Raises:
            InputError: as for the student's prompt.
        """
        return self._encoded(source, self._text(source, question, _STANDING_IN))

    def teacher_prompt_kinds(self, source: Source, question: str) -> list[tuple[list[int], int]]:
        """Every form that a teacher's prompt may take: its token ids as above, and the attempts that stand in it.

        They differ by what a context does with rollouts: a verdict, and whether another one is right.
        """
        context, kinds = self._sources[source][1], []
        for verdict in ("right", "wrong") if "verdict" in context.names.texts else ("right",):
            for another in (True, False) if "right_attempt" in context.names.texts else (True,):
                names = {**_STANDING_IN, "verdict": verdict}
                if not another:
                    del names["right_attempt"]
                text = self._text(source, question, names)
                attempts = sum(f"{text.user}{text.system}".count(_STANDING_IN[n]) for n in ("attempt", "right_attempt"))
                kinds.append((self._encoded(source, text), attempts))
        return kinds

    def named_texts(self, source: Source, question: str) -> list[Mapping[str, str]]:
        """The columns that a context's templates name, of the question and of its demonstrations."""
        context = self._sources[source][1]
        rows = self._next(question, context.demonstrations) if context.names.lists else []
        own = self._questions[question].fields
        return [
            {name: own[name] for name in context.names.texts if name in own},
            *({name: row[name] for name in context.names.columns} for row in rows),
        ]

    def teacher_prompts(
        self, source: Source, question: str, rollouts: Arrays
    ) -> tuple[list[int], Sequence[Sequence[int]]]:
        """See the protocol: attempts are the rollouts' texts, without special tokens and thinking."""
        if not self._sources[source][1].of_rollouts:
            return self.teacher_prompt(source, question), ()
        offsets, correct = rollouts["offsets"], np.asarray(rollouts["correct"])
        completions = [rollouts["tokens"][a:b].tolist() for a, b in pairwise(offsets)]
        attempts = [_answer_of(text) for text in self.tokenizer.batch_decode(completions, skip_special_tokens=True)]
        out = []
        for rollout, attempt in enumerate(attempts):
            names = {"attempt": attempt, "verdict": "right" if correct[rollout] else "wrong"}
            others = [other for other in np.flatnonzero(correct).tolist() if other != rollout]
            if others:
                names["right_attempt"] = attempts[others[0]]
            out.append(self._encoded(source, self._text(source, question, names)))
        return out[0], tuple(out)

    def _text(self, source: Source, question: str, of_rollouts: Mapping[str, str]) -> PromptText:
        context, more = self._sources[source][1], dict[str, str | Sequence[Mapping[str, str]]](of_rollouts)
        if context.names.lists:
            more["demonstrations"] = self._next(question, context.demonstrations)
        return prompt_text(self._config.prompt, context, self._questions[question], more)

    def _encoded(self, source: Source, text: PromptText) -> list[int]:
        teacher = self._sources[source][0]
        own = teacher.chat_template == "own" and teacher.model is not None
        tokenizer = self._library.tokenizer(teacher.model) if own and teacher.model is not None else self.tokenizer
        return encode_prompt(tokenizer, text)

    def _next(self, question: str, count: int) -> list[dict[str, str]]:
        """Columns of the questions that come after one, from the first on after the last."""
        ids = list(self._questions)
        place = ids.index(question)
        others = [*ids[place + 1 :], *ids[:place]]
        return [self._questions[other].fields for other in others[:count]]

    @property
    def decoded(self) -> int:
        """Tokens sampled so far for the calling thread."""
        return 0 if self._sampler is None else self._sampler.decoded

    def close(self) -> None:
        """End worker processes and release the sampler."""
        if "verifier" in self.__dict__:
            self.verifier.close()
        if self._sampler is not None:
            self._sampler.release()

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


def _answer_of(completion: str) -> str:
    """What a model says after its thinking, where it thinks."""
    return after_thinking(completion).strip()
