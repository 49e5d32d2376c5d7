"""What a run leaves for people: tables, report and `run.json` under `<store>/runs/<name>/`."""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from schemas.config import RunConfig
from schemas.signals import Signal, signals
from schemas.tables import PREDICTORS, RANKS, SELECTION
from tasks.inputs.questions import InputError
from tasks.operations.errors import patiently
from tasks.operations.progress import publish
from tasks.outputs.report.page import Facts, LeftOut, render
from tasks.run.session import RunSession, open_session
from tasks.run.shells import TaskSummary
from tasks.stages.aggregate.groups import all_bins
from tasks.stages.aggregate.pooling import Sums
from tasks.stages.aggregate.predictors import AtNodes, predictor_rows
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.selection import CHOICES, selection_rows, sum_choices, sum_predicted
from tasks.stages.aggregate.tables import Texts, differences_table, frame, summary_table, tokens_table
from tasks.stages.no_signal import why_unresolved
from tasks.stages.ranking import RankedQuestion, rank
from tasks.statistics.bootstrap import LEAST_UNITS
from tasks.statistics.prior import Prior
from tasks.statistics.streams import stream_seed
from tasks.store.garbage import refer, refer_also
from tasks.store.keys import digest
from tasks.store.lazy import Loaded, OneQuestion
from tasks.store.store import Store, StoreError

Result = TypeVar("Result")

_WAIT = 0.2
"""Seconds between two looks at a name that is in use."""

PACKAGES = ("opdscope", "prefect", "torch", "transformers", "zarr", "polars", "numpy", "scipy")


def load_scores(session: RunSession, ids: Sequence[str]) -> list[QuestionScores]:
    """The artefacts of the questions, read when looked at; those of one question are held at a time."""
    held, names = OneQuestion(session.store), signals(session.config)

    def read(question: str, stage: str, signal: Signal | None = None) -> Loaded:
        return held.loaded(question, stage, session.keys.key(stage, question, signal))

    return [QuestionScores.of(i, names, partial(read, i), session.config.tree.sampled) for i in ids]


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
    sums = Sums(all_bins(scores.groupings, scored, names))
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
        publish("aggregate", 1)
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


class Outputs(NamedTuple):
    """Outputs of a diagnosis.

    Attributes:
        why_unresolved: why some signal's alignment over all rollouts is not known, if one's is not.
        files: name and content of each, made when it is asked for: the tables, and last the report, so that none is
            lost where a chart fails.
    """

    why_unresolved: str | None
    files: Iterator[tuple[str, bytes]]


def make_outputs(session: RunSession, ids: Sequence[str], left_out: LeftOut) -> Outputs:
    """Tables and report."""
    scored = load_scores(session, ids)
    prior = Prior.of(session.store.need("prior", session.keys.key("prior", ids[0])).arrays)
    tables, facts = make_tables(session.config, scored, session.provider.texts, prior)
    why = _why_unresolved(session.config, tables["summary"], facts)

    def files() -> Iterator[tuple[str, bytes]]:
        for name, table in tables.items():
            yield f"{name}.parquet", parquet_bytes(table)
        yield (
            "report.html",
            render(session.config, scored, facts, tables, session.provider.texts, left_out, why).encode(),
        )

    return Outputs(why, files())


def _why_unresolved(config: RunConfig, summary: pl.DataFrame, facts: Sequence[Facts]) -> str | None:
    every = summary.filter(pl.col("group") == "all")
    if every.filter((pl.col("d_sq") > 0) & pl.col("alignment").is_null()).is_empty() and not every.is_empty():
        return None
    carrying = 0 if every.is_empty() else int(every["carrying"][0])
    return why_unresolved([f.endings for f in facts], carrying, config)


def read_run(session: RunSession) -> dict[str, Any] | None:
    """A run's `run.json`, if it is there and its files are as it says."""
    run = _written(session.store, session.config.name, "run.json")
    if run is None:
        return None
    for name, expected in run.get("files", {}).items():
        content = session.store.get_bytes("runs", session.config.name, name)
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            return None
    return run


@task(name="aggregate", cache_policy=NO_CACHE, persist_result=False, task_run_name="aggregate and report")
def aggregate_task(config: RunConfig, ids: list[str], left_out: dict[str, str], not_pooled: list[str]) -> Any:
    """Stage 6 and the outputs; `Cached` where they are there, verified, and made from the same artefacts.

    Args:
        left_out: questions that the tables are without, with the reason.
        not_pooled: those of them that the prior is without.
    """
    began = time.monotonic()
    session = open_session(config)
    session.keys.leave_out(not_pooled)
    key = session.keys.aggregate(ids)
    run = read_run(session)
    same = run is not None and (run.get("aggregate"), run.get("left_out")) == (key, left_out)
    if run is not None and same and "why_unresolved" in run:
        publish("aggregate", len(ids))
        outcome = TaskSummary(cached=1, seconds=time.monotonic() - began)
        found = {"files": run["files"], "why_unresolved": run["why_unresolved"]}
        return Completed(name="Cached", message="the outputs are there", data=(found, outcome))
    outputs = make_outputs(session, ids, left_out)
    made = {"files": _write_files(session, outputs.files), "why_unresolved": outputs.why_unresolved}
    get_run_logger().info("wrote %s", session.store.path("runs", config.name))
    return made, TaskSummary(made=1, seconds=time.monotonic() - began)


@task(name="rank", cache_policy=NO_CACHE, persist_result=False, task_run_name="rank")
def rank_task(config: RunConfig, ids: list[str]) -> dict[str, Any]:
    """Rank all signals; writes `ranks.parquet` and `rank.json`, and returns the latter's content."""
    session = open_session(config)
    held, keys = OneQuestion(session.store), session.keys
    questions = [
        RankedQuestion(
            held.loaded(i, "rollouts", keys.key("rollouts", i)),
            {signal: held.loaded(i, "ranking", keys.key("ranking", i, signal)) for signal in signals(config)},
            held.loaded(i, "values", keys.key("values", i)) if config.ranking.segments > 1 else None,
        )
        for i in ids
    ]
    ranking = rank(questions, config.sampling.temperature, config.scores, config.seed)
    carrying = int(ranking.rows[0]["carrying"])
    why = why_unresolved(ranking.endings, carrying, config) if carrying < LEAST_UNITS else None
    publish("rank", 1)
    result = {
        "name": config.name,
        "configuration": config.model_dump(mode="json"),
        "questions": ids,
        "settled": ranking.settled,
        "why_unresolved": why,
        "more_questions": ranking.more_questions,
        "more_rollouts": ranking.more_rollouts,
        "files": _write_files(session, [("ranks.parquet", parquet_bytes(frame(ranking.rows, RANKS)))]),
    }
    session.store.put_bytes(json.dumps(result, indent=1).encode(), "runs", config.name, "rank.json")
    return result


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this project, run from a checkout that is not installed
        return "not installed"


@contextmanager
def named(config: RunConfig, flow: str, stages: Sequence[str]) -> Iterator[None]:
    """Keep the run's name for the time of a block, so that another configuration's run does not mix with it.

    Runs that need the same of the store share a name.

    Raises:
        InputError: another configuration's run of this name is at work.
    """
    session = open_session(config)
    need = digest(session.keys.references(stages, draws=session.samples))
    claim = digest(["run", flow, config.name])
    seen: set[str] = set()
    while True:
        with ExitStack() as held:
            if _patiently(session, lambda: held.enter_context(session.claims.hold(claim, need))):
                yield
                return
        others = {r.name for r in session.claims.rivals(claim) if r.alive and not r.expired and r.subject != need}
        if others & seen:  # not one that has only come and looked
            raise InputError(
                "name",
                f"a run named {config.name!r} with another configuration is at work on {config.store!r}; "
                "wait for its end, or give this one another name (--name)",
            )
        seen = others
        time.sleep(_WAIT)


@contextmanager
def writing(session: RunSession) -> Iterator[None]:
    """Write the outputs of a run's name for the time of a block, after any other that writes them."""

    def told() -> None:
        get_run_logger().info("another run named %r writes its outputs: waiting for it", session.config.name)

    claim = digest(["outputs", session.config.name])
    with ExitStack() as held:
        _patiently(session, lambda: held.enter_context(session.claims.wait(claim, told)))
        yield


def _write_files(session: RunSession, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Write outputs, one after the other as they are made; gives the SHA-256 of each."""
    digests = {}
    for name, content in files:
        session.store.put_bytes(content, "runs", session.config.name, name)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def _patiently(session: RunSession, action: Callable[[], Result]) -> Result:
    return patiently(action, session.config.execution.retries, session.config.execution.retry_seconds)


def write_references(session: RunSession, flow: str, stages: Sequence[str]) -> None:
    """Tell the store's clean-up what a run needs, before it has made it."""
    needed = [f"{stage}/{key}" for stage, key in session.keys.references(stages, draws=session.samples)]
    _patiently(session, lambda: refer(session.store, session.config.name, flow, needed))


def add_references(session: RunSession, flow: str, stages: Sequence[str]) -> None:
    """Tell it again, once questions are left out: what is made of all questions has another key then."""
    needed = [f"{stage}/{key}" for stage, key in session.keys.references(stages, draws=session.samples)]
    _patiently(session, lambda: refer_also(session.store, session.config.name, flow, needed))


def left_out_before(session: RunSession) -> list[str]:
    """Questions that the last run of this name left out for what their rollouts are, which these still are."""
    if "run.json" not in session.store.names("runs", session.config.name):
        return []
    run = _written(session.store, session.config.name, "run.json") or {}
    lost = set(run.get("left_out", {})) - set(run.get("failed", []))
    keys = session.keys
    return [i for i in keys.questions if i in lost and session.store.names("rollouts", keys.key("rollouts", i))]


def read_patiently(session: RunSession, name: str) -> pl.DataFrame:
    """A table of a session's run, waited for where the store is away.

    Raises:
        StoreError: it is gone, or another run is about to replace it.
    """
    return _patiently(session, lambda: read_table(session.store, session.config.name, name))


def read_table(store: Store, run: str, name: str) -> pl.DataFrame:
    """A table of a run.

    Raises:
        StoreError: it is gone, or another run is about to replace it.
    """
    data = store.get_bytes("runs", run, f"{name}.parquet")
    if data is None:
        raise StoreError(f"the outputs of run {run!r} are gone from {store.url!r}")
    expected = _digests(store, run).get(f"{name}.parquet")
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise StoreError(
            f"{name}.parquet of run {run!r} in {store.url!r} is not what its run.json or rank.json tells of: another "
            "run writes it now, or it is damaged; run again under another name (--name)"
        )
    return pl.read_parquet(io.BytesIO(data))


def _digests(store: Store, run: str) -> dict[str, str]:
    """SHA-256 of a run's files, as it wrote them last of all."""
    out: dict[str, str] = {}
    for name in ("run.json", "rank.json"):
        out |= (_written(store, run, name) or {}).get("files", {})
    return out


def _written(store: Store, run: str, name: str) -> dict[str, Any] | None:
    try:
        content = json.loads(store.get_bytes("runs", run, name) or b"null")
    except ValueError:  # damaged: not there
        return None
    return content if isinstance(content, dict) else None


def write_run(
    session: RunSession,
    ids: Sequence[str],
    left_out: LeftOut,
    failed: Sequence[str],
    outputs: Mapping[str, Any],
    stages: Mapping[str, TaskSummary],
) -> dict[str, Any]:
    """Write `run.json`, last of all.

    Args:
        outputs: what `aggregate_task` tells of them: SHA-256 of each file, and why scores are unresolved.
    """
    run = {
        "name": session.config.name,
        "configuration": session.config.model_dump(mode="json"),
        "aggregate": session.keys.aggregate(ids),
        **outputs,
        "questions": list(ids),
        "left_out": dict(left_out),
        "failed": list(failed),
        "artefacts": {i: [list(pair) for pair in session.keys.artefacts(i)] for i in ids},
        "versions": {package: _version(package) for package in PACKAGES},
        "stages": {stage: outcome.figures for stage, outcome in stages.items()},
    }
    data = json.dumps(run, indent=1).encode()
    _patiently(session, lambda: session.store.put_bytes(data, "runs", session.config.name, "run.json"))
    return run
