"""What real trainings say of a forecast: rank correlations, pairs, regret, signs and coverage, as pure functions.

Signals of one teacher with one context are not independent: every interval leaves them out together, by source.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.special import stdtrit
from scipy.stats import spearmanr

from schemas.config.run import REWARD
from schemas.training_tables import PREDICTIONS
from tasks.calibration.figure import Figure, Range
from tasks.statistics.csr import Floats

CELL = ("student", "optimiser")
"""Trainings that are compared with each other."""


class Cell(NamedTuple):
    """Signals that one student was trained on with one optimiser, [S] each.

    Attributes:
        source: number of the teacher with its context.
        predicted: by predictor.
        measured: success after training, a mean over seeds.
        error: its standard error over seeds; NaN from one seed.
        base: success of the student as it was.
    """

    source: Floats
    predicted: dict[str, Floats]
    measured: Floats
    error: Floats
    base: float

    def without(self, source: float) -> "Cell":
        """The same without the signals of a source."""
        kept = self.source != source
        predicted = {name: values[kept] for name, values in self.predicted.items()}
        return Cell(self.source[kept], predicted, self.measured[kept], self.error[kept], self.base)


def cells(table: pl.DataFrame, step: int | None) -> list[Cell]:
    """The cells of a table of `schemas.training_tables.VALIDATION`, on all tokens, after a step; None: the last one."""
    of_teachers = table.filter((pl.col("tokens") == "all") & (pl.col("teacher") != REWARD))
    out = []
    for _, group in of_teachers.group_by(CELL, maintain_order=True):
        at = group.filter(pl.col("step") == (group["step"].max() if step is None else step))
        sources = at.select(pl.struct("teacher", "context").rank("dense"))["teacher"].to_numpy().astype(np.float64)
        out.append(
            Cell(
                sources,
                {name: at[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in PREDICTIONS},
                at["measured"].to_numpy(),
                at["measured_error"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
                float(at["base"][0]),
            )
        )
    return out


Statistic = Callable[[Floats, Floats], float]
"""Of predicted and measured values, [S] each."""


def correlation(predicted: Floats, measured: Floats) -> float:
    """Spearman's; NaN where one of both does not vary, or fewer than three are known."""
    known = np.isfinite(predicted) & np.isfinite(measured)
    if known.sum() < 3 or np.ptp(predicted[known]) == 0 or np.ptp(measured[known]) == 0:
        return np.nan
    return float(spearmanr(predicted[known], measured[known]).statistic)


def regret(predicted: Floats, measured: Floats) -> float:
    """Success that is lost where the signal with the largest prediction is taken; ties share it."""
    known = np.isfinite(predicted)
    if known.sum() < 2:
        return np.nan
    chosen = known & (predicted == np.max(predicted[known]))
    return float(measured.max() - measured[chosen].mean())


def ordered(cell: Cell, name: str) -> float:
    """Share of pairs that a predictor orders as trainings do, of those whose difference is more than the seeds' noise.

    A pair that it holds to be equal counts as half.
    """
    predicted, right, pairs = cell.predicted[name], 0.0, 0
    for i in range(len(predicted)):
        for j in range(i):
            difference, noise = cell.measured[i] - cell.measured[j], np.hypot(cell.error[i], cell.error[j])
            if not abs(difference) > 2 * np.nan_to_num(noise) or not np.isfinite(predicted[i] + predicted[j]):
                continue
            pairs += 1
            right += 0.5 * (1 + np.sign(difference) * np.sign(predicted[i] - predicted[j]))
    return right / pairs if pairs else np.nan


def over_cells(of_cells: Sequence[Cell], name: str, statistic: Statistic) -> tuple[float, float, int]:
    """Mean of a statistic of a predictor over cells, its standard error, and how many sources there are."""
    return jackknife(of_cells, lambda cell: statistic(cell.predicted[name], cell.measured))


def jackknife(of_cells: Sequence[Cell], value: Callable[[Cell], float]) -> tuple[float, float, int]:
    """Mean of a value over cells, its standard error by the jackknife over sources, and how many sources there are.

    A source is left out of all cells together. A bootstrap would draw some twice, whose signals agree with themselves.
    """
    sources = sorted({source for cell in of_cells for source in cell.source.tolist()})
    n, point = len(sources), _mean(map(value, of_cells))
    without = np.array([_mean(value(cell.without(source)) for cell in of_cells) for source in sources])
    if n < _LEAST_SOURCES or not np.isfinite(without).all():
        return point, np.nan, n
    return point, float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())), n


def interval(point: float, error: float, n: int, low: float, high: float) -> tuple[float, float]:
    """The 95 % interval of a jackknife over n sources, by Student's t, within the range of the statistic."""
    if not np.isfinite(error):
        return np.nan, np.nan
    half = float(stdtrit(n - 1, 0.975)) * error
    return max(low, point - half), min(high, point + half)


_LEAST_SOURCES = 3
_RANGES: dict[Statistic, tuple[float, float]] = {correlation: (-1.0, 1.0), regret: (0.0, 1.0)}


def _mean(values: Any) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else np.nan


def predictor_rows(table: pl.DataFrame, early: int | None) -> list[dict[str, Any]]:
    """How well each predictor tells which trainings succeed: one row for each, those without a value left out.

    Args:
        table: as `schemas.training_tables.VALIDATION` declares it.
        early: the logged step after which the start of a training is judged; None: there is only the last.
    """
    late = cells(table, None)
    start = [] if early is None else cells(table, early)
    rows = []
    for name in PREDICTIONS:
        if not any(np.isfinite(cell.predicted[name]).any() for cell in late):
            continue
        row: dict[str, Any] = {"predictor": name}
        for column, of_cells, statistic in (
            ("early", start, correlation),
            ("late", late, correlation),
            ("regret", late, regret),
        ):
            row[column], error, n = over_cells(of_cells, name, statistic)
            row[f"{column}_low"], row[f"{column}_high"] = interval(row[column], error, n, *_RANGES[statistic])
        row["ordered"] = _mean(ordered(cell, name) for cell in late)
        rows.append({key: None if value != value else value for key, value in row.items()})
    return rows


def figures(table: pl.DataFrame, level: float, early: int | None, cost: tuple[int, int]) -> list[Figure]:
    """The figures that a forecast is judged by, with the ranges required of them.

    Args:
        table: as `schemas.training_tables.VALIDATION` declares it.
        level: coverage of the forecast's intervals.
        early: as for `predictor_rows`.
        cost: tokens of the forecast, and of one training on each signal, sampled and scored.
    """
    late, start = cells(table, None), [] if early is None else cells(table, early)
    last = table.filter((pl.col("step") == pl.col("step").max()) & (pl.col("tokens") == "all"))
    told = last.filter(pl.col("forecast").is_not_null())
    inside = (told["measured"] >= told["forecast_low"]) & (told["measured"] <= told["forecast_high"])
    clear = told.filter(pl.col("verdict").is_in(["helps", "harms"]))
    right = (clear["measured"] > clear["base"]) == (clear["verdict"] == "helps")
    copied = told.filter(pl.col("remark").str.contains("copies"))
    covers = Range(
        level - 0.1, min(1.0, level + 0.07), f"{100 * (level - 0.1):.0f}-{100 * min(1.0, level + 0.07):.0f} %"
    )
    reward = last.filter(pl.col("teacher") == REWARD)
    return [
        _over("rank correlation of the forecast with success at the end", late, "forecast", correlation, _AT_LEAST_9),
        _more("the same, less that of the mean cosine", late, "forecast"),
        _over("rank correlation of gain with success at the start", start, "gain", correlation, _AT_LEAST_8),
        _more("the same at the start, less that of the mean cosine", start, "gain"),
        _over("success lost by taking the first of the forecast", late, "forecast", regret, _AT_MOST_01),
        _share("forecasts whose interval holds the measured success", inside, covers),
        _share("clear forecasts with the right sign", right, Range(1.0, 1.0, "all")),
        _mean_of("error of forecasts", (told["measured"] - told["forecast"]).abs()),
        _mean_of(
            "error of forecasts where answers are copied", (copied["measured"] - copied["forecast"]).abs(), _AT_MOST_1
        ),
        Figure("tokens of the forecast / of one training on each signal", cost[0] / cost[1], None, 1, _AT_MOST_20TH),
        _mean_of("success at the end by training on the reward itself", reward["measured"]),
        selections(table, early),
    ]


_AT_LEAST_9, _AT_LEAST_8 = Range(0.9, 2.0, "at least .9"), Range(0.8, 2.0, "at least .8")
_AT_LEAST_1, _AT_MOST_1 = Range(0.1, 2.0, "at least .1"), Range(-1.0, 0.1, "at most .1")
_AT_MOST_01, _AT_MOST_20TH = Range(-1.0, 0.01, "at most .01"), Range(-1.0, 0.05, "at most 1/20")


def _over(name: str, of_cells: Sequence[Cell], predictor: str, statistic: Statistic, wanted: Range) -> Figure:
    value, error, _ = over_cells(of_cells, predictor, statistic)
    return _figure(name, value, error, len(of_cells), wanted)


def _more(name: str, of_cells: Sequence[Cell], predictor: str) -> Figure:
    """How much better a predictor orders trainings than the mean cosine."""

    def lead(cell: Cell) -> float:
        of_predictor, of_cosine = (correlation(cell.predicted[n], cell.measured) for n in (predictor, "mean_cosine"))
        return of_predictor - of_cosine

    value, error, _ = jackknife(of_cells, lead)
    return _figure(name, value, error, len(of_cells), _AT_LEAST_1)


def selections(table: pl.DataFrame, early: int | None) -> Figure:
    """How the predicted gain of training on some tokens alone orders such trainings at their start."""
    step = table["step"].max() if early is None else early
    at = table.filter((pl.col("step") == step) & pl.col("selected_gain").is_not_null())
    found = []
    for _, group in at.group_by("student", "optimiser", "teacher", "context", "loss", maintain_order=True):
        if group.height > 1:
            found.append(correlation(group["selected_gain"].to_numpy(), group["measured"].to_numpy()))
    return _figure("rank correlation of selections' gains with success at the start", _mean(found), np.nan, len(found))


def _share(name: str, hits: pl.Series, wanted: Range) -> Figure:
    if not len(hits):
        return Figure(name, None, None, 0, wanted)
    share, n = float(hits.cast(pl.Float64).to_numpy().mean()), len(hits)
    centre = (share * n + 2) / (n + 4)  # Agresti and Coull 1998: all of few are no certainty
    error = 0.0 if wanted.low == wanted.high else float(np.sqrt(centre * (1 - centre) / (n + 4)))
    return Figure(name, share, error, n, wanted)


def _mean_of(name: str, values: pl.Series, wanted: Range | None = None) -> Figure:
    x = values.to_numpy()
    error = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    return _figure(name, float(x.mean()) if len(x) else np.nan, float(error), len(x), wanted)


def _figure(name: str, value: float, error: float, n: int, wanted: Range | None = None) -> Figure:
    known = np.isfinite(value)
    return Figure(name, value if known else None, error if known and np.isfinite(error) else None, n, wanted)
