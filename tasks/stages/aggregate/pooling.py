"""Pooled scores of groups of nodes, with bootstrap intervals (statistics of section 7)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.config import Scores
from schemas.signals import Signal
from tasks.stages.aggregate.groups import GROUPINGS, all_bins
from tasks.stages.aggregate.questions import NodeRows, QuestionScores
from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, resample, resampled
from tasks.statistics.csr import Floats, Ints
from tasks.statistics.estimators import reliability
from tasks.statistics.quantiles import Bins

SUMS = ("inner", "g_sq", "g_sq_plain", "d_sq", "cosine", "cosines", "nodes", "open", "rollouts")
"""The summed quantities: `open` counts nodes with differing outcomes, `rollouts` those with a position in the group."""


def sum_rollouts(q: QuestionScores, signal: Signal, bins: Sequence[Bins]) -> Floats:
    """Sums over each rollout and bin, [R, 1 + all bins, len(SUMS)]; bin 0 is all positions.

    A node sampled in several rounds counts once; one sampled only in focused rounds does not count.
    """
    a, d = q.alignment[signal], np.asarray(q.distillation[signal]["d_sq"], dtype=np.float64)
    everywhere = q.sampled and not q.needs_draws(signal)  # |d| is known at every position
    rows, w = NodeRows(q), q.weight
    counts = rows.sum(w) > 0
    node = rows.node[counts]
    cosine = rows.mean(np.asarray(a["cosine_plain"], dtype=np.float64))
    columns = {
        "inner": rows.sum(w * np.asarray(a["inner"])),
        "g_sq": rows.sum(w * np.asarray(q.ideal["g_sq"])),
        "g_sq_plain": rows.sum(w * np.asarray(q.ideal["g_sq_plain"])),
        "d_sq": np.zeros(len(counts)) if everywhere else rows.sum(w * np.asarray(a["d_sq"])),
        "cosine": np.nan_to_num(cosine),
        "cosines": np.isfinite(cosine),
        "nodes": np.ones(len(counts)),
        "open": q.open[rows.first],
        "rollouts": np.zeros(len(counts)),
    }
    by_node = np.stack([columns[name] for name in SUMS], axis=1)[counts]
    rollout = q.rollout_of_position
    width, rollouts = 1 + sum(len(b.labels) for b in bins), len(q.rollouts["correct"])
    out = np.zeros((rollouts, width, len(SUMS)))
    first = 1
    for b in [None, *bins]:
        cell, known = rollout * width, np.ones(len(rollout), dtype=bool)
        if b is not None:
            values = GROUPINGS[b.group].values(q, signal)
            cell, known = cell + first + b.of(values), np.isfinite(values)
            first += len(b.labels)
        np.add.at(out.reshape(-1, len(SUMS)), cell[node][known[node]], by_node[known[node]])
        if everywhere:
            of_bin = np.bincount(cell[known], d[known], rollouts * width)
            out[:, :, SUMS.index("d_sq")] += of_bin.reshape(rollouts, width)
        present = np.bincount(cell[known], minlength=rollouts * width).reshape(rollouts, width) > 0
        out[..., SUMS.index("rollouts")] += present
    return out


def pooled(sums: Floats) -> dict[str, Floats]:
    """Scores from sums over units: [..., len(SUMS)] -> [...] each; NaN where undefined.

    Where all draws of every node have the same outcome, no direction is known, so scores are NaN there, not 0.
    """
    s = dict(zip(SUMS, np.moveaxis(sums, -1, 0), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        informative = (s["d_sq"] > 0) & (s["open"] > 0)
        return {
            "alignment": np.where(informative & (s["g_sq"] > 0), s["inner"] / np.sqrt(s["g_sq"] * s["d_sq"]), np.nan),
            "gain": np.where(informative, gain(s["inner"], s["d_sq"], s["rollouts"]), np.nan),
            "mean_cosine": np.where(s["cosines"] > 0, s["cosine"] / s["cosines"], np.nan),
            "reliability": reliability(s["g_sq"], s["g_sq_plain"]),
        }


def gain(inner: Floats, d_sq: Floats, rollouts: Floats) -> Floats:
    """Success probability gained per rollout, to first order, by a step of unit length (root mean square) per rollout.

    Statistics of section 7. NaN where |d| is 0.

    Args:
        inner, d_sq: sums of <g, d> and |d|^2 over rollouts, [...].
        rollouts: number of rollouts, [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(d_sq > 0, inner / np.sqrt(rollouts * d_sq), np.nan)


@dataclass(frozen=True)
class Pool:
    """Pooled scores of every signal with their bootstrap replicates, shared by all: differences are paired.

    places: group, bin, lower and upper edge of each column G; total: sums [G, K] by signal; point: [G] and replicates:
    [b, G] by signal and score; questions: number with a node in the group, [G]; carrying: number of
    units that carry signal in the group, questions or, if few, rollouts, [G]; units: the questions that are split into
    rollouts in the group, [G].
    """

    level: float
    places: dict[Signal, list[tuple[str, str, float, float]]]
    total: dict[Signal, Floats]
    questions: dict[Signal, Ints]
    carrying: dict[Signal, Ints]
    units: dict[Signal, list[tuple[int, ...]]]
    point: dict[Signal, dict[str, Floats]]
    replicates: dict[Signal, dict[str, Floats]]

    def resolved(self, signal: Signal, g: int) -> bool:
        """True where the pooled |g|^2 is above 0, in the replicates too."""
        undefined = np.isnan(self.replicates[signal]["alignment"][:, g]).mean()
        defined = np.isfinite(self.point[signal]["alignment"][g]) and undefined <= (1 - self.level) / 2
        return bool(defined and self.carrying[signal][g] >= LEAST_UNITS)

    def known(self, signal: Signal, g: int, score: str) -> bool:
        """True where the score is defined and, if it divides by |g|, resolved."""
        defined = bool(np.isfinite(self.point[signal][score][g]))
        return defined and (score != "alignment" or self.resolved(signal, g))

    def estimate(self, signal: Signal, g: int, score: str) -> tuple[float, float, float]:
        """A score and the ends of its interval; NaN if not known."""
        if not self.known(signal, g, score):
            return np.nan, np.nan, np.nan
        replicates = self.replicates[signal][score][:, g]
        interval = bootstrap_interval(replicates, int(self.carrying[signal][g]), self.level)
        return float(self.point[signal][score][g]), *interval

    def difference(self, a: Signal, g: int, b: Signal, h: int, score: str) -> tuple[float, float, float]:
        """A score of one signal and group minus that of another, with a paired interval; NaN if one is not known.

        Groups with different units are not paired: their difference has no interval.
        """
        if not (self.known(a, g, score) and self.known(b, h, score)):
            return np.nan, np.nan, np.nan
        value = float(self.point[a][score][g] - self.point[b][score][h])
        if self.units[a][g] != self.units[b][h]:
            return value, np.nan, np.nan
        replicates = self.replicates[a][score][:, g] - self.replicates[b][score][:, h]
        units = min(int(self.carrying[a][g]), int(self.carrying[b][h]))
        return value, *bootstrap_interval(replicates, units, self.level)


class Sums:
    """Accumulates the sums that pooled scores are made from, question by question, in little memory.

    The units of a group are questions; if fewer than `LEAST_UNITS` of them carry signal in the group, those that do are
    split into rollouts. If that is so over the whole run, all groups have the same units.
    """

    def __init__(self, bins: Mapping[Signal, Sequence[Bins]]) -> None:
        """Start empty."""
        self._bins = bins
        self._questions: dict[Signal, list[Floats]] = {signal: [] for signal in bins}
        self._rollouts: dict[Signal, list[dict[int, Floats]]] = {signal: [] for signal in bins}
        self._carrying: dict[Signal, Ints] = {}

    def add(self, q: QuestionScores) -> None:
        """Add a question under every signal."""
        for signal, bins in self._bins.items():
            sums, number = sum_rollouts(q, signal, bins), len(self._questions[signal])
            self._questions[signal].append(sums.sum(axis=0))
            carries = sums[:, :, SUMS.index("open")].sum(axis=0) > 0
            before = self._carrying.get(signal, np.zeros(len(carries), dtype=np.int64))
            self._carrying[signal] = carrying = before + carries
            kept = self._rollouts[signal] = self._rollouts[signal] or [{} for _ in carries]
            for g, of_group in enumerate(kept):
                if carries[0]:
                    of_group[number] = sums[:, g]
                if carrying[g] >= LEAST_UNITS:
                    of_group.clear()
                elif carrying[0] >= LEAST_UNITS:
                    for n in [n for n, rows in of_group.items() if not rows[:, SUMS.index("open")].any()]:
                        del of_group[n]

    def by_question(self) -> dict[Signal, Floats]:
        """Sums over all positions of every added question, [Q, len(SUMS)], by signal."""
        return {signal: np.stack([sums[0] for sums in of]) for signal, of in self._questions.items()}

    def pool(self, scores: Scores, seed: int) -> Pool:
        """Pool the added questions."""
        pool = Pool(scores.level, {}, {}, {}, {}, {}, {}, {})
        counts: dict[tuple[int, ...], Floats] = {}  # by questions split into rollouts; shared by all signals
        for signal, bins in self._bins.items():
            questions = np.stack(self._questions[signal])
            pool.places[signal] = [("all", "all", np.nan, np.nan), *(place for b in bins for place in b.places())]
            pool.total[signal] = questions.sum(axis=0)
            pool.questions[signal] = (questions[:, :, SUMS.index("nodes")] > 0).sum(axis=0)
            pool.point[signal] = pooled(pool.total[signal])
            pool.units[signal] = [tuple(kept) for kept in self._rollouts[signal]]
            carrying, replicates = [], []
            for g, kept in enumerate(self._rollouts[signal]):
                units = np.concatenate([kept.get(n, whole[None, g]) for n, whole in enumerate(questions)])
                carrying.append(int((units[:, SUMS.index("open")] > 0).sum()))
                if tuple(kept) not in counts:
                    counts[tuple(kept)] = resample(len(units), scores.bootstrap, seed)
                replicates.append(pooled(resampled(counts[tuple(kept)], units)))
            pool.carrying[signal] = np.array(carrying)
            pool.replicates[signal] = {name: np.stack([r[name] for r in replicates], axis=-1) for name in replicates[0]}
        return pool


def make_pool(scored: Collection[QuestionScores], signals: Sequence[Signal], scores: Scores, seed: int) -> Pool:
    """Pool all questions, for every signal and group."""
    sums = Sums(all_bins(scores.groupings, scored, signals))
    for q in scored:
        sums.add(q)
    return sums.pool(scores, seed)
