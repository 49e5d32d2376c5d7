"""The tasks that write outputs: tables and report of a diagnosis, a ranking."""

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.config import RunConfig
from schemas.signals import POLICY, Signal, not_ranked, ranked_signals, unranked_losses
from schemas.tables import FORECASTS, HANDOVERS, RANKS, SUCCESS
from tasks.operations.progress import publish
from tasks.outputs.diagnosis import make_outputs
from tasks.outputs.files import parquet_bytes, read_run, write_files
from tasks.outputs.generated import generated_texts
from tasks.outputs.success import answered, forecasts, read_updates, success_tables
from tasks.run.session import RunSession, open_session
from tasks.run.shells import TaskSummary
from tasks.stages.aggregate.forecast import advice
from tasks.stages.aggregate.tables import frame
from tasks.stages.aggregate.updates import update_columns
from tasks.stages.no_signal import why_unresolved, without_signal
from tasks.stages.ranking import RankedQuestion, rank
from tasks.statistics.bootstrap import LEAST_UNITS
from tasks.statistics.csr import Floats
from tasks.store.lazy import OneQuestion
from tasks.store.references import pinned

_TOLD = ("why_unresolved", "without_signal", "generated_texts", "advice")
"""What `run.json` says in words."""


@task(name="aggregate", cache_policy=NO_CACHE, persist_result=False, task_run_name="aggregate and report")
def aggregate_task(config: RunConfig, ids: list[str], left_out: dict[str, str], not_pooled: list[str]) -> Any:
    """Stage 6 and the outputs; `Cached` where they exist, are verified, and were made from the same artefacts.

    Args:
        left_out: questions that the tables exclude, with the reason.
        not_pooled: those of them that the prior excludes.
    """
    start = time.monotonic()
    session = open_session(config)
    session.keys.leave_out(not_pooled)
    key = session.keys.aggregate(ids)
    run = read_run(session)
    same = run is not None and (run.get("aggregate"), run.get("left_out")) == (key, left_out)
    if run is not None and same and set(_TOLD) <= run.keys():
        publish("aggregate", len(ids))
        summary = TaskSummary(cached=1, seconds=time.monotonic() - start)
        existing = {name: run[name] for name in ("files", *_TOLD)}
        return Completed(name="Cached", message="the outputs exist", data=(existing, summary))
    outputs = make_outputs(session, ids, left_out)
    made = {
        "files": write_files(session, outputs.files),
        "why_unresolved": outputs.why_unresolved,
        "without_signal": outputs.without_signal,
        "generated_texts": outputs.generated_texts,
        "advice": outputs.advice,
    }
    get_run_logger().info("wrote %s", session.store.path("runs", config.name))
    return made, TaskSummary(made=1, seconds=time.monotonic() - start)


@task(name="rank", cache_policy=NO_CACHE, persist_result=False, task_run_name="rank")
def rank_task(
    config: RunConfig,
    ids: list[str],
    stages: dict[str, dict[str, int | float]],
    left_out: dict[str, str],
    failed: list[str],
) -> dict[str, Any]:
    """Rank all signals; writes `ranks.parquet` and `rank.json`, and returns the latter's content.

    Args:
        stages: what the stages before did (`tasks.run.shells.TaskSummary.figures`).
        left_out: questions without a place in it, with the reason.
        failed: those of them that are because of an error.
    """
    session = open_session(config)
    cache, keys = OneQuestion(session.store), session.keys
    questions = [
        RankedQuestion(
            cache.loaded(i, "rollouts", keys.key("rollouts", i)),
            {signal: cache.loaded(i, "ranking", keys.key("ranking", i, signal)) for signal in ranked_signals(config)},
            cache.loaded(i, "values", keys.key("values", i)) if config.ranking.segments > 1 else None,
        )
        for i in ids
    ]
    ranking = rank(questions, config.sampling.temperature, config.scores, config.seed, not_ranked(config))
    carrying = int(ranking.rows[0]["carrying"])
    updates = read_updates(session, ids)
    _add_updates(session, updates, ranking.rows)
    answers = answered(session, ids)
    forecast = forecasts(session, answers, updates, ranking.rows)
    why = why_unresolved(ranking.endings, carrying, config) if carrying < LEAST_UNITS else None
    publish("rank", 1)
    success, handover = (
        frame(rows, columns).to_dicts()
        for rows, columns in zip(success_tables(session, answers), (SUCCESS, HANDOVERS), strict=True)
    )
    result = {
        "name": config.name,
        "configuration": config.model_dump(mode="json"),
        "references": pinned(session.store, config.name, "rank"),
        "questions": ids,
        "left_out": left_out,
        "failed": failed,
        "settled": ranking.settled,
        "why_unresolved": why,
        "without_signal": without_signal(dict(zip(ids, ranking.endings, strict=True)), config),
        "generated_texts": generated_texts(session, ids),
        "not_ranked": [list(source) for source in not_ranked(config)],
        "need_draws": unranked_losses(config),
        "success": success,
        "handover": handover,
        "forecasts": frame(forecast, FORECASTS).to_dicts(),
        "advice": advice(forecast, bool(updates)),
        "additional_questions": ranking.additional_questions,
        "additional_rollouts": ranking.additional_rollouts,
        "stages": stages,
        "files": write_files(session, [("ranks.parquet", parquet_bytes(frame(ranking.rows, RANKS)))]),
    }
    session.store.put_bytes(json.dumps(result, indent=1).encode(), "runs", config.name, "rank.json")
    return result


def _add_updates(session: RunSession, updates: Mapping[Signal, Floats], rows: list[dict[str, Any]]) -> None:
    """Complete the rows of a ranking with update gains; they are unknown where no updates were computed."""
    if POLICY not in updates:
        blank = {name: np.nan for name in RANKS if name.startswith("update_")}
        for row in rows:
            row.update(blank)
        return
    policy = updates[POLICY]
    carrying = int((np.abs(policy).sum(axis=1) > 0).sum())
    others = {signal: update for signal, update in updates.items() if signal != POLICY}
    found = update_columns(policy, others, carrying, session.config.scores, session.config.seed)
    for row in rows:
        row.update(found[Signal(row["teacher"], row["context"], row["loss"])])
