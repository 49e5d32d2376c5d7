"""Checks before a run starts, without loading a model, and the identities of models that enter keys."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from schemas.config import Model, RolloutTable, RunConfig, is_local_folder
from schemas.pipeline import Stage
from schemas.signals import Source, model_sources
from tasks.engines.choice import EngineChoice
from tasks.engines.device import resolve_device
from tasks.engines.gguf_file import check_gguf
from tasks.engines.identity import ModelLibrary
from tasks.engines.memory import check_size, check_weights
from tasks.engines.positions import model_limit
from tasks.engines.protocol import EngineError
from tasks.inputs.errors import InputError
from tasks.inputs.prompts import check_same_tokenizer
from tasks.inputs.rollouts import GivenRollouts
from tasks.run.models import LoadedModels
from tasks.stages.distillation.user import check_user_losses
from tasks.store.keys import digest
from tasks.verifiers.verifier import fingerprint as verifier_fingerprint


def check_models(config: RunConfig, library: ModelLibrary) -> None:
    """Refuse models that cannot run here or are incompatible, without loading them.

    Raises:
        InputError: the message gives the field and the value.
    """
    try:
        resolve_device(config.engine.device)
    except EngineError as error:
        raise InputError("engine.device", str(error)) from error
    check = partial(_check_model, config, library)
    check("student.path", config.model)
    check_user_losses(config, len(library.tokenizer(config.model)))
    if config.model.is_gguf and config.engine.kind == "vllm":
        raise InputError("engine.kind", "'vllm' does not sample from a GGUF file; use transformers")
    _check_stop(config, library)
    for i, teacher in enumerate(config.model_teachers):
        if teacher.server is not None:
            try:
                library.served(teacher.server, library.tokenizer(config.model))
            except EngineError as error:
                raise InputError(f"teachers[{i}].server", str(error)) from error
        if teacher.model is not None:
            field = f"teachers[{i}].model.path"
            check(field, teacher.model)
            if teacher.tokenizer == "own":
                try:
                    library.translation(config.model, teacher.model)
                except ValueError as error:
                    raise InputError(f"teachers[{i}].tokenizer", f"'own', but {error}") from error
                continue
            student, other = library.tokenizer(config.model), library.tokenizer(teacher.model)
            check_same_tokenizer(field, teacher.model.path, student, other)


def _check_stop(config: RunConfig, library: ModelLibrary) -> None:
    """Refuse texts that would end no completion."""
    from tasks.engines.transformers.loading import tokens_with

    try:
        tokens_with(library.tokenizer(config.model), config.sampling.stop)
    except EngineError as error:
        raise InputError("sampling.stop", str(error)) from error


def _check_model(config: RunConfig, library: ModelLibrary, field: str, model: Model) -> None:
    """Refuse a model that is neither a local folder nor on the hub, or has no tokenizer."""
    looks_local = model.path.startswith((".", "/")) or model.path.count("/") > 1
    broken = os.path.islink(model.path) and not os.path.exists(model.path)  # noqa: PTH110, PTH114 - as `is_local_folder`
    if broken or (not model.is_gguf and looks_local and not is_local_folder(model.path)):
        what = "is a broken link" if broken else "is not there"
        raise InputError(field, f"{model.path!r} {what}; give a model folder or a hub name")
    try:
        if model.is_gguf:
            check_gguf(Path(model.path))
        elif is_local_folder(model.path) and (Path(model.path) / "config.json").is_file():
            model_limit(model)  # reads its configuration
            check_weights(model)
        check_size(model, resolve_device(config.engine.device))
        library.fingerprint(model)
    except (ValueError, EngineError) as error:
        raise InputError(field, str(error)) from error


class ModelIdentities:
    """What keys contain about models, questions and prompts: `tasks.run.keys.Identities` of a run with models."""

    def __init__(
        self,
        config: RunConfig,
        library: ModelLibrary,
        engine: EngineChoice,
        models: LoadedModels,
        questions: Iterable[str],
    ) -> None:
        """Render every prompt once, and check that its completions fit the models.

        Raises:
            InputError: the message gives the question, and the field to change.
        """
        self._config, self._library, self._engine, self._models = config, library, engine, models
        self._sources = model_sources(config)
        self._prompts: dict[tuple[str, Source | None], str] = {}
        self._given: dict[str, str] = {}
        for question in questions:
            self._prompts[question, None] = digest(self._student_prompt(question))
            for source in self._sources:
                self._prompts[question, source] = digest(self._teacher_prompts(source, question))

    def with_rollouts(self) -> list[str]:
        """The questions that have rollouts: all, or those that a table has rollouts of, which the models then give.

        Raises:
            InputError: names the table's row.
        """
        table, questions = self._config.rollouts, [question for question, source in self._prompts if source is None]
        if not isinstance(table, RolloutTable):
            return questions
        prompts = {question: self._models.prompt(question) for question in questions}
        limited, most = self._config.asked.limit is not None, self._config.sampling.max_tokens
        given = GivenRollouts(table, prompts, self._models.tokenizer, most, ends=self._models.ends, limited=limited)
        if self._config.ranking.segments > 1 and not given.of_success:
            why = "but values along rollouts are of success, and the table's rewards are not all 0 or 1; set it to 1"
            raise InputError("ranking.segments", f"{self._config.ranking.segments}, {why}")
        self._models.give_rollouts({question: given.arrays(question) for question in given.of_question})
        self._given = {question: digest(rollouts) for question, rollouts in given.of_question.items()}
        return [question for question in questions if question in given.of_question]

    def of_writer(self, source: Source, question: str) -> dict[str, object]:
        """The model that writes a context's text, and what it is asked, with names in place of rollouts."""
        _, context = self._sources[source]
        compared = context.generate is not None and context.generate.success_draws > 0
        return {
            **({"compared": self.of_teacher(source, question)} if compared else {}),
            "generate": context.keyed()["generate"],
            "writer": self._library.fingerprint(self._models.writer_model(source)),
            "prompt": digest(self._models.prompts.writer(source, question, None)),
        }

    def settings(self, stage: Stage) -> dict[str, object]:
        """The part of the configuration that enters a stage's keys."""
        return stage.settings(self._config)

    def of_question(self, question: str) -> dict[str, str]:
        """Fingerprints of the question, its prompt, and the student, engine and verifier."""
        return {
            "question": digest([question, self._models.answer(question)]),
            "prompt": self._prompts[question, None],
            "verifier": verifier_fingerprint(self._config.verifier),
            "student": self._library.fingerprint(self._config.model),
            "engine": self._engine.fingerprint,
            **({"rollouts": self._given[question]} if question in self._given else {}),
        }

    def of_teacher(self, source: Source, question: str) -> dict[str, object]:
        """The teacher's model, its context, and its prompt."""
        teacher, context = self._sources[source]
        return {
            "context": context.keyed(),
            "chat_template": teacher.chat_template,
            **({"tokenizer": "own"} if teacher.tokenizer == "own" else {}),
            "teacher": (
                self._library.fingerprint(teacher.model or self._config.model)
                if teacher.server is None
                else self._models.served(source).identity
            ),
            "prompt": self._prompts[question, source],
        }

    def _student_prompt(self, question: str) -> list[int]:
        config, prompt = self._config, self._models.prompt(question)
        if not prompt:
            raise InputError("prompt.template", f"{config.prompt.template!r} gives an empty prompt")
        whose = f"question {question!r}"
        self._engine.check_draws("student.path", config.model, len(prompt), config.sampling.max_tokens, whose)
        return prompt

    def _teacher_prompts(self, source: Source, question: str) -> list[object]:
        """A teacher's prompt; where it depends on rollouts, all forms of it, and the texts that it may contain."""
        config, (teacher, context) = self._config, self._sources[source]
        model, forms = teacher.model or config.model, self._models.prompts.forms(source, question)
        field = f"teachers[{config.model_teachers.index(teacher)}].model.path"
        whose = f"question {question!r}, teacher {source.teacher!r} with context {source.context!r}"
        if teacher.server is not None:
            longest = max(len(prompt) + more for prompt, more in forms) + config.sampling.max_tokens
            try:
                self._models.served(source).check_length(longest)
            except EngineError as error:
                raise InputError("sampling.max_tokens", f"{whose}: {error}; lower it") from error
        for prompt, more in forms if teacher.server is None else ():
            try:
                self._engine.check_length(field, model, len(prompt) + more, config.sampling.max_tokens, whose)
            except InputError as error:
                if context.generate is None or not more:
                    raise
                what = f"{context.generate.max_tokens}, with which {error}"
                raise InputError(f"context {context.label}, generate.max_tokens", what) from error
        if context.generate is not None:
            asked = max(len(prompt) for prompt in self._models.prompts.writer(source, question, None))
            asked += config.sampling.max_tokens if context.written_for_rollouts else 0
            writer, longest = self._models.writer_model(source), context.generate.max_tokens
            check = self._engine.check_draws if writer == config.model else self._engine.check_length
            check(field, writer, asked, longest, f"{whose}, its writer")
        if not context.of_rollouts and context.generate is None:
            return list(forms[0].prompt)
        return [*(prompt for prompt, _ in forms), self._models.prompts.named_texts(source, question)]
