"""The shell around every stage: find missing artefacts, compute them, commit them."""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.config import RunConfig
from schemas.pipeline import PIPELINE, Scope, Stage
from schemas.signals import REWARDED, Signal, Source
from tasks.engines.counts import MODEL_TIME, SCORED
from tasks.operations.errors import is_fatal
from tasks.operations.implementations import implementation
from tasks.operations.progress import capture_progress, publish
from tasks.operations.threads import beside_each_other
from tasks.run.reads import StoredReads
from tasks.run.session import RunSession, open_session
from tasks.stages.compute import compute
from tasks.stages.protocol import Work
from tasks.store.keys import digest

_log = logging.getLogger(__name__)

_WAIT = 0.2
"""Seconds between two checks of work that another process is doing."""


FIGURES = (
    "made",
    "cached",
    "decoded_tokens",
    "scored_tokens",
    "seconds",
    "model_seconds",
    "waiting_seconds",
)
"""Those of `TaskSummary` that add up."""


@dataclass
class TaskSummary:
    """What a task did: a small object that it returns instead of data.

    Attributes:
        made, cached: artefacts made, and found in the store.
        decoded_tokens, scored_tokens: tokens sampled, and tokens that went through models for scores.
        seconds: taken in all.
        model_seconds: of these, with a model at work, here or on a server.
        waiting_seconds: in stages with models, the others: models wait for arithmetic, verification, the store, or what
            another process is doing.
        left_out: questions that cannot be diagnosed, with the reason.
        failed: questions that failed, with the error; the next run retries them.
        events: units and tokens that the task reported, by label.
    """

    made: int = 0
    cached: int = 0
    decoded_tokens: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    waiting_seconds: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    events: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, int | float]:
        """What `run.json` tells of a stage."""
        return {name: getattr(self, name) for name in FIGURES}

    def add(self, part: "TaskSummary") -> None:
        """Add the summary of another task of the stage."""
        for name, figure in part.figures.items():
            setattr(self, name, getattr(self, name) + figure)
        self.left_out |= part.left_out
        self.failed |= part.failed


def run_stage(session: RunSession, name: str, ids: Sequence[str]) -> TaskSummary:
    """Make the missing artefacts of one stage for some questions.

    Questions of a stage that draws are worked on beside each other, so that their draws are decoded together. Work
    that another process on the same store is doing is waited for. A failing question does not stop the others.

    Raises:
        Exception: an error that would affect every question (`tasks.operations.errors.is_fatal`).
    """
    stage, summary = PIPELINE[name], TaskSummary()
    started, with_model = time.monotonic(), MODEL_TIME.seconds
    questions = [list(ids)] if stage.scope is Scope.RUN else [[i] for i in ids]
    groups = _groups(session, stage) if stage.of_source else [None]
    parts = [_Part(of_part, group) for group in groups for of_part in questions]
    tree = session.config.tree
    together = stage.draws is not None and tree.samples and not tree.timed
    threads = min(len(parts), session.config.execution.questions_in_flight) if together else 1

    def make(part: _Part) -> TaskSummary | None:
        try:
            made = _make_part(session, stage, part)
        except Exception as error:
            if is_fatal(error):
                raise
            _log.exception("%s of question %s failed", name, ", ".join(part.questions))
            made = TaskSummary(failed=dict.fromkeys(part.questions, _one_line(error)))
        if made is not None:
            # draws report their own tokens
            tokens = made.scored_tokens if stage.draws is None else 0
            publish(name, len(part.questions) * len(part.sources or [None]), tokens=tokens)
            if stage.draws is not None and not stage.keeps_draws:
                drawn = stage.draws.most(session.config) // len(sources_of(stage, session.config))
                publish(stage.draws.label, drawn, tokens=made.decoded_tokens)
        return made

    for made in beside_each_other(make, parts, threads):
        summary.add(made)
    summary.seconds = time.monotonic() - started
    if stage.with_model:
        summary.model_seconds = min(summary.seconds, MODEL_TIME.seconds - with_model)
        summary.waiting_seconds = summary.seconds - summary.model_seconds
    summary.left_out = _refused(session, stage, [i for i in ids if i not in summary.failed])
    return summary


def sources_of(stage: Stage, config: RunConfig) -> list[Source]:
    """The sources that a stage has artefacts of."""
    if stage.scope is Scope.SOURCE:
        return stage.sources(config)
    return list(dict.fromkeys(signal.source for signal in stage.signals(config)))


def _groups(session: RunSession, stage: Stage) -> list[list[Source]]:
    """Sources that are worked on together, as their models fit in memory together; the reward has none.

    Those that sample are worked on one by one, so that what one has sampled is kept when the next one is stopped.
    """
    wanted = sources_of(stage, session.config)
    groups = session.provider.together([source for source in wanted if source != REWARDED])
    if stage.scope is Scope.SOURCE:
        return [[source] for group in groups for source in group]
    return [group for group in (*groups, [REWARDED] if REWARDED in wanted else []) if group]


class _Part(NamedTuple):
    """Questions with one artefact, or one question, and the sources worked on together, if the stage has any."""

    questions: list[str]
    sources: list[Source] | None


def _make_part(session: RunSession, stage: Stage, part: _Part) -> TaskSummary | None:
    """Make missing artefacts of a part; None if another process is working on them."""
    question = part.questions[0]
    keys = {
        signal: key
        for signal, key in session.keys.of_stage(stage.name, question).items()
        if signal is None or part.sources is None or signal.source in part.sources
    }
    missing, summary = _missing(session, stage, keys), TaskSummary()
    if missing:
        # contexts that show the same text have one artefact
        of_source = sorted(set(missing.values())) if stage.scope is Scope.SOURCE else part.sources
        subject = digest([stage.name, session.keys.key("rollouts", question), of_source])
        with session.leases.acquire(subject) as acquired:
            if not acquired:
                return None
            missing = _missing(session, stage, missing)  # some may have been made in the meantime
            if missing:
                _commit(session, stage, question, missing, summary)
                if session.config.tree.samples:
                    session.checkpoints.clear(stage.name, question)
    summary.cached += len(keys) - len(missing)
    return summary


def _missing(session: RunSession, stage: Stage, keys: dict[Signal | None, str]) -> dict[Signal | None, str]:
    return {signal: key for signal, key in keys.items() if not session.store.has(stage.name, key)}


def _commit(
    session: RunSession,
    stage: Stage,
    question: str,
    missing: dict[Signal | None, str],
    summary: TaskSummary,
) -> None:
    start, decoded, scored = time.monotonic(), session.provider.decoded, SCORED.value
    reads = StoredReads(session.store, session.keys)
    made = compute(stage, Work(session.config, session.provider, reads, question, list(missing)))
    decoded, scored = session.provider.decoded - decoded, SCORED.value - scored
    cost = {"seconds": time.monotonic() - start, "decoded_tokens": decoded, "scored_tokens": scored}
    shares = {name: round(value / len(made), 6) for name, value in cost.items()}
    for signal, arrays in made.items():
        key = missing[signal]
        session.store.commit(stage.name, key, arrays, {**asdict(session.keys.recipes[key]), **shares})
    summary.made += len(made)
    summary.decoded_tokens += decoded
    summary.scored_tokens += scored


def _refused(session: RunSession, stage: Stage, ids: Sequence[str]) -> dict[str, str]:
    """Questions that the run cannot continue with after a stage, with the reason."""
    if stage.refuse is None:
        return {}
    refusal, reads = implementation(stage.refuse), StoredReads(session.store, session.keys)
    reasons = {i: refusal(reads.artefact(stage.name, i)) for i in ids}
    return {i: reason for i, reason in reasons.items() if reason is not None}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def stage_task(
    label: str,
    config: RunConfig,
    stage: str,
    ids: list[str],
    left_out: Sequence[str] = (),
) -> Any:
    """One stage for a batch of questions. `Cached` if all artefacts were in the store, verified, and none was made."""
    logger = get_run_logger()
    limit = config.execution.gpu_limit if PIPELINE[stage].with_model else None
    with concurrency(limit, strict=True) if limit is not None else nullcontext(), capture_progress() as events:
        session = open_session(config)
        session.keys.leave_out(left_out)
        summary = run_stage(session, stage, ids)
    summary.events = dict(events)
    for question, reason in summary.left_out.items():
        logger.warning("question %s is left out: %s", question, reason)
    for question, reason in summary.failed.items():
        logger.error("question %s failed: %s", question, reason)
    if summary.made == 0 and not summary.failed:
        return Completed(name="Cached", message=f"{summary.cached} artefacts in the store", data=summary)
    logger.info(
        "%s: %d artefacts made, %d in the store, %d tokens decoded, %.1f s",
        label,
        summary.made,
        summary.cached,
        summary.decoded_tokens,
        summary.seconds,
    )
    return summary
