"""The prompts of student, teachers and writers of generated texts, as token ids."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from schemas.arrays import Arrays
from schemas.config import Context, RunConfig
from schemas.config.contexts import OF_ROLLOUTS, OTHER_ROLLOUTS
from schemas.signals import Source, model_sources
from schemas.text import after_thinking
from tasks.engines.identity import ModelLibrary
from tasks.inputs.prompts import PLAIN, PromptText, encode_prompt, prompt_text, writer_text
from tasks.inputs.questions import Question
from tasks.stages.texts import shown


class Form(NamedTuple):
    """One of the forms that a prompt may take, with names in place of what is not known yet.

    Attributes:
        prompt: token ids.
        more: most tokens of what will stand there instead.
    """

    prompt: list[int]
    more: int


class Prompts:
    """Renders questions, contexts and rollouts; questions are referred to by id."""

    def __init__(self, config: RunConfig, library: ModelLibrary, questions: Mapping[str, Question]) -> None:
        self._config, self._library, self._questions = config, library, questions
        self._sources = model_sources(config)
        self._ids = list(questions)
        self._places = {question: place for place, question in enumerate(self._ids)}
        self._tokenizer = library.tokenizer(config.model)

    def student(self, question: str) -> list[int]:
        """The student's prompt.

        Raises:
            InputError: the model's chat template rejects it, or it is longer than any model can process.
        """
        return encode_prompt(self._tokenizer, prompt_text(self._config.prompt, PLAIN, self._questions[question]))

    def teacher(self, source: Source, question: str) -> list[int]:
        """A teacher's prompt with its context; names stand for rollouts and generated texts.

        Raises:
            InputError: as for the student's prompt.
        """
        return self._encoded(source, self._text(source, question, _standing_in(self._context(source))))

    def forms(self, source: Source, question: str) -> list[Form]:
        """Every form of a teacher's prompt.

        They differ by what a context does with rollouts and generated texts: a verdict, and whether there is one.
        """
        context, out = self._context(source), []
        known = _standing_in(context)
        may_lack = [
            name for name in (*OTHER_ROLLOUTS, context.written) if name in known and name in context.names.texts
        ]
        for verdict in ("right", "wrong") if "verdict" in context.names.texts else ("right",):
            for lacking in (None, *may_lack):
                names = {name: text for name, text in {**known, "verdict": verdict}.items() if name != lacking}
                text = self._text(source, question, names)
                out.append(Form(self._encoded(source, text), self._more(context, f"{text.user}{text.system}")))
        return out

    def named_texts(self, source: Source, question: str) -> list[Mapping[str, str]]:
        """The columns that a context's templates name, of the question and of its demonstrations."""
        context = self._context(source)
        rows = self._next(question, context.demonstrations) if context.names.lists else []
        own = self._questions[question].fields
        return [
            {name: own[name] for name in context.names.texts if name in own},
            *({name: row[name] for name in context.names.columns} for row in rows),
        ]

    def after_rollouts(
        self, source: Source, question: str, rollouts: Arrays, texts: Arrays | None
    ) -> tuple[list[int], Sequence[Sequence[int]]]:
        """A teacher's prompt for the question; and one for each rollout where they differ, else none.

        Attempts are the rollouts' texts, without special tokens and thinking.

        Args:
            texts: the generated texts of a context that has some, `schemas.arrays.TEXTS`.
        """
        context = self._context(source)
        written = {} if texts is None else shown(texts, self.writer_tokenizer(source))
        if not context.of_rollouts:
            names = {context.written: written[0]} if 0 in written else {}
            return self._encoded(source, self._text(source, question, names)), ()
        out = []
        for rollout, names in enumerate(self._attempts(rollouts)):
            place = rollout if context.written_for_rollouts else 0
            names |= {context.written: written[place]} if place in written else {}
            out.append(self._encoded(source, self._text(source, question, names)))
        return out[0], tuple(out)

    def writer(self, source: Source, question: str, rollouts: Arrays | None) -> list[list[int]]:
        """What the writer of a context's text is asked: for the question, or for each rollout.

        Args:
            rollouts: None: names stand for them, in both verdicts.
        """
        context = self._context(source)
        if rollouts is None:
            names = [{**_standing_in(context), "verdict": verdict} for verdict in ("right", "wrong")]
        else:
            names = self._attempts(rollouts)
        asked = (writer_text(self._config.prompt, context, self._questions[question], of_one) for of_one in names)
        by_student = context.generate is not None and context.generate.by == "student"
        if by_student:
            prompts = [encode_prompt(self._tokenizer, text) for text in asked]
        else:
            prompts = [self._encoded(source, text) for text in asked]
        return prompts if context.written_for_rollouts else prompts[:1]

    def tokenizer(self, source: Source) -> Any:
        """The tokenizer of a teacher's prompts."""
        teacher = self._sources[source][0]
        own = teacher.chat_template == "own" or teacher.tokenizer == "own"
        return self._library.tokenizer(teacher.model) if own and teacher.model is not None else self._tokenizer

    def writer_tokenizer(self, source: Source) -> Any:
        """The tokenizer of generated texts."""
        generation = self._context(source).generate
        return self._tokenizer if generation is None or generation.by == "student" else self.tokenizer(source)

    def _context(self, source: Source) -> Context:
        return self._sources[source][1]

    def _attempts(self, rollouts: Arrays) -> list[dict[str, str]]:
        """What templates may name of each rollout."""
        offsets, correct = rollouts["offsets"], np.asarray(rollouts["correct"], dtype=bool)
        completions = [rollouts["tokens"][a:b].tolist() for a, b in pairwise(offsets)]
        texts = [answer_of(text) for text in self._tokenizer.batch_decode(completions, skip_special_tokens=True)]
        right, wrong, out = np.flatnonzero(correct).tolist(), np.flatnonzero(~correct).tolist(), []
        for rollout, attempt in enumerate(texts):
            names = {"attempt": attempt, "verdict": "right" if correct[rollout] else "wrong"}
            for name, others in zip(OTHER_ROLLOUTS, (right, wrong), strict=True):
                other = next((texts[r] for r in others if r != rollout), None)
                names |= {} if other is None else {name: other}
            out.append(names)
        return out

    def _text(self, source: Source, question: str, made: Mapping[str, str]) -> PromptText:
        context, more = self._context(source), dict[str, str | Sequence[Mapping[str, str]]](made)
        if context.names.lists:
            more["demonstrations"] = self._next(question, context.demonstrations)
        return prompt_text(self._config.prompt, context, self._questions[question], more)

    def _encoded(self, source: Source, text: PromptText) -> list[int]:
        teacher = self._sources[source][0]
        if teacher.chat_template == "none":
            text = replace(text, chat=False)
        return encode_prompt(self.tokenizer(source), text)

    def _more(self, context: Context, text: str) -> int:
        """Most tokens of the attempts and generated texts that will stand in a text."""
        attempts = sum(text.count(f"({name})") for name in ("attempt", *OTHER_ROLLOUTS))
        longest = 0 if context.generate is None else context.generate.max_tokens
        return attempts * self._config.sampling.max_tokens + text.count(f"({context.written})") * longest

    def _next(self, question: str, count: int) -> list[dict[str, str]]:
        """Columns of the questions that come after one, from the first on after the last."""
        place, total = self._places[question], len(self._ids)
        others = (self._ids[(place + step) % total] for step in range(1, min(count, total - 1) + 1))
        return [self._questions[other].fields for other in others]


def _standing_in(context: Context) -> dict[str, str]:
    """What stands for rollouts and generated texts where there are none yet."""
    names: Iterable[str] = OF_ROLLOUTS if context.generate is None else (*OF_ROLLOUTS, context.written)
    return {name: f"({name})" for name in names}


def answer_of(completion: str) -> str:
    """What a model says after its thinking, where it thinks."""
    return after_thinking(completion).strip()
