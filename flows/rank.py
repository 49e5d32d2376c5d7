"""The ranking: rollouts, one forward pass per teacher, no trees."""

from typing import Any, cast

import polars as pl
from prefect import flow

from flows.command.configuration import check_ranked
from flows.diagnose import QuestionsFailedError, run_stages
from flows.orchestration.artifacts import output_link, progress_artifacts, run_link, summary_artifact, table_artifact
from flows.orchestration.runner import retried
from schemas.config import RunConfig
from schemas.pipeline import ranking_stages
from tasks.operations.progress import publish
from tasks.outputs.files import read_patiently
from tasks.outputs.names import named, writing
from tasks.outputs.tasks import rank_task
from tasks.run.session import close_sessions, open_session


@flow(name="rank", flow_run_name="{config.name}", persist_result=False)
def rank(config: RunConfig) -> dict[str, Any]:
    """Rank teachers, contexts and losses by the gain of a unit step along each, from on-policy rollouts alone.

    Returns:
        the content of `rank.json`, with figures of its stages.

    Raises:
        QuestionsFailedError: some questions failed; the ranking covers the others.
    """
    try:
        run_link(config.name)
        with progress_artifacts():
            return _rank(config)
    finally:
        close_sessions()


def _rank(config: RunConfig) -> dict[str, Any]:
    check_ranked(config)
    wanted = ranking_stages(config)
    with named(config, "rank", wanted):
        done = run_stages(config, "rank", wanted)
        publish("rank", 0, 1)
        session = open_session(config)
        with writing(session):
            figures = {name: summary.figures for name, summary in done.stages.items()}
            write = retried(rank_task, config.execution)
            run = cast(dict[str, Any], write(config, done.ids, figures, done.left_out, list(done.failed)))
            ranks = read_patiently(session, "ranks")
    forecasts = pl.DataFrame(run["forecasts"], infer_schema_length=None)
    table_artifact(f"{config.name}-forecasts", forecasts, f"success after training, forecast by run {config.name}")
    table_artifact(f"{config.name}-ranks", ranks, f"ranking of run {config.name}")
    output_link(session.store, config.name, "rank.json")
    summary_artifact(f"{config.name}-rank", done.stages, done.left_out, done.failed, run)
    if done.failed:
        raise QuestionsFailedError(done.failed, run)
    return run
