"""The validation: what was forecast of each signal, and what training on it really gives."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import polars as pl
from prefect import State, flow
from prefect.logging import get_run_logger

from flows.command.configuration import check_execution, check_ranked
from flows.diagnose import QuestionsFailedError, diagnose
from flows.orchestration.artifacts import output_link, progress_artifacts, run_link, table_artifact
from flows.orchestration.runner import retried
from flows.rank import rank
from schemas.config import RunConfig
from tasks.inputs.errors import InputError
from tasks.operations.errors import patiently
from tasks.operations.progress import publish
from tasks.outputs.names import holding
from tasks.run.shells import TaskSummary
from tasks.store.keys import Recipe, digest
from tasks.store.leases import LeaseManager
from tasks.store.references import pin
from tasks.store.store import Store
from tasks.validation.outputs import Beforehand, Trained, known_beforehand, validation_task
from tasks.validation.session import open_validation
from tasks.validation.shells import LABEL, STAGE, STATES, train_task
from tasks.validation.trainings import UNTRAINED, Training

Result = TypeVar("Result")


@flow(name="validate", flow_run_name="{config.name}", persist_result=False)
def validate(config: RunConfig) -> dict[str, Any]:
    """Forecast every signal, train the student on each, and compare.

    Returns:
        the content of `validation.json`.

    Raises:
        QuestionsFailedError: some questions of the ranking or the diagnosis failed.
    """
    run_link(config.name)
    with progress_artifacts():
        return _validate(config)


def students(config: RunConfig) -> list[RunConfig]:
    """The run of every student, the first of which is the configuration's own."""
    own = config.validation.model_copy(update={"students": []})
    runs = [config.model_copy(update={"validation": own})]
    for number, model in enumerate(config.validation.students, 2):
        runs.append(runs[0].model_copy(update={"student": model, "name": config.name_of_student(number)}))
    return runs


def check_validation(config: RunConfig) -> None:
    """Refuse what cannot be validated, before anything is computed.

    Raises:
        ConfigurationError, InputError: the message gives the field and the value.
    """
    _of_students(config, lambda run: open_validation(run).close())


def _of_students(config: RunConfig, make: Callable[[RunConfig], Result]) -> list[Result]:
    """Something of the run of every student; errors of a further student name it where the settings do."""
    out = []
    for i, run in enumerate(students(config)):
        check_ranked(run)
        try:
            out.append(make(run))
        except InputError as error:
            raise (error.under("student", f"validation.students[{i - 1}]") if i else error) from error
    return out


def _validate(config: RunConfig) -> dict[str, Any]:
    check_execution(config.execution)
    runs = _of_students(config, Planned.of)
    needed = [f"{folder}/{key}" for run in runs for key in run.keys for folder in (STAGE, STATES)]
    store = Store(config.store)
    with holding(config, "validate", digest(needed), LeaseManager(store, config.execution.lease)):
        return _forecast_and_train(config, runs, store, needed)


def _forecast_and_train(
    config: RunConfig, runs: Sequence["Planned"], store: Store, needed: Sequence[str]
) -> dict[str, Any]:
    """Validate each student, whose run's name is held.

    Args:
        needed: artefacts, as `stage/key`.
    """
    patiently(
        lambda: pin(store, config.name, "validate", needed), config.execution.retries, config.execution.retry_seconds
    )
    left_out: dict[str, str] = {}
    known: list[Beforehand] = []
    for run in runs:
        left_out |= _forecast(run.config)
        known.append(known_beforehand(store, run.config))
        get_run_logger().info("forecast of %s: %s", run.config.name, known[-1].advice)
    parts = [(run, part) for run in runs for part in run.by_optimiser()]
    trainings = sum(training.signal is not None for _, part in parts for training, _ in part)
    publish(LABEL, 0, config.validation.steps * trainings)
    summary, train = TaskSummary(), retried(train_task, config.execution)
    for number, (run, part) in enumerate(parts, 1):
        label = f"trainings, part {number} of {len(parts)}: {run.config.name}, {part[-1][0].optimiser}"
        summary.add(cast(State[Any], train(label, run.config, part, return_state=True)).result())
    publish(LABEL, over=True)
    write = retried(validation_task, config.execution)
    trained = [
        Trained(run.config, [(training, recipe.key) for training, recipe in run.recipes], beforehand)
        for run, beforehand in zip(runs, known, strict=True)
    ]
    result = cast(dict[str, Any], write(config, trained, {STAGE: summary.figures}, left_out))
    table_artifact(f"{config.name}-figures", pl.DataFrame(result["figures"]), f"what trainings say, {config.name}")
    output_link(store, config.name, "validation.html")
    return result


def _forecast(config: RunConfig) -> dict[str, str]:
    """Rank the signals of a student, and diagnose them for comparison; returns the questions that were left out.

    Raises:
        QuestionsFailedError: some questions failed; there are no trainings without them.
    """
    try:
        left_out: dict[str, str] = rank(config)["left_out"]
        if config.validation.diagnose:
            diagnose(config)
    except QuestionsFailedError as error:
        raise QuestionsFailedError(error.failed) from error  # whose outputs are those of no validation
    return left_out


class Planned(NamedTuple):
    """The trainings of one student, with everything that each depends on; the student as it was comes first."""

    config: RunConfig
    recipes: list[tuple[Training, Recipe]]

    @classmethod
    def of(cls, config: RunConfig) -> "Planned":
        """Check a student's validation, and compute the keys of its trainings."""
        session = open_validation(config)
        try:
            return cls(config, [(training, session.recipe(training)) for training in session.trainings])
        finally:
            session.close()

    @property
    def keys(self) -> list[str]:
        """Keys of all trainings."""
        return [recipe.key for _, recipe in self.recipes]

    def by_optimiser(self) -> Iterator[list[tuple[Training, Recipe]]]:
        """The trainings of each optimiser, of which one task makes all; the student as it was is among the first."""
        by_name: dict[str, list[tuple[Training, Recipe]]] = {}
        for training, recipe in self.recipes:
            by_name.setdefault(training.optimiser, []).append((training, recipe))
        untrained = by_name.pop(UNTRAINED.optimiser)
        for part in by_name.values():
            yield [*untrained, *part]
            untrained = []
