"""Teachers, contexts and losses ranked from on-policy rollouts alone (statistics of section 9).

Every token of a rollout is a draw at its own node: with b the mean outcome of the question's other rollouts,
sum_t (R - b) (d_{y_t} - dbar_t) has the expectation of the pooled <g, d>. |d| is exact and |g| is the same for all
signals, so gains rank them as alignments do.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import Scores
from schemas.signals import Signal, Source
from tasks.stages.aggregate.pooling import gain
from tasks.stages.aggregate.truncation import Kept
from tasks.stages.no_signal import Endings
from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, critical_value, resample, resampled
from tasks.statistics.csr import Floats, row_sums


@dataclass(frozen=True)
class RankedQuestion:
    """Input of a ranking for one question: rollouts, the arrays `RANKING` of every signal, values along rollouts."""

    rollouts: Mapping[str, AnyArray]
    signals: Mapping[Signal, Mapping[str, AnyArray]]
    values: Mapping[str, AnyArray] | None = None


def advantages(reward: AnyArray) -> Floats:
    """R - b of each rollout, b the mean of the others, [R]; exactly 0 where all are alike, as a single one is."""
    n, R = len(reward), np.asarray(reward, dtype=np.float64)
    return R - (R.sum() - R) / (n - 1) if np.ptp(R) > 0 else np.zeros(n)


def token_advantages(q: RankedQuestion) -> Floats:
    """The advantage of every token, [T]: the value at the end of its segment minus that at its start.

    The first segment starts with the mean of the other rollouts, the last one ends with the outcome. However noisy the
    values are, the one at the end is unbiased and the one at the start is independent of the segment's tokens.
    """
    offsets, reward = np.asarray(q.rollouts["offsets"], dtype=np.int64), np.asarray(q.rollouts["reward"])
    starts = reward - advantages(reward)
    if q.values is None:
        return np.repeat(reward - starts, np.diff(offsets))
    ends = np.asarray(q.values["boundary"], dtype=np.int64)
    value = np.asarray(q.values["successes"] / q.values["draws"], dtype=np.float64)
    out = np.empty(int(offsets[-1]))
    for r, (first, last) in enumerate(pairwise(offsets.tolist())):
        inside = (ends > first) & (ends < last)
        steps = np.diff([starts[r], *value[inside], float(reward[r])])
        out[first:last] = np.repeat(steps, np.diff([first, *ends[inside], last]))
    return out


_SUMS = ("inner", "d_sq", "open", "rollouts")
"""The summed quantities: `open` counts rollouts with a nonzero advantage; only these are informative."""


def contributions(q: RankedQuestion, temperature: float, undefined: Collection[Source] = ()) -> Floats:
    """Unbiased contributions to <g, d>, |d|^2 and counts of each rollout by signal: [R, signals, len(_SUMS)].

    Args:
        undefined: teachers whose distributions depend on what comes after a token: their <g, d> is NaN.
    """
    offsets = np.asarray(q.rollouts["offsets"], dtype=np.int64)
    advantage = token_advantages(q) / temperature
    informative = row_sums(np.abs(advantage), offsets) > 0
    out = []
    for signal, arrays in q.signals.items():
        inner, d_sq = (row_sums(np.asarray(x), offsets) for x in (advantage * arrays["d_token"], arrays["d_sq"]))
        if signal.source in undefined:
            inner = np.full_like(inner, np.nan)
        out.append(np.stack([inner, d_sq, informative, np.ones(len(informative))], axis=1))
    return np.stack(out, axis=1)


def gains(sums: Floats) -> Floats:
    """Gain of a unit step: [..., len(_SUMS)] -> [...]; NaN where |d| is 0 or no rollout is informative."""
    inner, d_sq, open_, rollouts = np.moveaxis(sums, -1, 0)
    return np.where(open_ > 0, gain(inner, d_sq, rollouts), np.nan)


@dataclass(frozen=True)
class Ranking:
    """Signals by gain: rows of `schemas.tables.RANKS`, and what it would take to settle the first two.

    settled: the interval of their difference excludes 0; None unless at least two signals have a known gain.
    additional_questions: questions to add, with as many rollouts each; additional_rollouts: rollouts to add to each of
    these questions instead; None where that cannot be determined or cannot suffice. endings: how each question's
    rollouts ended.
    """

    rows: list[dict[str, Any]]
    settled: bool | None
    additional_questions: int | None
    additional_rollouts: int | None
    endings: list[Endings]


def rank(
    questions: Sequence[RankedQuestion],
    temperature: float,
    scores: Scores,
    seed: int,
    undefined: Collection[Source] = (),
) -> Ranking:
    """Rank the signals of some questions; those whose gain is unknown come last, without a rank.

    Args:
        undefined: teachers that cannot be ranked: see `schemas.signals.not_ranked`.
    """
    signals = list(questions[0].signals)
    by_rollout, endings, kept = [], [], dict.fromkeys(signals, Kept())
    for q in questions:  # one by one, as questions may be read lazily
        by_rollout.append(contributions(q, temperature, undefined))
        endings.append(Endings.of(q.rollouts))
        kept = {signal: of_signal.plus(q.signals[signal]) for signal, of_signal in kept.items()}
    tokens = kept[signals[0]].positions
    units, carrying = _units(by_rollout)
    total = units.sum(axis=0)
    point = gains(total)
    replicates = gains(resampled(resample(len(units), scores.bootstrap, seed), units))
    order = np.argsort(-np.nan_to_num(point, nan=-np.inf), kind="stable")
    first, p_best = order[0], shares_of_best(replicates)
    rows: list[dict[str, Any]] = []
    for place, i in enumerate(order.tolist(), 1):
        known = bool(np.isfinite(point[i]))
        tied = bool(rows) and _equal(point[i], rows[-1]["gain"])
        low, high = bootstrap_interval(replicates[:, i], carrying, scores.level)
        deficit = bootstrap_interval(replicates[:, first] - replicates[:, i], carrying, scores.level)
        rows.append(
            {
                "rank": (rows[-1]["rank"] if tied else place) if known else None,
                **signals[i]._asdict(),
                "gain": point[i],
                "gain_low": low,
                "gain_high": high,
                "p_best": p_best[i] if known and carrying >= LEAST_UNITS else np.nan,
                "gain_deficit": point[first] - point[i],
                "gain_deficit_low": deficit[0],
                "gain_deficit_high": deficit[1],
                "d_sq": total[i, _SUMS.index("d_sq")] / tokens,
                "questions": len(questions),
                "carrying": carrying,
                "rollouts": sum(len(c) for c in by_rollout),
                **kept[signals[i]].shares(),
            }
        )
    return Ranking(rows, *_to_settle(by_rollout, carrying, point, replicates, order, scores.level), endings)


def _units(by_rollout: Sequence[Floats]) -> tuple[Floats, int]:
    """The resampled units, [units, signals, len(_SUMS)], and how many of them carry signal.

    Units are questions; if fewer than `LEAST_UNITS` of them carry signal, those that do are split into rollouts.
    """
    column = _SUMS.index("open")
    carrying = [bool(c[:, 0, column].any()) for c in by_rollout]
    if sum(carrying) >= LEAST_UNITS:
        return np.stack([c.sum(axis=0) for c in by_rollout]), sum(carrying)
    units = np.concatenate([c if open_ else c.sum(axis=0)[None] for c, open_ in zip(by_rollout, carrying, strict=True)])
    return units, int((units[:, 0, column] > 0).sum())


def _equal(a: float, b: float) -> bool:
    """True for gains that differ only by rounding, such as those of identical teachers."""
    return bool(np.isclose(a, b, rtol=1e-9, atol=0.0))


def shares_of_best(replicates: Floats) -> Floats:
    """Share of the replicates in which each signal has the largest gain, [b, signals] -> [signals]; ties are split."""
    most = np.max(replicates, axis=1, keepdims=True, initial=-np.inf, where=np.isfinite(replicates))
    is_best = np.isclose(replicates, most, rtol=1e-9, atol=0.0)
    n = is_best.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(is_best, n, out=np.zeros(is_best.shape), where=n > 0).mean(axis=0), dtype=np.float64)


def _to_settle(
    by_rollout: Sequence[Floats], carrying: int, point: Floats, replicates: Floats, order: AnyArray, level: float
) -> tuple[bool | None, int | None, int | None]:
    """Whether the interval of the difference of the first two excludes 0, and if not, how much more data is needed.

    The variance of the difference has a part between rollouts of one question, which shrinks with rollouts, and a part
    between questions, which shrinks only with questions.
    """
    if np.isfinite(point).sum() < 2:
        return None, None, None
    a, b = order[:2]
    if carrying < LEAST_UNITS or _equal(point[a], point[b]):
        return False, None, None
    lead, differences = point[a] - point[b], replicates[:, a] - replicates[:, b]
    if bootstrap_interval(differences, carrying, level)[0] > 0:
        return True, 0, 0
    variance = float(np.nanvar(differences, ddof=1))
    wanted = (lead / critical_value(carrying, level)) ** 2
    scale = np.sqrt(np.sum([c[:, :, 1:].sum(axis=0) for c in by_rollout], axis=0))[:, [0, 2]].prod(axis=1)
    pieces = [c[:, a, 0] / scale[a] - c[:, b, 0] / scale[b] for c in by_rollout]
    within = min(variance, float(sum(len(x) * x.var(ddof=1) for x in pieces if len(x) > 1)))
    questions, rollouts = len(by_rollout), float(np.mean([len(c) for c in by_rollout]))
    room = wanted - (variance - within)
    return False, _more(questions, variance, wanted), _more(rollouts, within, room) if room > 0 else None


def _more(n: float, variance: float, wanted: float) -> int:
    """What to add to n so that a variance proportional to 1/n reaches the wanted one; at least 1."""
    return max(1, int(np.ceil(n * (variance / wanted - 1))))
