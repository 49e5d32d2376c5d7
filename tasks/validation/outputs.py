"""The Prefect task that writes what a validation found: tables, figures, page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.config import RunConfig
from schemas.config.run import REWARD
from schemas.pipeline import PIPELINE, ranking_stages
from schemas.signals import Signal
from schemas.tables import FORECASTS
from schemas.training_tables import VALIDATION_TABLES
from tasks.outputs.files import digested, parquet_bytes, read_json, read_table
from tasks.run.session import close_sessions, open_session
from tasks.stages.aggregate.tables import frame
from tasks.store.references import pinned
from tasks.store.store import Store, StoreError
from tasks.validation.judge import figures, predictor_rows
from tasks.validation.page import validation_page
from tasks.validation.results import Student, trainings_table, validation_table
from tasks.validation.shells import STAGE
from tasks.validation.trainings import Training

_NAMES = ("teacher", "context", "loss")


class Beforehand(NamedTuple):
    """What is known of a student before any training.

    Attributes:
        predictions: columns by signal.
        selected: gains of training on some tokens alone, by signal and their name.
        advice: in a sentence.
    """

    predictions: list[tuple[Signal, dict[str, Any]]]
    selected: list[tuple[tuple[Signal, str], float]]
    advice: str


class Trained(NamedTuple):
    """A student's run: what was known beforehand, and the keys of its trainings."""

    config: RunConfig
    keys: list[tuple[Training, str]]
    beforehand: Beforehand


@task(name="compare", cache_policy=NO_CACHE, persist_result=False, task_run_name="compare with the forecast")
def validation_task(
    config: RunConfig,
    runs: list[Trained],
    stages: dict[str, Any],
    left_out: dict[str, str],
) -> dict[str, Any]:
    """Compare trainings with what was forecast; returns the content of `validation.json`.

    Args:
        runs: of each student.
        stages, left_out: what trainings did, and questions without a forecast, with the reason.
    """
    store = Store(config.store)
    names = student_names([run.config for run in runs])
    students = [_student(store, name, run) for name, run in zip(names, runs, strict=True)]
    tables = {"trainings": trainings_table(students), "validation": validation_table(students)}
    logged = config.validation.logged
    early = logged[0] if len(logged) > 1 else None
    predictors = predictor_rows(tables["validation"], early)
    try:
        cost = _cost(runs[0].config, tables["trainings"])
    finally:
        close_sessions()
    result: dict[str, Any] = {
        "name": config.name,
        "configuration": config.model_dump(mode="json"),
        "references": pinned(store, config.name, "validate"),
        "students": [student.name for student in students],
        "advice": {name: run.beforehand.advice for name, run in zip(names, runs, strict=True)},
        "predictors": predictors,
        "figures": [f.row for f in figures(tables["validation"], config.scores.forecast_level, early, cost)],
        "stages": stages,
        "left_out": left_out,
    }
    files = [(f"{name}.parquet", parquet_bytes(tables[name])) for name in VALIDATION_TABLES]
    files.append(("validation.html", validation_page(result, tables).encode()))
    result["files"] = digested(store, config.name, files)
    store.put_bytes(json.dumps(result, indent=1).encode(), "runs", config.name, "validation.json")
    return result


def student_names(runs: Sequence[RunConfig]) -> list[str]:
    """A name in tables for the student of each run: that of its folder or model, numbered where some are alike."""
    names = [PurePosixPath(run.model.path).name for run in runs]
    return names if len(set(names)) == len(names) else [f"{name} {i}" for i, name in enumerate(names, 1)]


def _student(store: Store, name: str, run: Trained) -> Student:
    trained = {training: store.need(STAGE, key).arrays for training, key in run.keys}
    return Student(name, trained, dict(run.beforehand.predictions), dict(run.beforehand.selected))


def known_beforehand(store: Store, run: RunConfig) -> Beforehand:
    """What a ranking, and a diagnosis if there was one, say of a student; read before any training.

    Raises:
        StoreError: another run of the name has replaced their outputs.
    """
    ranked = read_json(store, run.name, "rank.json")
    if ranked is None or ranked["configuration"] != run.model_dump(mode="json"):
        raise StoreError(
            f"the ranking of {run.name!r} in {store.url!r} is of another run; give this one a name (--name)"
        )
    selection = read_table(store, run.name, "selection") if run.validation.diagnose else pl.DataFrame()
    selected = [
        ((Signal(*(row[name] for name in _NAMES)), row["tokens"]), row["gain"])
        for row in selection.iter_rows(named=True)
    ]
    return Beforehand(list(predictions(store, run, ranked).items()), selected, ranked["advice"])


def predictions(store: Store, run: RunConfig, ranked: dict[str, Any]) -> dict[Signal, dict[str, Any]]:
    """What is known of each signal."""
    out: dict[Signal, dict[str, Any]] = {}
    for table, columns in _read(store, run, ranked):
        for row in table.iter_rows(named=True):
            out.setdefault(Signal(*(row[name] for name in _NAMES)), {}).update({c: row[c] for c in columns})
    success = {(row["teacher"], row["context"]): row for row in ranked["success"]}
    for signal, known in out.items():
        of_source: Mapping[str, Any] = success.get((signal.teacher, signal.context), {})
        known |= {name: of_source.get(name) for name in ("own", "handover")}
    return out


def _read(store: Store, run: RunConfig, ranked: dict[str, Any]) -> list[tuple[pl.DataFrame, tuple[str, ...]]]:
    told = ("forecast", "forecast_low", "forecast_high", "verdict", "remark")
    out = [
        (read_table(store, run.name, "ranks"), ("gain", "update_gain")),
        (frame(ranked["forecasts"], FORECASTS), told),
    ]
    if run.validation.diagnose:
        summary = read_table(store, run.name, "summary").filter(pl.col("group") == "all")
        out.append((summary, ("alignment", "mean_cosine")))
        known = read_table(store, run.name, "tokens").filter(pl.col("kl").is_not_null())
        tokens = known.group_by(_NAMES).agg(pl.col("kl").dot("weight") / pl.col("weight").sum())
        out.append((tokens, ("kl",)))
    return out


def _cost(run: RunConfig, trainings: pl.DataFrame) -> tuple[int, int]:
    """Tokens sampled and scored for the forecast of a student, and for one training on each of its signals."""
    session = open_session(run)
    forecast = 0.0
    for stage, key in session.keys.references(ranking_stages(run)):
        artefact = session.store.load(stage, key) if stage in PIPELINE else None
        if artefact is not None:
            forecast += sum(artefact.meta.get(name, 0) for name in ("decoded_tokens", "scored_tokens"))
    first = trainings.filter(
        (pl.col("student") == trainings["student"][0])
        & (pl.col("optimiser") == trainings["optimiser"][0])
        & (pl.col("teacher") != REWARD)
        & (pl.col("seed") == 0)
        & (pl.col("tokens") == "all")
        & (pl.col("step") == pl.col("step").max())
    )
    return round(forecast), int((first["decoded"] + first["scored"]).sum())
