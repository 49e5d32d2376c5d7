"""The ranking: rollouts, one forward pass a teacher, no trees."""

from dataclasses import asdict
from typing import Any

from prefect import flow

from flows.diagnose import run_stages
from schemas.config import RunConfig
from tasks.job import forget_jobs
from tasks.outputs import rank_task
from tasks.progress import report


@flow(name="rank", flow_run_name="{config.name}", persist_result=False)
def rank(config: RunConfig) -> dict[str, Any]:
    """Rank teachers, contexts and losses by the gain of a unit step along each, from on-policy rollouts alone.

    Returns:
        the content of `rank.json`, with what its stages did.
    """
    try:
        wanted = ("rollouts", "values", "ranking") if config.ranking.segments > 1 else ("rollouts", "ranking")
        ids, failed, stages = run_stages(config, wanted)
        report("rank", 0, 1)
        result: dict[str, Any] = rank_task(config, ids)
        return {**result, "failed": failed, "stages": {name: asdict(outcome) for name, outcome in stages.items()}}
    finally:
        forget_jobs()
