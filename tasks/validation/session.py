"""What one process knows of a validation: its questions, and the keys of its trainings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple, TypeVar

from schemas.config import Questions, RecordedTree, RunConfig, Teacher, optimiser_name
from schemas.config.templates import names_in
from schemas.signals import POLICY
from tasks.inputs.errors import InputError
from tasks.inputs.questions import Question, load_questions
from tasks.run.session import RunSession, start_session
from tasks.store.keys import Recipe, digest
from tasks.validation.trainings import Training, chosen_signals, trainings, untrained_sources

VERSION = 1

Result = TypeVar("Result")


class Material(NamedTuple):
    """Questions of a validation.

    Attributes:
        config: of the run, with the questions that are trained on in place of its own.
    """

    config: RunConfig
    questions: list[Question]
    held_out: list[Question]


@dataclass(frozen=True)
class ValidationSession:
    """A checked validation of one student.

    Attributes:
        run: the session of the questions that are trained on.
        measured: that of the held-out ones.
    """

    config: RunConfig
    run: RunSession
    measured: RunSession

    @property
    def trainings(self) -> list[Training]:
        """Every training."""
        return trainings(self.config)

    def recipe(self, training: Training) -> Recipe:
        """Everything that a training depends on: that of a ranking on its questions, and how it goes."""
        held_out = [self.measured.keys.key("rollouts", i) for i in self.measured.keys.questions]
        settings: dict[str, object] = {"held_out_rollouts": self.config.validation.held_out_rollouts}
        if self.config.validation.lora is not None:  # else the student is measured in float32
            settings["dtype"] = self.config.model.dtype
        read: list[str] = []
        if training.signal is not None:
            settings |= self._settings(training)
            keys, signal = self.run.keys, training.signal
            stage = ("rollouts", None) if signal == POLICY else ("ranking", signal)
            read = [keys.key(stage[0], i, stage[1]) for i in keys.questions]
        fingerprints = {"held out": digest(held_out), "questions and signal": digest(read)}
        return Recipe("trainings", VERSION, settings, [], fingerprints)

    def _settings(self, training: Training) -> dict[str, object]:
        settings = self.config.validation
        chosen = next(o for o in settings.optimisers if optimiser_name(o) == training.optimiser)
        return {
            "optimiser": chosen.keyed(),
            "selection": None if training.selection is None else training.selection.keyed(),
            "seed": training.seed,
            "steps": settings.steps,
            "logged": settings.logged,
            "batch": settings.batch,
            "rollouts": settings.rollouts,
            "teacher": settings.teacher,
            "lora": None if settings.lora is None else settings.lora.keyed(),
        }

    def close(self) -> None:
        """Release what the sessions hold."""
        self.run.provider.close()
        self.measured.provider.close()


def read_material(config: RunConfig) -> Material:
    """The questions of a validation.

    Raises:
        InputError: the message gives the field and the value.
    """
    settings = config.validation
    if isinstance(config.tree, RecordedTree):
        raise InputError("tree.kind", "'recorded', but a validation trains a model; take another kind")
    if settings.held_out is None:
        raise InputError("validation.held_out", "missing; give a table of questions that are not trained on")
    training = training_config(config)
    where = "questions" if settings.questions is None else "validation.questions"
    questions = _table(where, partial(load_questions, training))
    held_out = _table("validation.held_out", partial(load_questions, measured_config(config, settings.held_out)))
    return Material(training, questions, held_out)


def training_config(config: RunConfig) -> RunConfig:
    """A run on the questions that are trained on, with as many rollouts of each as a step has."""
    settings = config.validation
    sampling = config.sampling.model_copy(update={"rollouts": settings.rollouts})
    return config.model_copy(update={"questions": settings.questions or config.questions, "sampling": sampling})


def measured_config(config: RunConfig, held_out: Questions) -> RunConfig:
    """A run of the student alone on the held-out questions."""
    plain = {"questions": held_out, "teachers": [Teacher(name="student")]}
    sampling = config.sampling.model_copy(update={"rollouts": config.validation.held_out_rollouts})
    return config.model_copy(update={**plain, "sampling": sampling})


def open_validation(config: RunConfig) -> ValidationSession:
    """Check everything that can be checked without loading a model.

    Raises:
        InputError: the message gives the field and the value.
    """
    _check_means(config)
    material = read_material(config)
    _check_signals(config)
    _check_any(config)
    run = _named("validation.questions", partial(start_session, material.config))
    held_out = config.validation.held_out
    if held_out is None:
        raise ValueError("checked before")
    measured = _named("validation.held_out", partial(start_session, measured_config(config, held_out)))
    _check_apart(material)
    return ValidationSession(config, run, measured)


def _check_means(config: RunConfig) -> None:
    """Refuse a store that other processes do not see, and adapters without the package that makes them."""
    if config.store.startswith("memory:"):
        raise InputError("store", f"{config.store!r} is not seen by the processes that train; give a folder or URL")
    if config.validation.lora is not None and find_spec("peft") is None:
        raise InputError(
            "validation.lora", "given, but peft is not installed: pip install -c constraints.txt -e '.[lora]'"
        )


def _check_signals(config: RunConfig) -> None:
    """Refuse signals that no training can be made with, or a choice that names none."""
    settings, left_out = config.validation, untrained_sources(config)
    for field in ("signals", "selected"):
        for name in getattr(settings, field):
            if not chosen_signals(config, [name]):
                why = "; ".join(f"{'/'.join(source)} {reason}" for source, reason in left_out.items())
                known = ", ".join("/".join(signal) for signal in chosen_signals(config, ["*"]))
                what = f"{name!r} names no signal to train on; known are {known or 'none'}"
                raise InputError(f"validation.{field}", f"{what}. {why}" if why else what)


def _check_any(config: RunConfig) -> None:
    """Refuse a validation without a training."""
    if all(training.signal is None for training in trainings(config)):
        why = "; ".join(f"{'/'.join(source)} {reason}" for source, reason in untrained_sources(config).items())
        raise InputError("validation.signals", f"there is nothing to train on: {why}; or set validation.reward to true")


def _check_apart(material: Material) -> None:
    """Refuse held-out questions that are trained on."""
    columns = names_in(material.config.prompt.template).texts

    def asked(question: Question) -> tuple[str, ...]:
        return tuple(" ".join(question.fields[column].split()) for column in columns)

    trained = {asked(question): question.id for question in material.questions}
    for question in material.held_out:
        other = trained.get(asked(question))
        if other is not None:
            what = f"question {question.id!r} is question {other!r} of those that are trained on; take it out of one"
            raise InputError("validation.held_out", what)


def _named(field: str, read: Callable[[], Result]) -> Result:
    """What is read, with errors that name the field of the validation."""
    try:
        return read()
    except InputError as error:
        raise error.under("questions", field) from error


def _table(field: str, read: Callable[[], Result]) -> Result:
    """What is read of a table, with errors of other fields that name the table too."""
    try:
        return read()
    except InputError as error:
        named = error.under("questions", field)
        raise (InputError(field, str(error)) if named is error and field != "questions" else named) from error
