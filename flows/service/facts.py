"""What the index says of a run's outputs, read from the files that the run wrote last; anything may lie there."""

import hashlib
import math
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import polars as pl
from pydantic import BaseModel, Field, ValidationError

from flows.command.terminal import estimate, precise
from schemas.signals import REWARDED
from tasks.outputs.files import parsed
from tasks.store.store import StoreError

MOST_BYTES = 256 * 1024**2
"""A file above this size is not read for the index."""
TABLES = ("forecasts.parquet", "ranks.parquet", "summary.parquet")
"""Tables that are read for the index."""
_SIGNAL = ("teacher", "context", "loss")
Read = Callable[[str], bytes | None]
"""Reads a file of the run."""


_MOST_SECONDS = 1e12
"""Of a stage: sums of them stay numbers."""


class Best(NamedTuple):
    """The best signal of a run; the reward itself, with which signals are compared, is none.

    Attributes:
        quantity: what it is best by: forecast or gain.
        value: of that quantity.
        text: the value with its interval, as in the terminal.
    """

    signal: str
    quantity: str
    value: float
    text: str


class Facts(NamedTuple):
    """What one flow says of itself.

    Attributes:
        damaged: why its file, or a table that it names, cannot be read; the rest is then unknown.
        student: its folder's name, without the path to it.
        students: of a validation: how many.
        references: SHA-256 of the references with which it was made; None for those of older versions.
        questions: those that its outputs cover; None for a validation, which does not say it.
        left_out, failed: numbers of questions; the first includes the second.
        figures, passed: of a validation.
        tokens: decoded, in all stages.
        seconds: of all stages.
        outdated: the references are others by now, those of a later run.
    """

    damaged: str = ""
    student: str | None = None
    students: int = 1
    references: str | None = None
    questions: int | None = None
    left_out: int = 0
    failed: int = 0
    figures: int = 0
    passed: int = 0
    best: Best | None = None
    tokens: int = 0
    seconds: float = 0.0
    outdated: bool = False


class _Student(BaseModel):
    path: str


class _Configuration(BaseModel):
    student: _Student | None = None


class _Stage(BaseModel):
    decoded_tokens: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0, le=_MOST_SECONDS, allow_inf_nan=False)


class _Figure(BaseModel):
    verdict: str | None = None


class _Forecast(BaseModel):
    teacher: str
    context: str
    loss: str
    forecast: float | None
    forecast_low: float | None
    forecast_high: float | None


class _Told(BaseModel):
    configuration: _Configuration
    questions: list[str] | None = None
    left_out: dict[str, str] = {}
    failed: list[str] = []
    stages: dict[str, _Stage] = {}
    files: dict[str, str] = {}
    students: list[str] = []
    references: str | None = None
    figures: list[_Figure] = []
    forecasts: list[_Forecast] = []


def facts(name: str, data: bytes, read: Read) -> Facts:
    """What `run.json`, `rank.json` or `validation.json` says.

    Args:
        name: which of them.
        data: its content.
        read: for the tables that it names.
    """
    if len(data) > MOST_BYTES:
        return Facts(f"{name} has {len(data):,} bytes, too many to be read here")
    try:
        told = _Told.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return Facts(f"{name} is damaged or half written ({f'{place}: ' if place else ''}{first['msg']})")
    try:
        best = _best(name, told, read)
    except (StoreError, pl.exceptions.PolarsError, KeyError, TypeError, ValueError) as error:  # not one of ours
        return Facts(str(error) if isinstance(error, StoreError) else f"a table of {name} is not one that runs write")
    student = told.configuration.student
    return Facts(
        student=None if student is None else PurePosixPath(student.path).name or student.path,
        students=max(1, len(told.students)),
        references=told.references,
        questions=None if told.questions is None else len(told.questions),
        left_out=len(told.left_out),
        failed=len(told.failed),
        figures=len(told.figures),
        passed=sum(figure.verdict == "pass" for figure in told.figures),
        best=best,
        tokens=sum(stage.decoded_tokens for stage in told.stages.values()),
        seconds=sum(stage.seconds for stage in told.stages.values()),
    )


def _best(name: str, told: _Told, read: Read) -> Best | None:
    """The signal of a teacher with the largest forecast, else gain."""
    if name == "validation.json":
        return None
    forecasts: list[dict[str, Any]] = [forecast.model_dump() for forecast in told.forecasts]
    if name == "run.json" and "forecasts.parquet" in told.files:
        forecasts = _table("forecasts", told, read).to_dicts()
    known = [row for row in forecasts if row["forecast"] is not None and _taught(row)]
    if known:
        return _named(known[0], "forecast", estimate(known[0], "forecast"))  # they come the best first
    table = "summary" if name == "run.json" else "ranks"
    if f"{table}.parquet" not in told.files:
        return None
    gains = _table(table, told, read)
    if table == "summary":
        gains = gains.filter(pl.col("group") == "all")
    gains = gains.filter(pl.col("gain").is_not_null()).sort("gain", descending=True, maintain_order=True)
    ranked = [row for row in gains.to_dicts() if _taught(row)]
    return _named(ranked[0], "gain", precise(ranked[0], "gain")) if ranked else None


def _taught(row: dict[str, Any]) -> bool:
    return (row["teacher"], row["context"]) != REWARDED


def _named(row: dict[str, Any], quantity: str, text: str) -> Best:
    if not math.isfinite(row[quantity]):
        raise ValueError(quantity)
    teacher, context, loss = (str(row[part]) for part in _SIGNAL)
    return Best(f"{teacher}/{context} by {loss}", quantity, float(row[quantity]), text)


def _table(name: str, told: _Told, read: Read) -> pl.DataFrame:
    data = read(f"{name}.parquet")
    if data is None:
        raise StoreError(f"{name}.parquet is missing")
    if hashlib.sha256(data).hexdigest() != told.files[f"{name}.parquet"]:
        raise StoreError(f"{name}.parquet is damaged, or being written")
    return parsed(data, f"{name}.parquet")
