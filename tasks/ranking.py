"""Teachers, contexts and losses ranked from on-policy rollouts alone (statistics of section 9).

Every token of a rollout is a draw at its own node: sum_t (R - b) (d_{y_t} - dbar_t) has the expectation of the pooled
<g, d>, b the mean outcome of the question's other rollouts. |d| is exact, and |g| common to all signals, so gains rank
them as alignments do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import norm

from schemas.arrays import AnyArray
from schemas.config import Scores
from tasks.aggregate import QUESTIONS_TO_RESAMPLE, percentiles, resample, resampled
from tasks.lineage import Signal
from tasks.ragged import Floats, row_sums


@dataclass(frozen=True)
class RankedQuestion:
    """What a ranking reads of one question: rollouts, `d_sq` and `d_token` of every signal, values along rollouts."""

    rollouts: Mapping[str, AnyArray]
    signals: Mapping[Signal, Mapping[str, AnyArray]]
    values: Mapping[str, AnyArray] | None = None


def advantages(correct: AnyArray) -> Floats:
    """R - b of each rollout, b the mean of the others, [R]; 0 for a single one, which tells nothing."""
    n, wins = len(correct), np.asarray(correct, dtype=np.float64)
    return wins - (wins.sum() - wins) / (n - 1) if n > 1 else np.zeros(1)


def token_advantages(q: RankedQuestion) -> Floats:
    """The advantage of every token, [T]: the value at the end of its segment less that at its start.

    The first segment starts at the mean of the other rollouts, the last one ends with the outcome. Whatever the noise
    of the values, that at the end is unbiased and that at the start knows nothing of the segment's tokens.
    """
    offsets, correct = np.asarray(q.rollouts["offsets"], dtype=np.int64), np.asarray(q.rollouts["correct"])
    starts = correct - advantages(correct)
    if q.values is None:
        return np.repeat(correct - starts, np.diff(offsets))
    ends = np.asarray(q.values["boundary"], dtype=np.int64)
    value = np.asarray(q.values["successes"] / q.values["draws"], dtype=np.float64)
    out = np.empty(int(offsets[-1]))
    for r, (first, last) in enumerate(pairwise(offsets.tolist())):
        inside = (ends > first) & (ends < last)
        steps = np.diff([starts[r], *value[inside], float(correct[r])])
        out[first:last] = np.repeat(steps, np.diff([first, *ends[inside], last]))
    return out


def contributions(q: RankedQuestion, temperature: float) -> Floats:
    """Unbiased pieces of <g, d>, and |d|^2, of each rollout by signal: [R, signals, 2]."""
    offsets = np.asarray(q.rollouts["offsets"], dtype=np.int64)
    advantage = token_advantages(q) / temperature
    out = []
    for arrays in q.signals.values():
        leads = row_sums(advantage * np.asarray(arrays["d_token"]), offsets)
        out.append(np.stack([leads, row_sums(np.asarray(arrays["d_sq"]), offsets)], axis=1))
    return np.stack(out, axis=1)


def gains(sums: Floats) -> Floats:
    """sum <g, d> / sqrt(sum |d|^2): [..., 2] -> [...]; NaN where |d| is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / np.sqrt(sums[..., 1]), np.nan)


@dataclass(frozen=True)
class Ranking:
    """Signals by gain: rows of `schemas.tables.RANKS`, and what it would take to settle the first two.

    settled: their difference's interval leaves 0 out. more_questions: questions to add, with as many rollouts each;
    more_rollouts: rollouts to add to each of these questions instead, None where that cannot be enough.
    """

    rows: list[dict[str, Any]]
    settled: bool | None
    more_questions: int | None
    more_rollouts: int | None


def rank(questions: Sequence[RankedQuestion], temperature: float, scores: Scores, seed: int) -> Ranking:
    """Rank the signals of some questions; those without a direction come last, without a rank's numbers."""
    signals = list(questions[0].signals)
    by_rollout, tokens = [], 0
    for q in questions:  # one by one: each may be read when it is looked at
        by_rollout.append(contributions(q, temperature))
        tokens += int(q.rollouts["offsets"][-1])
    units = np.stack([c.sum(axis=0) for c in by_rollout])
    if len(units) < QUESTIONS_TO_RESAMPLE:
        units = np.concatenate(by_rollout)
    total = units.sum(axis=0)
    point = gains(total)
    replicates = gains(resampled(resample(len(units), scores.bootstrap, seed), units))
    order = np.argsort(-np.nan_to_num(point, nan=-np.inf), kind="stable")
    first = order[0]
    leads = np.nanargmax(np.where(np.isfinite(replicates), replicates, -np.inf), axis=1)
    rollouts = sum(len(c) for c in by_rollout)
    rows = []
    for place, i in enumerate(order.tolist(), 1):
        known = bool(np.isfinite(point[i]))
        low, high = percentiles(replicates[:, i], len(units), scores.level)
        behind = percentiles(replicates[:, first] - replicates[:, i], len(units), scores.level)
        rows.append(
            {
                "rank": place if known else None,
                **signals[i]._asdict(),
                "gain": point[i],
                "gain_low": low,
                "gain_high": high,
                "p_best": float((leads == i).mean()) if known else np.nan,
                "behind": point[first] - point[i],
                "behind_low": behind[0],
                "behind_high": behind[1],
                "d_sq": total[i, 1] / tokens,
                "questions": len(questions),
                "rollouts": rollouts,
            }
        )
    return Ranking(rows, *_to_settle(by_rollout, point, replicates, order, scores.level))


def _to_settle(
    by_rollout: Sequence[Floats], point: Floats, replicates: Floats, order: AnyArray, level: float
) -> tuple[bool | None, int | None, int | None]:
    """Whether the first two are told apart, and if not, what more it would take.

    The variance of their difference is that between rollouts of one question, which falls with rollouts, and that
    between questions, which falls with questions alone.
    """
    if np.isfinite(point).sum() < 2:
        return None, None, None
    a, b = order[:2]
    lead = point[a] - point[b]
    variance = float(np.nanvar(replicates[:, a] - replicates[:, b], ddof=1))
    wanted = (lead / norm.ppf((1 + level) / 2)) ** 2
    if variance <= wanted:
        return True, 0, 0
    if wanted <= 0:
        return False, None, None
    scale = np.sqrt(np.sum([c[:, :, 1].sum(axis=0) for c in by_rollout], axis=0))
    pieces = [c[:, a, 0] / scale[a] - c[:, b, 0] / scale[b] for c in by_rollout]
    within = min(variance, float(sum(len(x) * x.var(ddof=1) for x in pieces if len(x) > 1)))
    questions, rollouts = len(by_rollout), np.mean([len(c) for c in by_rollout])
    more_questions = int(np.ceil(questions * (variance / wanted - 1)))
    room = wanted - (variance - within)
    return False, more_questions, int(np.ceil(rollouts * (within / room - 1))) if room > 0 else None
