"""What is compared of a finished run, read from its folder."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import BaseModel, ValidationError

from schemas.config import RunConfig
from schemas.signals import losses as named_losses
from schemas.text import quoted, reason
from tasks.outputs.comparison.differences import POOLED_SCORES, Compared, Key, Value, columns_by_signal
from tasks.outputs.files import read_declared, read_json
from tasks.stages.aggregate.success import mean_estimates
from tasks.statistics.bootstrap import resample
from tasks.store.store import Store, StoreError


class _Told(BaseModel):
    """What is read of `run.json`."""

    configuration: dict[str, Any]
    files: dict[str, str]
    artefacts: dict[str, list[tuple[str, str]]]


class Finished(NamedTuple):
    """A finished diagnosis: its configuration, what `run.json` says, and its store."""

    store: Store
    name: str
    config: RunConfig
    told: Mapping[str, Any]

    @classmethod
    def of(cls, store: Store, name: str) -> "Finished":
        """A run by its name.

        Raises:
            StoreError: there is none of this name, it is a ranking, or `run.json` is damaged.
        """
        files = store.names("runs", name)
        if "run.json" not in files:
            if "rank.json" in files:
                raise StoreError(f"run {name!r} in {store.url!r} is a ranking; give one of `opdscope run`")
            finished = [run for run in store.names("runs") if "run.json" in store.names("runs", run)]
            there = ", ".join(finished[:20]) or "none"
            raise StoreError(f"there is no finished run {quoted(name)} in {store.url!r}; finished runs there: {there}")
        told = read_json(store, name, "run.json")
        try:
            _Told.model_validate(told)
        except ValidationError as error:
            raise StoreError(
                f"run.json of run {name!r} in {store.url!r} is damaged; run it again: nothing is decoded"
            ) from error
        try:
            return cls(store, name, RunConfig.model_validate((told or {})["configuration"]), told or {})
        except ValidationError as error:
            raise StoreError(
                f"the configuration of run {name!r} in {store.url!r} is of another version "
                f"({reason(str(error.errors()[0]['msg']))}); run it again: nothing is decoded"
            ) from error

    def table(self, name: str) -> pl.DataFrame:
        """One of its tables.

        Raises:
            StoreError: it is missing or damaged.
        """
        if f"{name}.parquet" not in self.told["files"]:
            raise StoreError(
                f"run {self.name!r} in {self.store.url!r} has no {name}.parquet, as it was made before this version; "
                "run it again: nothing is decoded"
            )
        return read_declared(self.store, self.name, name)


def compared(run: Finished, label: str) -> Compared:
    """What is compared of a run.

    Args:
        label: what it is called beside others.

    Raises:
        StoreError: a table of it is missing or damaged.
    """
    questions = run.table("questions")
    if questions.is_empty():
        raise StoreError(f"run {run.name!r} in {run.store.url!r} has no questions in its tables; run it again")
    ids, columns = columns_by_signal(questions)
    scores = run.config.scores
    values = _student(questions, ids, run.config)
    values |= _values(run.table("success"), ("own", "handover"), ("teacher", "context"))
    by_signal = ("teacher", "context", "loss")
    values |= _values(run.table("forecasts"), ("forecast",), by_signal)
    values |= _values(run.table("summary").filter(pl.col("group") == "all"), POOLED_SCORES, by_signal)
    return Compared(
        name=label,
        ids=ids,
        columns=columns,
        values=values,
        losses=named_losses(run.config),
        artefacts={question: _by_stage(pairs) for question, pairs in run.told["artefacts"].items()},
        level=scores.level,
        forecast_level=scores.forecast_level,
        replicates=scores.bootstrap,
    )


def _by_stage(pairs: Sequence[Sequence[str]]) -> dict[str, frozenset[str]]:
    out: dict[str, set[str]] = {}
    for stage, key in pairs:
        out.setdefault(stage, set()).add(key)
    return {stage: frozenset(keys) for stage, keys in out.items()}


def _student(questions: pl.DataFrame, ids: Sequence[str], config: RunConfig) -> dict[Key, Value]:
    """The student's success: the mean of the rates of the questions."""
    of = questions.unique("question_id", maintain_order=True)
    rates = (of["correct"] / of["rollouts"]).to_numpy()
    counts = resample(len(ids), config.scores.bootstrap, config.seed)
    found = mean_estimates({"own": rates}, counts, config.scores.level)
    return {Key("success"): Value(found["own"], found["own_low"], found["own_high"])}


def _values(table: pl.DataFrame, scores: Sequence[str], names: Sequence[str]) -> dict[Key, Value]:
    out = {}
    for score in scores:
        for row in table.iter_rows(named=True):
            ends = (row[f"{score}{end}"] for end in ("", "_low", "_high"))
            out[Key(score, *(row[name] for name in names))] = Value(*(np.nan if v is None else v for v in ends))
    return out
