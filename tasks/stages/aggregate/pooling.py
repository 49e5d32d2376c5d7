"""Stage 6: pooled scores with bootstrap intervals, and the tables (statistics of section 7)."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import norm
from scipy.stats import t as student_t

from schemas.arrays import AnyArray
from schemas.config import Grouping, Scores
from schemas.signals import Signal
from schemas.tables import DIFFERENCES, SUMMARY, TOKENS, Column
from tasks.statistics.csr import Floats, Ints, owners, row_sums
from tasks.statistics.estimators import reliability

LEAST_UNITS = 5
"""Units that carry signal, at the least, for an interval: fewer do not tell their own spread. With fewer questions that
do, the bootstrap resamples rollouts."""

_SUMS = ("inner", "g_sq", "g_sq_plain", "d_sq", "cosine", "cosines", "nodes", "open", "rollouts")
"""What is summed: `open` counts nodes whose draws did not all end alike, `rollouts` those with a position there."""


@dataclass(frozen=True)
class QuestionScores:
    """What stage 6 reads of one question: arrays of the earlier stages."""

    question_id: str
    rollouts: Mapping[str, AnyArray]
    tree: Mapping[str, AnyArray]
    ideal: Mapping[str, AnyArray]
    distillation: Mapping[Signal, Mapping[str, AnyArray]]
    alignment: Mapping[Signal, Mapping[str, AnyArray]]
    sampled: bool = True
    """Whether nodes are a sample of all positions, with known probabilities."""

    @classmethod
    def of(
        cls, question: str, signals: Sequence[Signal], read: Callable[..., Mapping[str, AnyArray]], sampled: bool
    ) -> "QuestionScores":
        """Of a question's artefacts; `read` gives those of a stage and, where there are such, of a signal."""
        return cls(
            question,
            read("rollouts"),
            read("trees"),
            read("ideal"),
            {signal: read("distillation", signal) for signal in signals},
            {signal: read("alignment", signal) for signal in signals},
            sampled,
        )

    @property
    def rollout_of_position(self) -> Ints:
        """Rollout of each completion position, [T]."""
        return owners(self.rollouts["offsets"])

    @property
    def place(self) -> Ints:
        """Place of each position within its rollout, [T]."""
        offsets = np.asarray(self.rollouts["offsets"], dtype=np.int64)
        return np.arange(int(offsets[-1])) - offsets[self.rollout_of_position]

    @property
    def weight(self) -> Floats:
        """Share of the round / inclusion probability in it, of the nodes by round, [N]."""
        return np.asarray(self.tree["share"] / self.tree["inclusion"], dtype=np.float64)

    @cached_property
    def open(self) -> npt.NDArray[np.bool_]:
        """Whether the draws of each row's node, of all rounds that count, ended in more than one way, [N].

        Where they did not, as at a node of one branch, nothing is known of any direction.
        """
        _, of = np.unique(self.tree["node"], return_inverse=True)
        counts, totals = self.weight > 0, self.totals
        wins, draws = (np.bincount(of, counts * totals[name])[of] for name in ("successes", "draws"))
        return np.asarray((totals["branches"] > 1) & (wins > 0) & (wins < draws), dtype=np.bool_)

    @property
    def totals(self) -> dict[str, Ints]:
        """Branches, draws, successes and truncated draws of the nodes by round, [N] each."""
        offsets = np.asarray(self.tree["branch_offsets"], dtype=np.int64)
        out = {"branches": np.diff(offsets)}
        for name in ("draws", "successes", "truncations"):
            out[name] = row_sums(np.asarray(self.tree[name], dtype=np.float64), offsets).astype(np.int64)
        return out


Texts = Callable[[Iterable[int]], Mapping[int, str]]
"""Gives the text of token ids."""


def tokens_table(q: QuestionScores, signals: Sequence[Signal], texts: Texts, level: float) -> pl.DataFrame:
    """One row for node x teacher x loss of a question; columns of `schemas.tables.TOKENS`.

    What several rounds tell of a node is averaged by their weights, so that sums over the rows stay the pooled ones.
    """
    rows = _Rows(q)
    node = rows.node
    frames = []
    token = np.asarray(q.rollouts["tokens"])[node]
    text = texts(int(t) for t in token)
    rollout = q.rollout_of_position[node]
    g_sq = rows.mean(q.ideal["g_sq"])
    common: dict[str, Any] = {
        "question_id": [q.question_id] * len(node),
        "rollout_id": rollout,
        "position": q.place[node],
        "token_id": token,
        "token": [text[int(t)] for t in token],
        "correct": np.asarray(q.rollouts["correct"])[rollout],
        "weight": rows.sum(q.weight),
        "student_prob": q.tree["token_prob"][node],
        "entropy": q.tree["entropy"][node],
        "branches": rows.most(q.totals["branches"]),
        "draws": rows.sum(q.totals["draws"]),
        "truncated_draws": rows.sum(q.totals["truncations"]),
        "tail_prob": rows.mean(q.tree["tail_prob"]),
        "reliability": reliability(g_sq, rows.mean(q.ideal["g_sq_plain"])),
        "g_sq": g_sq,
        "value": rows.mean(q.ideal["value"]),
    }
    for signal in signals:
        d, a = q.distillation[signal], q.alignment[signal]
        of_node = {name: np.asarray(values)[rows.first] for name, values in a.items()}
        for name in ("inner", "cosine_plain", "teacher_advantage"):
            of_node[name] = rows.mean(a[name])
        frames.append(
            _frame(
                {
                    **common,
                    **{name: [value] * len(node) for name, value in signal._asdict().items()},
                    **of_node,
                    **{n: d[n][node] for n in ("d_sq", "kl", "js")},
                    "teacher_prob": d["teacher_token_prob"][node],
                    "resolved": of_node["lfsr"] < 1 - level,
                },
                TOKENS,
            )
        )
    return pl.concat(frames)


class _Rows:
    """What the rows of each node come to, a row being a node in one round.

    Attributes:
        node: positions of the nodes, increasing, [n].
        first: the first row of each, [n].
    """

    def __init__(self, q: QuestionScores) -> None:
        self.node, self.first, self._of = np.unique(q.tree["node"], return_index=True, return_inverse=True)
        # a node drawn for its own sake alone has no weight: its rows count by their draws
        self._weight = np.where(self.sum(q.weight)[self._of] > 0, q.weight, q.totals["draws"])

    def sum(self, values: AnyArray) -> AnyArray:
        return np.bincount(self._of, values, len(self.node))

    def most(self, values: AnyArray) -> AnyArray:
        out = np.zeros(len(self.node), dtype=np.int64)
        np.maximum.at(out, self._of, values)
        return out

    def mean(self, values: AnyArray) -> AnyArray:
        known = np.isfinite(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.sum(np.where(known, values, 0.0) * self._weight) / self.sum(known * self._weight)


def _frame(columns: Mapping[str, Any], declared: Mapping[str, Column]) -> pl.DataFrame:
    """A table with exactly the declared columns; NaN becomes null."""
    schema = pl.Schema({name: getattr(pl, column.dtype) for name, column in declared.items()})
    table = pl.DataFrame({name: columns[name] for name in declared}, strict=False)
    return table.cast(schema).with_columns(pl.col(pl.Float64).fill_nan(None))


def frame(rows: Sequence[Mapping[str, Any]], declared: Mapping[str, Column]) -> pl.DataFrame:
    """A table of rows with exactly the declared columns; NaN becomes null."""
    return _frame({name: [row[name] for row in rows] for name in declared}, declared)


@dataclass(frozen=True)
class Bins:
    """Bins of one grouping: edges [n-1] inside the range, and labels [n]."""

    group: str
    edges: Floats
    labels: list[str]

    def of(self, values: Floats) -> Ints:
        """Index of the bin of each value."""
        return np.searchsorted(self.edges, values, side="right")

    def places(self) -> list[tuple[str, str, float, float]]:
        """Group, label, lower and upper edge of each bin."""
        ends = [np.nan, *self.edges.tolist(), np.nan] if self.group != "outcome" else [np.nan] * 3
        return [(self.group, label, ends[i], ends[i + 1]) for i, label in enumerate(self.labels)]


class Histogram:
    """Counts of numbers from 0 up, each cut to its 14 leading bits: quantiles of any amount of them in one pass."""

    _DROPPED = 10  # of the 23 bits of a float32's fraction

    def __init__(self) -> None:
        """Start with none."""
        self._counts = np.zeros(1 << (31 - self._DROPPED), dtype=np.int64)

    def add(self, values: Floats) -> None:
        """Count the values that are known."""
        known = np.maximum(values[np.isfinite(values)], 0.0).astype(np.float32) + np.float32(0)  # no -0
        self._counts += np.bincount(known.view(np.uint32) >> self._DROPPED, minlength=len(self._counts))

    def bins(self, group: str, n: int) -> Bins:
        """Bins of as many values each, labelled by their percentiles; fewer where values tie or are not known."""
        upto = np.cumsum(self._counts)
        if upto[-1] == 0:
            return Bins(group, np.empty(0), _percent_labels([0, 1]))
        ranks = np.arange(1, n)
        cells = np.searchsorted(upto, -(-upto[-1] * ranks // n), side="left")
        cells, first = np.unique(cells, return_index=True)  # of tied edges, the lowest percentile
        above = cells > np.flatnonzero(self._counts)[0]
        edges = (cells[above].astype(np.uint32) << self._DROPPED).view(np.float32).astype(np.float64)
        return Bins(group, edges, _percent_labels([0, *(ranks[first][above] / n), 1]))


def _even_bins(group: str, n: int) -> Bins:
    return Bins(group, np.arange(1, n) / n, _percent_labels([k / n for k in range(n + 1)]))


def _percent_labels(ends: Sequence[float]) -> list[str]:
    texts = [f"{100 * end:.0f}" for end in ends]
    return [f"{a}-{b} %" for a, b in pairwise(texts)]


def all_bins(
    groupings: Sequence[Grouping], scored: Iterable[QuestionScores], signals: Sequence[Signal]
) -> dict[Signal, list[Bins]]:
    """Bins of every grouping for every signal; quantiles are those of all the student's positions."""
    by = {grouping.by for grouping in groupings}
    entropy, divergence = Histogram(), {signal[:2]: Histogram() for signal in signals}
    one_of_source = {signal[:2]: signal for signal in signals}
    for q in scored if by & {"entropy", "divergence"} else ():
        if "entropy" in by:
            entropy.add(np.asarray(q.tree["entropy"]))
        if "divergence" in by:
            for source, signal in one_of_source.items():
                divergence[source].add(np.asarray(q.distillation[signal]["kl"]))

    def of(grouping: Grouping, signal: Signal) -> Bins:
        match grouping.by:
            case "outcome":
                return Bins("outcome", np.array([0.5]), ["incorrect", "correct"])
            case "position" | "difficulty":
                return _even_bins(grouping.by, grouping.bins)
            case "entropy":
                return entropy.bins("entropy", grouping.bins)
            case "divergence":
                return divergence[signal[:2]].bins("divergence", grouping.bins)

    return {signal: [of(grouping, signal) for grouping in groupings] for signal in signals}


def _bin_values(by: str, q: QuestionScores, signal: Signal) -> Floats:
    """What each position of a question is binned by, [T]."""
    correct = np.asarray(q.rollouts["correct"], dtype=np.float64)
    match by:
        case "outcome":
            return correct[q.rollout_of_position]
        case "position":
            lengths = np.diff(np.asarray(q.rollouts["offsets"], dtype=np.int64))
            return q.place / lengths[q.rollout_of_position]
        case "difficulty":
            # the last bin holds its upper end
            return np.full(len(q.rollout_of_position), min(float(correct.mean()), 1 - 1e-9))
        case "entropy":
            return np.asarray(q.tree["entropy"], dtype=np.float64)
        case _:
            return np.asarray(q.distillation[signal]["kl"], dtype=np.float64)


def sum_rollouts(q: QuestionScores, signal: Signal, bins: Sequence[Bins]) -> Floats:
    """Sums over each rollout and bin, [R, 1 + all bins, len(_SUMS)]; bin 0 is all positions.

    A node that several rounds drew counts once, one that was drawn for its own sake alone not at all.
    """
    a, d = q.alignment[signal], np.asarray(q.distillation[signal]["d_sq"], dtype=np.float64)
    rows, w = _Rows(q), q.weight
    counts = rows.sum(w) > 0
    node = rows.node[counts]
    cosine = rows.mean(np.asarray(a["cosine_plain"], dtype=np.float64))
    by_node = np.stack(
        [
            rows.sum(w * np.asarray(a["inner"])),
            rows.sum(w * np.asarray(q.ideal["g_sq"])),
            rows.sum(w * np.asarray(q.ideal["g_sq_plain"])),
            np.zeros(len(counts)) if q.sampled else rows.sum(w) * d[rows.node],
            np.nan_to_num(cosine),
            np.isfinite(cosine),
            np.ones(len(counts)),
            q.open[rows.first],
            np.zeros(len(counts)),
        ],
        axis=1,
    )[counts]
    rollout = q.rollout_of_position
    width, rollouts = 1 + sum(len(b.labels) for b in bins), len(q.rollouts["correct"])
    out = np.zeros((rollouts, width, len(_SUMS)))
    first = 1
    for b in [None, *bins]:
        cell, known = rollout * width, np.ones(len(rollout), dtype=bool)
        if b is not None:
            values = _bin_values(b.group, q, signal)
            cell, known = cell + first + b.of(values), np.isfinite(values)
            first += len(b.labels)
        np.add.at(out.reshape(-1, len(_SUMS)), cell[node], by_node)
        if q.sampled:  # every position was scored
            out[:, :, _SUMS.index("d_sq")] += np.bincount(cell, d, rollouts * width).reshape(rollouts, width)
        there = np.bincount(cell[known], minlength=rollouts * width).reshape(rollouts, width) > 0
        out[..., _SUMS.index("rollouts")] += there
    return out


def pooled(sums: Floats) -> dict[str, Floats]:
    """Scores from sums over units: [..., len(_SUMS)] -> [...] each; NaN where undefined.

    Where all draws of every node ended alike nothing is known of any direction, so no score is 0 there.
    """
    s = dict(zip(_SUMS, np.moveaxis(sums, -1, 0), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        told = (s["d_sq"] > 0) & (s["open"] > 0)
        return {
            "alignment": np.where(told & (s["g_sq"] > 0), s["inner"] / np.sqrt(s["g_sq"] * s["d_sq"]), np.nan),
            "gain": np.where(told, gain(s["inner"], s["d_sq"], s["rollouts"]), np.nan),
            "mean_cosine": np.where(s["cosines"] > 0, s["cosine"] / s["cosines"], np.nan),
            "reliability": reliability(s["g_sq"], s["g_sq_plain"]),
        }


def gain(inner: Floats, d_sq: Floats, rollouts: Floats) -> Floats:
    """Success probability gained a rollout, to first order, for a step of unit length (root mean square) a rollout.

    Statistics of section 7. NaN where |d| is 0.

    Args:
        inner, d_sq: sums of <g, d> and |d|^2 over rollouts, [...].
        rollouts: how many, [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(d_sq > 0, inner / np.sqrt(rollouts * d_sq), np.nan)


@dataclass(frozen=True)
class Pool:
    """Pooled scores of every signal with their bootstrap replicates, the same ones for all: differences are paired.

    places: group, bin, lower and upper edge of each column G; total: sums [G, K] by signal; point: [G] and replicates:
    [b, G] by signal and score; questions: with a node there, [G]; carrying: units that carry signal there, questions
    or, of a few, rollouts, [G]; units: the questions whose rollouts are units there, [G].
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
        told = np.isfinite(self.point[signal]["alignment"][g]) and undefined <= (1 - self.level) / 2
        return bool(told and self.carrying[signal][g] >= LEAST_UNITS)

    def known(self, signal: Signal, g: int, score: str) -> bool:
        """True where the score is defined and, if it divides by |g|, resolved."""
        defined = bool(np.isfinite(self.point[signal][score][g]))
        return defined and (score != "alignment" or self.resolved(signal, g))

    def estimate(self, signal: Signal, g: int, score: str) -> tuple[float, float, float]:
        """A score and the ends of its interval; NaN where not known."""
        if not self.known(signal, g, score):
            return np.nan, np.nan, np.nan
        replicates = self.replicates[signal][score][:, g]
        interval = bootstrap_interval(replicates, int(self.carrying[signal][g]), self.level)
        return float(self.point[signal][score][g]), *interval

    def difference(self, a: Signal, g: int, b: Signal, h: int, score: str) -> tuple[float, float, float]:
        """A score of one signal and group less that of another, with a paired interval; NaN where one is not known.

        Groups that have other units are not paired: their difference has no interval.
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
    """What pooled scores are made from, of questions added one by one: little of each is kept.

    The units of a group are questions; where fewer than `LEAST_UNITS` of them carry signal there, the rollouts of those
    that do, beside the other questions. Where so few do in the whole run, all groups have the same units.
    """

    def __init__(self, bins: Mapping[Signal, Sequence[Bins]]) -> None:
        """Start with none."""
        self._bins = bins
        self._questions: dict[Signal, list[Floats]] = {signal: [] for signal in bins}
        self._rollouts: dict[Signal, list[dict[int, Floats]]] = {signal: [] for signal in bins}
        self._carrying: dict[Signal, Ints] = {}

    def add(self, q: QuestionScores) -> None:
        """Add a question under every signal."""
        for signal, bins in self._bins.items():
            sums, number = sum_rollouts(q, signal, bins), len(self._questions[signal])
            self._questions[signal].append(sums.sum(axis=0))
            carries = sums[:, :, _SUMS.index("open")].sum(axis=0) > 0
            before = self._carrying.get(signal, np.zeros(len(carries), dtype=np.int64))
            self._carrying[signal] = carrying = before + carries
            kept = self._rollouts[signal] = self._rollouts[signal] or [{} for _ in carries]
            for g, of_group in enumerate(kept):
                if carries[0]:
                    of_group[number] = sums[:, g]
                if carrying[g] >= LEAST_UNITS:
                    of_group.clear()
                elif carrying[0] >= LEAST_UNITS:
                    for n in [n for n, rows in of_group.items() if not rows[:, _SUMS.index("open")].any()]:
                        del of_group[n]

    def pool(self, scores: Scores, seed: int) -> Pool:
        """Pool what was added."""
        pool = Pool(scores.level, {}, {}, {}, {}, {}, {}, {})
        counts: dict[tuple[int, ...], Floats] = {}  # by which questions lend their rollouts: the same for all signals
        for signal, bins in self._bins.items():
            questions = np.stack(self._questions[signal])
            pool.places[signal] = [("all", "all", np.nan, np.nan), *(place for b in bins for place in b.places())]
            pool.total[signal] = questions.sum(axis=0)
            pool.questions[signal] = (questions[:, :, _SUMS.index("nodes")] > 0).sum(axis=0)
            pool.point[signal] = pooled(pool.total[signal])
            pool.units[signal] = [tuple(kept) for kept in self._rollouts[signal]]
            carrying, replicates = [], []
            for g, kept in enumerate(self._rollouts[signal]):
                units = np.concatenate([kept.get(n, whole[None, g]) for n, whole in enumerate(questions)])
                carrying.append(int((units[:, _SUMS.index("open")] > 0).sum()))
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


def resample(units: int, replicates: int, seed: int) -> Floats:
    """How often each unit is in each bootstrap replicate, [replicates, units]."""
    rng = np.random.default_rng([seed, 6])
    return rng.multinomial(units, np.full(units, 1 / units), size=replicates).astype(np.float64)


def resampled(counts: Floats, sums: Floats) -> Floats:
    """Sums over the units of each replicate: [b, units] x [units, ...] -> [b, ...]."""
    return np.asarray(np.tensordot(counts, sums, axes=1), dtype=np.float64)


def bootstrap_interval(values: Floats, units: int, level: float) -> tuple[float, float]:
    """Bootstrap interval of a score: percentiles, moved out for few units as Student's t and n/(n-1) ask for.

    Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 5.3. The replicates of few units have
    shorter tails than Student's t, so an end is never nearer than t puts it from their middle, the standard deviation
    read there from the quantiles of either side. Undefined replicates are left out.

    Args:
        values: replicates.
        units: those resampled that carry signal; the others only dilute it. NaN below `LEAST_UNITS`.
    """
    finite = values[np.isfinite(values)]
    if units < LEAST_UNITS or not len(finite):
        return np.nan, np.nan
    c = critical_value(units, level)
    shares = norm.cdf([-c, -1, 0, 1, c])
    low, below, middle, above, high = (float(q) for q in np.quantile(finite, shares))
    return min(low, middle - c * (middle - below)), max(high, middle + c * (above - middle))


def critical_value(units: int, level: float) -> float:
    """Standard deviations of the replicates from their middle to either end of an interval."""
    return float(np.sqrt(units / (units - 1)) * student_t.ppf((1 + level) / 2, units - 1))


def summary_table(pool: Pool) -> pl.DataFrame:
    """One row for group x teacher x loss; columns of `schemas.tables.SUMMARY`."""
    rows: list[dict[str, Any]] = []
    for signal, places in pool.places.items():
        total, point = pool.total[signal], pool.point[signal]
        for g, (group, label, bin_low, bin_high) in enumerate(places):
            nodes = int(total[g, _SUMS.index("nodes")])
            if nodes == 0:
                continue
            row: dict[str, Any] = {
                "group": group,
                "bin": label,
                **signal._asdict(),
                "nodes": nodes,
                "questions": int(pool.questions[signal][g]),
                "carrying": int(pool.carrying[signal][g]),
                "reliability": point["reliability"][g],
                "resolved": pool.resolved(signal, g),
                "d_sq": total[g, _SUMS.index("d_sq")],
                "bin_low": bin_low,
                "bin_high": bin_high,
            }
            for name in ("alignment", "gain", "mean_cosine"):
                row |= zip((name, f"{name}_low", f"{name}_high"), pool.estimate(signal, g, name), strict=True)
            rows.append(row)
    return frame(rows, SUMMARY)


def differences_table(pool: Pool) -> pl.DataFrame:
    """Differences of pooled scores with intervals; columns of `schemas.tables.DIFFERENCES`.

    Of each signal: correct less incorrect rollouts, and the last bin less the first of every other grouping. Over all
    rollouts: every signal less every later one.
    """
    pairs: list[tuple[Signal, int, Signal, int]] = []
    for signal, places in pool.places.items():
        for group in dict.fromkeys(place[0] for place in places if place[0] != "all"):
            there = [g for g, place in enumerate(places) if place[0] == group and pool.carrying[signal][g] > 0]
            if len(there) > 1:
                pairs.append((signal, there[-1], signal, there[0]))
    pairs += [(a, 0, b, 0) for a, b in combinations(pool.places, 2)]
    rows = []
    for a, g, b, h in pairs:
        group, label = pool.places[a][g][:2]
        row: dict[str, Any] = {"group": group, "bin": label, **a._asdict(), "other_bin": pool.places[b][h][1]}
        row |= {f"other_{name}": value for name, value in b._asdict().items()}
        for name in ("alignment", "gain"):
            row |= zip((name, f"{name}_low", f"{name}_high"), pool.difference(a, g, b, h, name), strict=True)
        rows.append(row)
    return frame(rows, DIFFERENCES)


def headline(summary: pl.DataFrame) -> list[dict[str, Any]]:
    """A row for each signal: its name, and its rows of the summary for all, correct and incorrect rollouts."""
    wanted = summary.filter(pl.col("group").is_in(["all", "outcome"]))
    rows = []
    for signal, part in wanted.group_by(["teacher", "context", "loss"], maintain_order=True):
        found = {row["bin"]: row for row in part.iter_rows(named=True)}
        names = Signal(*map(str, signal))._asdict()
        rows.append({**names, **{name: found.get(name) for name in ("all", "correct", "incorrect")}})
    return rows
