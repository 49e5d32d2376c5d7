"""What an export reads of a finished run, straight from the store: no model and no tokenizer is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import ValidationError

from schemas.arrays import AnyArray
from schemas.config import NEED_DRAWS, RunConfig
from schemas.signals import Signal, losses, signals
from schemas.text import BETWEEN, listed, quoted, reason
from tasks.inputs.errors import InputError
from tasks.outputs.files import read_declared, read_json
from tasks.stages.aggregate.questions import QuestionScores
from tasks.statistics.prior import Prior
from tasks.store.lazy import OneQuestion
from tasks.store.store import Store

_LEAST_QUESTIONS = 2  # a rule is judged on other questions than it is fitted to


@dataclass(frozen=True)
class FinishedRun:
    """A diagnosis in a store: its `run.json`, its configuration, and its signals with a direction at every position."""

    store: Store
    name: str
    run: Mapping[str, Any]
    config: RunConfig
    usable: Sequence[Signal]

    @property
    def questions(self) -> list[str]:
        """Ids of its questions."""
        return list(self.run["questions"])

    def keys(self, question: str) -> dict[str, list[str]]:
        """Keys of a question's artefacts by stage, in the order of the signals where there is one for each."""
        found: dict[str, list[str]] = {}
        for stage, key in self.run["artefacts"][question]:
            found.setdefault(stage, []).append(key)
        return found

    def scores(self, wanted: Sequence[Signal]) -> list[QuestionScores]:
        """Every question under some signals, read lazily; the artefacts of one are in memory at a time."""
        cache, every = OneQuestion(self.store), {signal: i for i, signal in enumerate(signals(self.config))}

        def read(stage: str, question: str, signal: Signal | None = None) -> Mapping[str, AnyArray]:
            key = self.keys(question)[stage][0 if signal is None else every[signal]]
            return cache.loaded(question, stage, key)

        return [QuestionScores.of(question, list(wanted), read, True) for question in self.questions]

    def prior(self) -> Prior:
        """The prior of all nodes."""
        return Prior.of(self.store.need("prior", self.keys(self.questions[0])["prior"][0]).arrays)

    def table(self, name: str) -> pl.DataFrame:
        """One of its tables.

        Raises:
            StoreError: missing or damaged.
        """
        return read_declared(self.store, self.name, name)


def open_run(store: Store, name: str) -> FinishedRun:
    """A finished diagnosis of which weights can be made.

    Raises:
        InputError: there is none of that name; it is a ranking, or not done; its nodes are no sample of all positions;
            it has too few questions, or no signal whose direction is known at every position.
    """
    runs = store.names("runs")
    if name not in runs:
        raise InputError("RUN", f"{quoted(name)} is not in {quoted(store.url)}; runs there: {listed(runs) or 'none'}")
    run = read_json(store, name, "run.json")
    if run is None:
        ranked = read_json(store, name, "rank.json") is not None
        why = "is a ranking, which has no nodes; run it with opdscope run" if ranked else "is not done, or damaged"
        raise InputError("RUN", f"{quoted(name)} {why}" + ("" if ranked else "; run it again"))
    config = _configuration(name, run)
    if not config.tree.sampled:
        raise InputError(
            "RUN",
            f"tree.kind of {quoted(name)} is {config.tree.kind}, whose nodes are no sample of all tokens with known "
            "probabilities: neither a rule nor weights of other tokens follow from them; use adaptive or forced",
        )
    found = FinishedRun(store, name, run, config, _usable(config))
    if not found.usable:
        raise InputError("RUN", f"all losses of {quoted(name)} need draws: their directions are known at nodes only")
    try:
        _check_artefacts(found)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("RUN", f"run.json of {quoted(name)} lacks {reason(error)}; run it again") from error
    if len(found.questions) < _LEAST_QUESTIONS:
        raise InputError("RUN", f"{quoted(name)} has fewer than {_LEAST_QUESTIONS} questions, too few to judge a rule")
    return found


def _configuration(name: str, run: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(run.get("configuration"))
    except ValidationError as error:
        first = error.errors()[0]
        told = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
        raise InputError("RUN", f"run.json of {quoted(name)} is of another version: {told}; run it again") from error


def _usable(config: RunConfig) -> list[Signal]:
    of_run = losses(config)
    return [signal for signal in signals(config) if not isinstance(of_run[signal.loss], NEED_DRAWS)]


def _check_artefacts(run: FinishedRun) -> None:
    """Raise KeyError unless every question has the artefacts that are read, of every signal where they are of one."""
    wanted = {"rollouts": 1, "trees": 1, "ideal": 1, "prior": 1}
    wanted |= dict.fromkeys(("distillation", "alignment"), len(signals(run.config)))
    for question in run.questions:
        keys = run.keys(question)
        for stage, count in wanted.items():
            if len(keys[stage]) != count:
                raise KeyError(f"{stage} of {question}")


def chosen_signal(run: FinishedRun, text: str | None) -> Signal:
    """The signal that was asked for, TEACHER/CONTEXT/LOSS; by default the first forecast, else the largest gain.

    Raises:
        InputError: it is not of the run, needs draws, or equals the student; or none has a gain.
        StoreError: a table is missing or damaged.
    """
    every = run.table("summary").filter(pl.col("group") == "all")
    found = {Signal(row["teacher"], row["context"], row["loss"]): row for row in every.iter_rows(named=True)}
    taught = _taught(run)
    if text is not None:
        return _named(run, text, taught)
    for row in run.table("forecasts").iter_rows(named=True):
        signal = Signal(row["teacher"], row["context"], row["loss"])
        if row["forecast"] is not None and signal in taught:
            return signal
    gains = {signal: found[signal]["gain"] for signal in taught if found[signal]["gain"] is not None}
    if not gains:
        raise InputError("RUN", f"no signal of {quoted(run.name)} has a gain: there is nothing to weight")
    return max(gains, key=lambda signal: gains[signal])


def _taught(run: FinishedRun) -> list[Signal]:
    """The usable signals that do not equal the student everywhere."""
    rows = run.table("summary").filter((pl.col("group") == "all") & (pl.col("d_sq") > 0))
    found = {Signal(*row) for row in rows.select("teacher", "context", "loss").iter_rows()}
    return [signal for signal in run.usable if signal in found]


def _named(run: FinishedRun, text: str, taught: Sequence[Signal]) -> Signal:
    found = [signal for signal in signals(run.config) if text in (name_of(signal), BETWEEN.join(signal))]
    if len(found) != 1:
        there = listed(BETWEEN.join(signal) if found else name_of(signal) for signal in found or taught)
        why = "stands for several signals" if found else "is no signal"
        raise InputError("--signal", f"{quoted(text)} {why} of {quoted(run.name)}; there are {there}")
    signal = found[0]
    if signal not in run.usable:
        raise InputError("--signal", f"{quoted(text)} needs draws: its direction is known at nodes only; give another")
    if signal not in taught:
        raise InputError("--signal", f"{quoted(text)} equals the student everywhere: there is nothing to weight")
    return signal


def name_of(signal: Signal) -> str:
    """A signal as an option names it."""
    return "/".join(signal)


def rivals(run: FinishedRun, signal: Signal) -> list[Signal]:
    """The signal, and those of other teachers and contexts by the same loss."""
    return [signal, *(other for other in _taught(run) if other.loss == signal.loss and other != signal)]


def forecast_of(run: FinishedRun, signal: Signal) -> dict[str, Any] | None:
    """What a run's forecast says of a signal; None where it has none.

    Raises:
        StoreError: the table is missing or damaged.
    """
    for row in run.table("forecasts").iter_rows(named=True):
        if Signal(row["teacher"], row["context"], row["loss"]) == signal and row["forecast"] is not None:
            return {name: row[name] for name in ("forecast", "forecast_low", "forecast_high", "verdict", "remark")}
    return None


def display(signal: Signal) -> str:
    """A signal in words."""
    return f"{signal.teacher}{BETWEEN}{signal.context} by {signal.loss}"
