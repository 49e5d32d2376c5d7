"""The diagnosis: the six stages in order, each in a few tasks of many questions."""

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from schemas.config import RunConfig
from tasks.job import forget_jobs, open_job
from tasks.lineage import sources
from tasks.outputs import aggregate_task, write_run
from tasks.progress import report
from tasks.questions import InputError
from tasks.stages import BY_SOURCE, OF_RUN, STAGES, Outcome, stage_task
from tasks.trees.tree import most_draws

MOST_BATCHES = 25
"""A flow has tens to a few hundred task runs at any size."""


def batches(ids: list[str], size: int) -> list[list[str]]:
    """Questions cut into batches of at least `size`, and into no more than `MOST_BATCHES`."""
    size = max(size, -(-len(ids) // MOST_BATCHES))
    return [ids[i : i + size] for i in range(0, len(ids), size)]


def add(total: Outcome, part: Outcome) -> None:
    """Add a task's figures to its stage's."""
    total.made += part.made
    total.cached += part.cached
    total.decoded_tokens += part.decoded_tokens
    total.seconds += part.seconds
    total.failed = {**(total.failed or {}), **(part.failed or {})}


@flow(name="diagnose", flow_run_name="{config.name}", persist_result=False)
def diagnose(config: RunConfig) -> dict[str, Any]:
    """Tell, token by token, whether each teacher's signal points where the student's success lies.

    Returns:
        the content of `run.json`.
    """
    try:
        return _diagnose(config)
    finally:
        forget_jobs()


def _diagnose(config: RunConfig) -> dict[str, Any]:
    ids, failed, stages = run_stages(config, STAGES)
    report("aggregate", 0, 1)
    files, stages["aggregate"] = aggregate_task(config, ids, failed, return_state=True).result()
    job = open_job(config)
    run = write_run(job, ids, failed, files, stages)
    get_run_logger().info("outputs in %s", job.store.path("runs", config.name))
    return run


def run_stages(config: RunConfig, wanted: Sequence[str]) -> tuple[list[str], dict[str, str], dict[str, Outcome]]:
    """Run some stages in order, each in a few tasks.

    Returns:
        the questions that were left, those left out with the reason, and what each stage did.
    """
    ids = list(open_job(config).questions)
    stages: dict[str, Outcome] = {}
    for stage in wanted:
        total = stages[stage] = Outcome()
        parts = sources(config) if stage in BY_SOURCE else [None]
        report(stage, 0, len(ids) * len(parts))
        if stage == "trees":
            report("draws", 0, len(ids) * most_draws(config.tree))
        size = len(ids) if stage in OF_RUN else config.execution.questions_per_task
        for source in parts:
            for batch in batches(ids, size):
                first = ids.index(batch[0]) + 1
                which = f" of {source.teacher}/{source.context}" if source is not None else ""
                label = f"{stage}{which}, questions {first}-{first + len(batch) - 1} of {len(ids)}"
                named = stage_task.with_options(name=stage)
                state = named(
                    label,
                    config,
                    stage,
                    batch,
                    tuple(source) if source is not None else None,
                    return_state=True,
                )
                add(total, state.result())
        if stage == "rollouts":
            ids = [i for i in ids if i not in (total.failed or {})]
            if not ids:
                reasons = sorted(set((total.failed or {}).values()))
                raise InputError(
                    "sampling.max_tokens", f"{config.sampling.max_tokens}: {'; '.join(reasons)}, in every question"
                )
    return ids, stages["rollouts"].failed or {}, stages
