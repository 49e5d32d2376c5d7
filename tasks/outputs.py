"""What a run leaves for people: tables, report and `run.json` under `<store>/runs/<name>/`."""

import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.config import RecordedTree, RunConfig, WindowsTree
from schemas.tables import PREDICTORS, RANKS, SELECTION
from tasks.aggregate import (
    QuestionScores,
    Sums,
    Texts,
    all_bins,
    differences_table,
    frame,
    summary_table,
    tokens_table,
)
from tasks.engines.streams import stream_seed
from tasks.job import Job, open_job
from tasks.lineage import Signal
from tasks.loading import OneQuestion
from tasks.predictors import AtNodes, predictor_rows
from tasks.prior import Prior
from tasks.progress import report
from tasks.ranking import RankedQuestion, rank
from tasks.report.page import Facts, LeftOut, render
from tasks.selection import CHOICES, selection_rows, sum_choices, sum_predicted
from tasks.stages import Outcome
from tasks.store.artefact import Store, StoreError
from tasks.store.collect import refer

PACKAGES = ("opdscope", "prefect", "torch", "transformers", "zarr", "polars", "numpy", "scipy")


def load_scores(job: Job, ids: Sequence[str]) -> list[QuestionScores]:
    """The artefacts of the questions, read when looked at; those of one question are held at a time."""
    held = OneQuestion(job.store)
    sampled = not isinstance(job.config.tree, WindowsTree | RecordedTree)
    return [
        QuestionScores(
            i,
            held.loaded(i, "rollouts", keys.rollouts),
            held.loaded(i, "trees", keys.trees),
            held.loaded(i, "ideal", keys.ideal),
            {signal: held.loaded(i, "distillation", key) for signal, key in keys.distillation.items()},
            {signal: held.loaded(i, "alignment", key) for signal, key in keys.alignment.items()},
            sampled,
        )
        for i, keys in ((i, job.keys[i]) for i in ids)
    ]


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A table as a parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=True)
    return buffer.getvalue()


def make_tables(
    config: RunConfig, scored: Sequence[QuestionScores], texts: Texts, prior: Prior
) -> tuple[dict[str, pl.DataFrame], list[Facts]]:
    """All tables of a run, by name, and what the page says of each question; questions are gone through one by one."""
    names, scores = list(scored[0].distillation), config.scores
    temperature, limit = config.sampling.temperature, config.tree.tail_limit
    sums = Sums(all_bins(scores.groupings, scored, names), len(scored))
    tokens, chosen, facts = [], [], []
    nodes: dict[Signal, list[AtNodes]] = {signal: [] for signal in names}
    for q in scored:
        sums.add(q)
        tokens.append(tokens_table(q, names, texts, scores.level))
        seed = stream_seed("selection", config.seed, q.question_id)
        chosen.append(sum_choices(q, names, prior, scores, temperature, limit, seed))
        for signal, kept in nodes.items():
            kept.append(AtNodes.of(q, signal))
        facts.append(Facts.of(q))
        report("aggregate", 1)
    choices = np.stack(chosen)
    for i, signal in enumerate(names):
        choices[:, i, CHOICES.index("predicted_positive")] = sum_predicted(nodes[signal])
    pool = sums.pool(scores, config.seed)
    tables = {
        "tokens": pl.concat(tokens),
        "summary": summary_table(pool),
        "differences": differences_table(pool),
        "predictors": frame(predictor_rows(nodes, scores, config.seed), PREDICTORS),
        "selection": frame(selection_rows(choices, names, scores, config.seed), SELECTION),
    }
    return tables, facts


def make_outputs(job: Job, ids: Sequence[str], left_out: LeftOut) -> Iterator[tuple[str, bytes]]:
    """Name and content of each output: the tables, and last the report, so that none is lost where a chart fails."""
    scored = load_scores(job, ids)
    prior = Prior.of(job.store.need("prior", job.keys[ids[0]].prior).arrays)
    tables, facts = make_tables(job.config, scored, job.texts, prior)
    for name, table in tables.items():
        yield f"{name}.parquet", parquet_bytes(table)
    yield "report.html", render(job.config, scored, facts, tables, job.texts, left_out).encode()


def read_run(job: Job) -> dict[str, Any] | None:
    """A run's `run.json`, if it is there and its files are as it says."""
    data = job.store.get_bytes("runs", job.config.name, "run.json")
    if data is None:
        return None
    try:
        run: dict[str, Any] = json.loads(data)
    except ValueError:  # damaged: not there
        return None
    for name, expected in run.get("files", {}).items():
        content = job.store.get_bytes("runs", job.config.name, name)
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            return None
    return run


@task(name="aggregate", cache_policy=NO_CACHE, persist_result=False, task_run_name="aggregate and report")
def aggregate_task(config: RunConfig, ids: list[str], left_out: dict[str, str]) -> Any:
    """Stage 6 and the outputs; `Cached` where they are there, verified, and made from the same artefacts."""
    began = time.monotonic()
    job = open_job(config)
    job.leave_out(left_out)
    key = job.aggregate_key(ids)
    run = read_run(job)
    if run is not None and run.get("aggregate") == key and run.get("left_out") == left_out:
        report("aggregate", len(ids))
        outcome = Outcome(cached=1, seconds=time.monotonic() - began)
        return Completed(name="Cached", message="the outputs are there", data=(run["files"], outcome))
    digests = {}
    for name, content in make_outputs(job, ids, left_out):
        job.store.put_bytes(content, "runs", config.name, name)
        digests[name] = hashlib.sha256(content).hexdigest()
    get_run_logger().info("wrote %s", job.store.path("runs", config.name))
    return digests, Outcome(made=1, seconds=time.monotonic() - began)


@task(name="rank", cache_policy=NO_CACHE, persist_result=False, task_run_name="rank")
def rank_task(config: RunConfig, ids: list[str]) -> dict[str, Any]:
    """Rank all signals; writes `ranks.parquet` and `rank.json`, and returns the latter's content."""
    job = open_job(config)
    held = OneQuestion(job.store)
    questions = [
        RankedQuestion(
            held.loaded(i, "rollouts", job.keys[i].rollouts),
            {signal: held.loaded(i, "ranking", key) for signal, key in job.ranking_keys(i).items()},
            held.loaded(i, "values", job.values_key(i)) if config.ranking.segments > 1 else None,
        )
        for i in ids
    ]
    ranking = rank(questions, config.sampling.temperature, config.scores, config.seed)
    report("rank", 1)
    job.store.put_bytes(parquet_bytes(frame(ranking.rows, RANKS)), "runs", config.name, "ranks.parquet")
    result = {
        "name": config.name,
        "configuration": config.model_dump(mode="json"),
        "questions": ids,
        "settled": ranking.settled,
        "more_questions": ranking.more_questions,
        "more_rollouts": ranking.more_rollouts,
    }
    job.store.put_bytes(json.dumps(result, indent=1).encode(), "runs", config.name, "rank.json")
    return result


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this project, run from a checkout that is not installed
        return "not installed"


def write_references(job: Job, flow: str, stages: Sequence[str]) -> None:
    """Tell the store's clean-up what a run needs, before it has made it."""
    refer(job.store, job.config.name, flow, (f"{stage}/{key}" for stage, key in job.references(stages)))


def read_table(store: Store, run: str, name: str) -> pl.DataFrame:
    """A table of a run.

    Raises:
        StoreError: it is gone.
    """
    data = store.get_bytes("runs", run, f"{name}.parquet")
    if data is None:
        raise StoreError(f"the outputs of run {run!r} are gone from {store.url!r}")
    return pl.read_parquet(io.BytesIO(data))


def write_run(
    job: Job,
    ids: Sequence[str],
    left_out: LeftOut,
    failed: Sequence[str],
    files: Mapping[str, str],
    stages: Mapping[str, Outcome],
) -> dict[str, Any]:
    """Write `run.json`, last of all."""
    run = {
        "name": job.config.name,
        "configuration": job.config.model_dump(mode="json"),
        "aggregate": job.aggregate_key(ids),
        "files": dict(files),
        "questions": list(ids),
        "left_out": dict(left_out),
        "failed": list(failed),
        "artefacts": {i: [list(pair) for pair in job.keys[i].all()] for i in ids},
        "versions": {package: _version(package) for package in PACKAGES},
        "stages": {stage: outcome.figures for stage, outcome in stages.items()},
    }
    job.store.put_bytes(json.dumps(run, indent=1).encode(), "runs", job.config.name, "run.json")
    return run
