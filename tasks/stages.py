"""The shells of stages 1 to 5: read inputs, call the stage's function, commit what was missing."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.arrays import AnyArray
from schemas.config import RunConfig
from tasks.alignment import make_alignment
from tasks.distillation import make_distillation
from tasks.engines.streams import stream_seed
from tasks.ideal import Outcomes, ideal_gradients
from tasks.job import Job, open_job
from tasks.lineage import Signal, Source, losses, sources
from tasks.progress import report
from tasks.questions import Question
from tasks.rollouts import failure, make_rollouts
from tasks.store.artefact import Artefact
from tasks.trees.tree import clear_rounds, make_tree

STAGES = ("rollouts", "trees", "ideal", "distillation", "alignment")


@dataclass
class Outcome:
    """What a task did: the small reference that it returns."""

    made: int = 0
    cached: int = 0
    decoded_tokens: int = 0
    seconds: float = 0.0
    failed: dict[str, str] | None = None


def run_stage(job: Job, stage: str, ids: Sequence[str], source: Source | None = None) -> Outcome:
    """Make what is missing of one stage for some questions (stage 4: for one teacher with one context)."""
    began, outcome = time.monotonic(), Outcome()
    for i in ids:
        keys = job.keys[i].of_stage(stage)
        if source is not None:
            keys = [key for signal, key in job.keys[i].distillation.items() if signal[:2] == source]
        absent = [key for key in keys if not job.store.has(stage, key)]
        outcome.cached += len(keys) - len(absent)
        if absent:
            start, decoded = time.monotonic(), job.decoded
            made = _make(job, stage, job.questions[i], absent, source)
            decoded = job.decoded - decoded
            seconds = round((time.monotonic() - start) / len(made), 6)
            for key, arrays in made.items():
                meta = {**asdict(job.recipe(key)), "seconds": seconds, "decoded_tokens": decoded}
                job.store.commit(stage, key, arrays, meta)
            outcome.made += len(made)
            outcome.decoded_tokens += decoded
        if stage == "trees":
            clear_rounds(job, keys[0])
        report(stage, 1)
    if stage == "rollouts":
        outcome.failed = failures(job, ids)
    outcome.seconds = time.monotonic() - began
    return outcome


def failures(job: Job, ids: Sequence[str]) -> dict[str, str]:
    """Questions that cannot be diagnosed from their rollouts, with the reason."""
    reasons = {i: failure(job.store.need("rollouts", job.keys[i].rollouts).arrays) for i in ids}
    return {i: reason for i, reason in reasons.items() if reason is not None}


def _make(
    job: Job, stage: str, question: Question, absent: Sequence[str], source: Source | None
) -> dict[str, dict[str, AnyArray]]:
    """The arrays of a question's missing artefacts, by key."""
    keys = job.keys[question.id]

    def read(stage: str, key: str) -> Artefact:
        return job.store.need(stage, key)

    if stage == "rollouts":
        return {keys.rollouts: make_rollouts(job, question)}
    if stage == "trees":
        return {keys.trees: make_tree(job, question, read("rollouts", keys.rollouts))}
    tree = read("trees", keys.trees)
    temperature = job.config.sampling.temperature
    if stage == "ideal":
        return {keys.ideal: ideal_gradients(Outcomes.of(tree.arrays), temperature)}
    if stage == "distillation":
        if source is None:
            raise ValueError("stage distillation works on one teacher with one context")
        wanted = {
            name: loss
            for name, loss in losses(job.config).items()
            if keys.distillation[Signal(*source, name)] in absent
        }
        made = make_distillation(
            job, question, *sources(job.config)[source], wanted, read("rollouts", keys.rollouts), tree
        )
        return {keys.distillation[Signal(*source, name)]: arrays for name, arrays in made.items()}
    signals = {key: keys.distillation[signal] for signal, key in keys.alignment.items() if key in absent}
    return make_alignment(
        Outcomes.of(tree.arrays),
        tree["node"],
        read("ideal", keys.ideal).arrays,
        {key: read("distillation", d).arrays for key, d in signals.items()},
        job.config.scores,
        temperature,
        job.config.tree.tail_limit,
        stream_seed("posterior", keys.trees),
    )


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def stage_task(label: str, config: RunConfig, stage: str, ids: list[str], source: tuple[str, str] | None = None) -> Any:
    """One stage for a batch of questions. `Cached` where the store has it all, verified, and nothing was made."""
    job = open_job(config)
    outcome = run_stage(job, stage, ids, Source(*source) if source is not None else None)
    logger = get_run_logger()
    for question, reason in (outcome.failed or {}).items():
        logger.warning("question %s is left out: %s", question, reason)
    if outcome.made == 0:
        return Completed(name="Cached", message=f"{outcome.cached} artefacts in the store", data=outcome)
    logger.info(
        "%s: %d artefacts made, %d in the store, %d tokens decoded, %.1f s",
        label,
        outcome.made,
        outcome.cached,
        outcome.decoded_tokens,
        outcome.seconds,
    )
    return outcome
