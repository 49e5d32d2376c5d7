"""The diagnosis: the six stages in order, each in one task or a few, of many questions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from prefect import State, flow
from prefect.logging import get_run_logger

from flows.command.configuration import check_execution
from flows.orchestration.artifacts import (
    output_link,
    progress_artifacts,
    run_link,
    scores_artifact,
    summary_artifact,
    table_artifact,
)
from flows.orchestration.runner import retried, task_runner
from schemas.config import Execution, RunConfig
from schemas.pipeline import PIPELINE, Scope, diagnosis_stages
from tasks.inputs.errors import InputError
from tasks.operations.progress import publish
from tasks.outputs.files import read_patiently, write_run
from tasks.outputs.names import add_references, named, write_references, writing
from tasks.outputs.tasks import aggregate_task
from tasks.run.reads import StoredReads
from tasks.run.session import RunSession, close_sessions, open_session
from tasks.run.shells import TaskSummary, sources_of, stage_task
from tasks.stages.no_signal import uninformative

MOST_BATCHES = 25
"""Most batches per stage, so that a flow of any size has at most a few hundred task runs."""


class QuestionsFailedError(RuntimeError):
    """Some questions failed and the others are done; running again retries the failed ones.

    Attributes:
        failed: the error of each failed question.
        run: the content of `run.json` if the others gave outputs.
    """

    def __init__(self, failed: dict[str, str], run: dict[str, Any] | None = None) -> None:
        """The message names the first five."""
        self.failed, self.run = failed, run
        first = "; ".join(f"{question}: {error}" for question, error in list(failed.items())[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        super().__init__(f"{len(failed)} questions failed, run again to try them: {first}{more}")


@dataclass
class Progressed:
    """Progress of a run through its stages.

    Attributes:
        ids: the remaining questions.
        left_out: all others, with the reason.
        failed: those left out because of an error.
        not_pooled: those excluded from artefacts of all questions; a question lost later stays part of these, so that
            the keys of the others do not change.
        stages: summary of each stage.
    """

    ids: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_pooled: list[str] = field(default_factory=list)
    stages: dict[str, TaskSummary] = field(default_factory=dict)

    def add(self, stage: str, part: TaskSummary) -> None:
        """Add a task's figures."""
        self.stages.setdefault(stage, TaskSummary()).add(part)

    def drop(self, stage: str) -> None:
        """Continue without the questions that a stage could not process.

        Raises:
            QuestionsFailedError: none is left, because of errors.
            InputError: none is left, because of their rollouts.
        """
        of_stage = self.stages[stage]
        self.failed |= of_stage.failed
        self.left_out |= of_stage.left_out | of_stage.failed
        self.ids = [i for i in self.ids if i not in self.left_out]
        if not any(PIPELINE[started].scope is Scope.RUN for started in self.stages if started in PIPELINE):
            self.not_pooled = sorted(self.left_out)
        if self.ids:
            return
        if self.failed:
            raise QuestionsFailedError(self.failed)
        reasons = "; ".join(sorted(set(self.left_out.values())))
        raise InputError("sampling", f"no question is left: {reasons}")


def batches(ids: list[str], size: int) -> list[list[str]]:
    """Questions split into at most `MOST_BATCHES` batches of `size` or more."""
    size = max(size, -(-len(ids) // MOST_BATCHES))
    return [ids[i : i + size] for i in range(0, len(ids), size)]


@flow(name="diagnose", flow_run_name="{config.name}", persist_result=False)
def diagnose(config: RunConfig) -> dict[str, Any]:
    """Measure, token by token, whether each teacher's signal points towards the student's success.

    Returns:
        the content of `run.json`.

    Raises:
        QuestionsFailedError: some questions failed; the outputs cover the others.
    """
    try:
        run_link(config.name)
        with progress_artifacts(), named(config, "diagnose", diagnosis_stages()):
            return _diagnose(config)
    finally:
        close_sessions()


def _diagnose(config: RunConfig) -> dict[str, Any]:
    done = run_stages(config, "diagnose", diagnosis_stages())
    publish("aggregate", 0, len(done.ids))
    aggregate = retried(aggregate_task, config.execution)
    session = open_session(config)
    with writing(session):
        finished = cast(State[Any], aggregate(config, done.ids, done.left_out, done.not_pooled, return_state=True))
        outputs, done.stages["aggregate"] = finished.result()
        session.keys.leave_out(done.not_pooled)
        run = write_run(session, done.ids, done.left_out, list(done.failed), outputs, done.stages)
        scores_artifact(config.name, read_patiently(session, "summary"))
        forecasts = read_patiently(session, "forecasts")
    table_artifact(f"{config.name}-forecasts", forecasts, f"success after training, forecast by run {config.name}")
    get_run_logger().info("outputs in %s", session.store.path("runs", config.name))
    output_link(session.store, config.name, "report.html")
    summary_artifact(config.name, done.stages, done.left_out, done.failed, run)
    if done.failed:
        raise QuestionsFailedError(done.failed, run)
    return run


def run_stages(config: RunConfig, flow_name: str, wanted: Sequence[str]) -> Progressed:
    """Run the given stages in order, each in one task or a few.

    Raises:
        QuestionsFailedError: no question is left, because of errors.
        InputError: no question is left, because of their rollouts.
    """
    check_execution(config.execution)
    session = open_session(config)
    write_references(session, flow_name, wanted)
    done = Progressed(session.keys.questions)
    with task_runner(config.execution) as start:
        for name in wanted:
            stage = PIPELINE[name]
            if not any(session.keys.of_stage(name, question) for question in done.ids):
                continue
            done.stages[name] = TaskSummary()
            labels = {name: len(done.ids) * (len(sources_of(stage, config)) if stage.of_source else 1)}
            if session.config.tree.samples and stage.draws is not None and stage.draws.most(config):
                labels[stage.draws.label] = len(done.ids) * stage.draws.most(config)
            for label, total in labels.items():
                publish(label, 0, total)
            size = len(done.ids) if stage.scope is Scope.RUN else _questions_per_task(config.execution, done.ids)
            stage_run = retried(stage_task.with_options(name=name), config.execution)
            started = [
                start(
                    stage_run,
                    {
                        "label": _label(name, batch, done.ids),
                        "config": config,
                        "stage": name,
                        "ids": batch,
                        "left_out": done.not_pooled,
                    },
                )
                for batch in batches(done.ids, size)
            ]
            for finish in started:
                summary: TaskSummary = finish().result()
                done.add(name, summary)
                if config.execution.task_runner != "process":  # other processes' reports do not arrive here
                    for label, (n, tokens) in summary.events.items():
                        publish(label, n, tokens=tokens)
            for label in labels:
                publish(label, over=True)
            if name == "rollouts" and "trees" in wanted:
                done.stages[name].left_out |= _without_signal(session, done)
            done.drop(name)
            if done.stages[name].left_out or done.stages[name].failed:
                session.keys.leave_out(done.not_pooled)
                add_references(session, flow_name, wanted)
    return done


def _without_signal(session: RunSession, done: Progressed) -> dict[str, str]:
    """Questions that get no tree, as the settings want it, with the reason."""
    asked = session.config.questions
    if asked is None or asked.without_signal == "keep":
        return {}
    reads, of_stage = StoredReads(session.store, session.keys), done.stages["rollouts"]
    left = [i for i in done.ids if i not in of_stage.left_out and i not in of_stage.failed]
    reasons = {i: uninformative(reads.artefact("rollouts", i)) for i in left}
    return {i: reason for i, reason in reasons.items() if reason is not None}


def _questions_per_task(execution: Execution, ids: Sequence[str]) -> int:
    """Few tasks leave few stragglers to wait for; on Ray every worker needs some."""
    if execution.questions_per_task is not None:
        return execution.questions_per_task
    return max(1, len(ids)) if execution.task_runner == "process" else 8


def _label(stage: str, batch: Sequence[str], ids: Sequence[str]) -> str:
    first = ids.index(batch[0]) + 1
    return f"{stage}, questions {first}-{first + len(batch) - 1} of {len(ids)}"
