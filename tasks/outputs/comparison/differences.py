"""Differences of the scores of two runs: paired by question where they have questions in common, else independent.

Paired, both runs are resampled with the same counts of the same questions; what a forecast adds of its own (questions
unseen, chance of trainings) is the same on both sides too. Not paired, each is resampled on its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from schemas.config import Settings
from schemas.question_tables import BY_QUESTION, QUESTIONS
from schemas.signals import Signal, Source
from tasks.stages.aggregate.forecast import Chance, Drawn
from tasks.stages.aggregate.pooling import SUMS, pooled
from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, resampled
from tasks.statistics.csr import Floats
from tasks.statistics.streams import stream_seed

POOLED_SCORES = ("alignment", "gain")
_RATES = {"success": ("rollouts",), "own": ("answers",), "handover": ("answers", "handover")}
"""Mean rates of the questions, and the stages that they follow from."""
_OF_FORECAST = ("rollouts", "answers", "handover", "updates")


class Key(NamedTuple):
    """What a score is of: a signal, a teacher with its context, or, with neither, the student."""

    score: str
    teacher: str | None = None
    context: str | None = None
    loss: str | None = None


class Value(NamedTuple):
    """A score of a run with its interval; NaN where it is not known."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A score less that of another run, with its interval; paired over so many common questions, or 0."""

    value: float
    low: float
    high: float
    paired: int


@dataclass(frozen=True)
class Compared:
    """What is known of a run.

    Attributes:
        columns: of `schemas.question_tables.QUESTIONS` but for the names, [Q] each, by signal.
        ids: of the questions, [Q].
        values: its scores, as its own tables have them; they need not be known.
        losses: by name.
        artefacts: keys of the artefacts of each question, by stage.
        level, forecast_level: coverage of its intervals.
        replicates: of its bootstrap.
    """

    name: str
    ids: Sequence[str]
    columns: Mapping[Signal, Mapping[str, Floats]]
    values: Mapping[Key, Value]
    losses: Mapping[str, Settings]
    artefacts: Mapping[str, Mapping[str, frozenset[str]]]
    level: float
    forecast_level: float
    replicates: int

    def at(self, ids: Sequence[str], signal: Signal) -> Mapping[str, Floats]:
        """The columns of a signal at some questions."""
        number = {question: i for i, question in enumerate(self.ids)}
        places = [number[question] for question in ids]
        return {name: values[places] for name, values in self.columns[signal].items()}

    def made_from(self, ids: Iterable[str], stages: Iterable[str]) -> list[set[str]]:
        """Keys of the artefacts of some questions, by stage."""
        return [set().union(*(self.artefacts[i].get(stage, ()) for i in ids)) for stage in stages]


def columns_by_signal(questions: pl.DataFrame) -> tuple[list[str], dict[Signal, dict[str, Floats]]]:
    """Ids of the questions of a table, and its columns by signal."""
    columns = {}
    ids: list[str] = questions["question_id"].unique(maintain_order=True).to_list()
    order = pl.DataFrame({"question_id": ids}, schema={"question_id": pl.String})
    for names, part in questions.group_by(BY_QUESTION[1:], maintain_order=True):
        rows = order.join(part, on="question_id", how="left", maintain_order="left")
        columns[Signal(*map(str, names))] = {
            name: rows[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
            for name in QUESTIONS
            if name not in BY_QUESTION
        }
    return ids, columns


def differences(first: Compared, other: Compared) -> dict[Key, Difference]:
    """Scores of the other run less those of the first, of each that both runs know."""
    common = sorted(set(first.ids) & set(other.ids))
    level, replicates = max(first.level, other.level), max(first.replicates, other.replicates)
    paired = (common, common) if common else (sorted(first.ids), sorted(other.ids))
    seeds = [0 if common else stream_seed("comparison", *sorted(run.ids)) for run in (first, other)]
    whole = len(common) == len(first.ids) == len(other.ids)
    each = zip(paired[:1] if common else paired, seeds, strict=False)
    chances = [Chance.of(len(ids), replicates, seed) for ids, seed in each]
    samples = [
        _Sampled(run, ids, chance, seed)
        for run, ids, chance, seed in zip((first, other), paired, (chances[0], chances[-1]), seeds, strict=True)
    ]
    out = {}
    for key, value in first.values.items():
        if key not in other.values or not np.isfinite(value.value) or not np.isfinite(other.values[key].value):
            continue
        rates = bool(common) and key.score in _RATES
        a, b = _both_known(samples, key) if rates else [sample.replicates(key) for sample in samples]
        same = bool(common) and _same(first, other, common, key)
        of_tables = (whole and not rates and not same) or not common
        at = other.values[key].value - value.value if of_tables else b.value - a.value
        of = max(first.forecast_level, other.forecast_level) if key.score == "forecast" else level
        out[key] = _difference(a, b, at, of, same, a.units if rates else len(common))
    return out


class Replicates(NamedTuple):
    """A score over some questions, in every bootstrap replicate, [b], and how many of them carry it."""

    value: float
    drawn: Floats
    units: int


def rate_replicates(rates: Floats, counts: Floats) -> Replicates:
    """The mean of the known rates of questions, [Q]."""
    known = np.isfinite(rates)
    if not known.any():
        return Replicates(np.nan, np.full(len(counts), np.nan), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = counts @ np.where(known, rates, 0.0) / (counts @ known.astype(np.float64))
    return Replicates(float(rates[known].mean()), drawn, int(known.sum()))


def pooled_replicates(columns: Mapping[str, Floats], counts: Floats, level: float, score: str) -> Replicates:
    """Alignment or gain, as `tasks.stages.aggregate.pooling` has them; NaN where alignment is unresolved."""
    named = {**columns, "rollouts": columns["nonempty"]}
    sums = np.stack([named.get(name, np.zeros(counts.shape[1])) for name in SUMS], axis=1)
    value, drawn = float(pooled(sums.sum(axis=0))[score]), pooled(resampled(counts, sums))[score]
    units = int((columns["open"] > 0).sum())
    unresolved = units >= LEAST_UNITS and np.isnan(drawn).mean() > (1 - level) / 2
    return Replicates(np.nan if score == "alignment" and unresolved else value, drawn, units)


def forecast_replicates(columns: Mapping[str, Floats], loss: Settings, chance: Chance, noise: Floats) -> Replicates:
    """Success after training, as `tasks.stages.aggregate.forecast` has it.

    The direction of an update, a sum over pairs of questions, is taken to first order (Hoeffding 1948) here.
    """
    base = chance.base(columns["correct"] / columns["rollouts"])
    inner = columns["update_inner"]
    direction = 2 * rate_replicates(inner, chance.counts).drawn - inner.mean()
    end = Drawn.of(columns["own"], columns["handover"], direction, loss, base, chance).end
    drawn = chance.success(base, end, noise)
    return Replicates(float(drawn.mean()), drawn, len(inner))


class _Sampled(NamedTuple):
    """A run at some questions, resampled."""

    run: Compared
    ids: Sequence[str]
    chance: Chance
    seed: int

    def replicates(self, key: Key) -> Replicates:
        if key.score in _RATES:
            return rate_replicates(self.rates(key), self.chance.counts)
        signal = Signal(str(key.teacher), str(key.context), str(key.loss))
        columns = self.run.at(self.ids, signal)
        if key.score in POOLED_SCORES:
            return pooled_replicates(columns, self.chance.counts, self.run.level, key.score)
        noise = self.chance._replace(rng=np.random.default_rng(stream_seed("noise", self.seed, *signal))).noise()
        return forecast_replicates(columns, self.run.losses[signal.loss], self.chance, noise)

    def rates(self, key: Key) -> Floats:
        """Of the questions, [Q]: those of any signal of the teacher, or of any at all."""
        wanted = (s for s in self.run.columns if key.score == "success" or s.source == Source(*map(str, key[1:3])))
        columns = self.run.at(self.ids, next(wanted))
        return columns["correct"] / columns["rollouts"] if key.score == "success" else columns[key.score]


def _both_known(samples: Sequence[_Sampled], key: Key) -> list[Replicates]:
    """The rates of two runs at questions where both are known."""
    rates = [sample.rates(key) for sample in samples]
    known = np.isfinite(rates[0]) & np.isfinite(rates[1])
    return [
        rate_replicates(np.where(known, of, np.nan), sample.chance.counts)
        for of, sample in zip(rates, samples, strict=True)
    ]


def _same(first: Compared, other: Compared, ids: Sequence[str], key: Key) -> bool:
    """Whether a score of both runs follows from the same artefacts, where one of them may have more of them."""
    if key.score in POOLED_SCORES:
        return True  # sums of draws are alike only where they are the same
    stages = _RATES.get(key.score, _OF_FORECAST)
    made = zip(first.made_from(ids, stages), other.made_from(ids, stages), strict=True)
    return all(a <= b or b <= a for a, b in made)


def _difference(a: Replicates, b: Replicates, at: float, level: float, same: bool, paired: int) -> Difference:
    """The second less the first, with an interval around a value that may differ from theirs by chance.

    Without any spread there is no interval, unless both are the same.
    """
    if not (np.isfinite(a.value) and np.isfinite(b.value)):
        return Difference(at, np.nan, np.nan, paired)
    drawn = b.drawn - a.drawn
    if not same and np.nanmax(drawn) == np.nanmin(drawn):
        return Difference(at, np.nan, np.nan, paired)
    low, high = bootstrap_interval(drawn, min(a.units, b.units), level)
    moved = at - (b.value - a.value)
    return Difference(at, low + moved, high + moved, paired)
