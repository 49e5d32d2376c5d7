"""The shells of stages 1 to 5: read inputs, call the stage's function, commit what was missing."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.arrays import AnyArray
from schemas.config import RecordedTree, RunConfig
from tasks.operations.errors import of_run
from tasks.operations.progress import heard, report
from tasks.run.keys import Signal, Source, losses
from tasks.run.session import Job, open_job
from tasks.stages.alignment import make_alignment
from tasks.stages.distillation.gradients import make_distillation, make_ranking
from tasks.stages.ideal import ideal_gradients
from tasks.stages.rollouts import COMPLETIONS, failure, make_rollouts
from tasks.stages.trees.tree import make_tree, most_draws
from tasks.stages.values import VALUE_DRAWS, make_values
from tasks.statistics.estimators import Outcomes, merged
from tasks.statistics.prior import Prior, fit
from tasks.statistics.streams import stream_seed
from tasks.store.checkpoints import clear_rounds
from tasks.store.keys import digest

_log = logging.getLogger(__name__)

STAGES = ("rollouts", "trees", "ideal", "prior", "distillation", "alignment")


@dataclass
class Outcome:
    """What a task did: the small reference that it returns.

    Attributes:
        left_out: questions that cannot be diagnosed, with the reason.
        failed: questions that an error ended, with the error; the next run tries them again.
        told: progress that the task reported, by what it is of.
    """

    made: int = 0
    cached: int = 0
    decoded_tokens: int = 0
    seconds: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, int | float]:
        """What it made, found and decoded, and how long that took."""
        return {name: getattr(self, name) for name in ("made", "cached", "decoded_tokens", "seconds")}


OF_RUN = ("prior",)
"""Stages that make one artefact of all questions."""
WITH_MODEL = ("rollouts", "trees", "values", "distillation", "ranking")
"""Stages that sample from or score with a model."""
BY_SOURCE = ("distillation", "ranking")
"""Stages whose tasks are of one teacher with one context."""
_WAIT = 0.2
"""Seconds between two looks at what another process works on."""


def draws_shown(config: RunConfig, stage: str) -> dict[str, int]:
    """What progress calls the draws of a stage, and how many a question takes at most."""
    if isinstance(config.tree, RecordedTree):
        return {}
    match stage:
        case "rollouts":
            return {COMPLETIONS: config.sampling.rollouts}
        case "values":
            return {VALUE_DRAWS: config.sampling.rollouts * (config.ranking.segments - 1) * config.ranking.draws}
        case "trees":
            return {"draws": most_draws(config.tree)}
        case _:
            return {}


def run_stage(job: Job, stage: str, ids: Sequence[str], source: Source | None = None) -> Outcome:
    """Make what is missing of one stage for some questions (stage 4: for one teacher with one context).

    What another process on the same store works on is waited for; a question that fails does not end the others.

    Raises:
        Exception: what would meet every question alike (`tasks.operations.errors.of_run`).
    """
    began, outcome = time.monotonic(), Outcome()
    parts = deque([list(ids)] if stage in OF_RUN else [[i] for i in ids])
    others = 0
    while parts:
        part = parts.popleft()
        try:
            finished = _make_part(job, stage, part, source, outcome)
        except Exception as error:
            if of_run(error):
                raise
            _log.exception("%s of question %s failed", stage, ", ".join(part))
            outcome.failed |= dict.fromkeys(part, _one_line(error))
            finished = True
        if finished:
            report(stage, len(part))
            others = 0
        else:
            parts.append(part)
            others += 1
            if others == len(parts):
                time.sleep(_WAIT)
                others = 0
    if stage == "rollouts":
        outcome.left_out = failures(job, [i for i in ids if i not in outcome.failed])
    outcome.seconds = time.monotonic() - began
    return outcome


def _make_part(job: Job, stage: str, part: Sequence[str], source: Source | None, outcome: Outcome) -> bool:
    """Make what is missing of one question, or of all together; False where another process is at it."""
    keys = _keys(job, stage, part[0], source)
    absent = [key for key in keys if not job.store.has(stage, key)]
    if absent:
        with job.claims.hold(digest([stage, job.keys[part[0]].rollouts, source])) as ours:
            if not ours:
                return False
            absent = [key for key in absent if not job.store.has(stage, key)]  # made since then
            if absent:
                _commit(job, stage, part, absent, source, outcome)
                clear_rounds(job, stage, part[0])
    outcome.cached += len(keys) - len(absent)
    return True


def _commit(
    job: Job, stage: str, part: Sequence[str], absent: Sequence[str], source: Source | None, outcome: Outcome
) -> None:
    start, decoded = time.monotonic(), job.decoded
    made = _make(job, stage, part, absent, source)
    decoded = job.decoded - decoded
    seconds = round((time.monotonic() - start) / len(made), 6)
    for key, arrays in made.items():
        meta = {**asdict(job.recipe(key)), "seconds": seconds, "decoded_tokens": decoded}
        job.store.commit(stage, key, arrays, meta)
    outcome.made += len(made)
    outcome.decoded_tokens += decoded


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _keys(job: Job, stage: str, question: str, source: Source | None) -> list[str]:
    keys = job.stage_keys(stage, question)
    return [key for signal, key in keys.items() if signal is None or source is None or signal[:2] == source]


def failures(job: Job, ids: Sequence[str]) -> dict[str, str]:
    """Questions that cannot be diagnosed from their rollouts, with the reason."""
    reasons = {i: failure(job.store.need("rollouts", job.keys[i].rollouts).arrays) for i in ids}
    return {i: reason for i, reason in reasons.items() if reason is not None}


def _make(
    job: Job, stage: str, ids: Sequence[str], absent: Sequence[str], source: Source | None
) -> dict[str, dict[str, AnyArray]]:
    """The arrays of missing artefacts, by key: of one question, or of all of them together."""
    question, keys = job.questions[ids[0]], job.keys[ids[0]]

    def read(stage: str, key: str) -> dict[str, AnyArray]:
        return job.store.need(stage, key).arrays

    if stage == "rollouts":
        return {keys.rollouts: make_rollouts(job, question)}
    if stage == "trees":
        return {keys.trees: make_tree(job, question, job.store.need("rollouts", keys.rollouts))}
    if stage == "values":
        return {absent[0]: make_values(job, question, job.store.need("rollouts", keys.rollouts))}
    if stage == "prior":
        # in an order that is in the key
        trees = (read("trees", key) for key in sorted(job.keys[i].trees for i in ids))
        return {keys.prior: fit([merged(tree).outcomes for tree in trees])._asdict()}
    temperature = job.config.sampling.temperature
    if stage == "ideal":
        return {keys.ideal: ideal_gradients(Outcomes.of(read("trees", keys.trees)), temperature)}
    if stage in BY_SOURCE:
        if source is None:
            raise ValueError(f"stage {stage} works on one teacher with one context")
        of_signal = job.ranking_keys(question.id) if stage == "ranking" else keys.distillation
        wanted = {name: loss for name, loss in losses(job.config).items() if of_signal[Signal(*source, name)] in absent}
        rollouts = read("rollouts", keys.rollouts)
        if stage == "ranking":
            made = make_ranking(job, question, source, wanted, rollouts)
        else:
            made = make_distillation(job, question, source, wanted, rollouts, read("trees", keys.trees))
        return {of_signal[Signal(*source, name)]: arrays for name, arrays in made.items()}
    signals = {key: keys.distillation[signal] for signal, key in keys.alignment.items() if key in absent}
    return make_alignment(
        read("trees", keys.trees),
        {key: read("distillation", d) for key, d in signals.items()},
        Prior.of(read("prior", keys.prior)),
        job.config.scores,
        temperature,
        job.config.tree.tail_limit,
        stream_seed("posterior", keys.trees),
    )


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{label}")
def stage_task(
    label: str,
    config: RunConfig,
    stage: str,
    ids: list[str],
    source: tuple[str, str] | None = None,
    left_out: Sequence[str] = (),
) -> Any:
    """One stage for a batch of questions. `Cached` where the store has it all, verified, and nothing was made."""
    logger = get_run_logger()
    limit = config.execution.gpu_limit if stage in WITH_MODEL else None
    with concurrency(limit, strict=True) if limit is not None else nullcontext(), heard() as told:
        job = open_job(config)
        job.leave_out(left_out)
        outcome = run_stage(job, stage, ids, Source(*source) if source is not None else None)
    outcome.told = dict(told)
    for question, reason in outcome.left_out.items():
        logger.warning("question %s is left out: %s", question, reason)
    for question, reason in outcome.failed.items():
        logger.error("question %s failed: %s", question, reason)
    if outcome.made == 0 and not outcome.failed:
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
