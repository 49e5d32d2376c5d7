"""Stage 6: pooled scores with bootstrap intervals, and the tables (statistics of section 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import norm
from scipy.stats import t as student_t

from schemas.arrays import AnyArray
from schemas.config import Grouping, Scores
from schemas.tables import DIFFERENCES, SUMMARY, TOKENS, Column
from tasks.lineage import Signal
from tasks.ragged import Floats, Ints, owners, row_sums

QUESTIONS_TO_RESAMPLE = 5
"""With fewer questions the bootstrap resamples rollouts."""

_SUMS = ("inner", "g_sq", "g_sq_plain", "d_sq", "cosine", "cosines", "nodes")


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

    @property
    def totals(self) -> dict[str, Ints]:
        """Branches, draws and truncated draws of the nodes by round, [N] each."""
        offsets = np.asarray(self.tree["branch_offsets"], dtype=np.int64)
        out = {"branches": np.diff(offsets)}
        for name in ("draws", "truncations"):
            out[name] = row_sums(np.asarray(self.tree[name], dtype=np.float64), offsets).astype(np.int64)
        return out


def tokens_table(
    scored: Sequence[QuestionScores], signals: Sequence[Signal], texts: Mapping[int, str], level: float
) -> pl.DataFrame:
    """One row for node x teacher x loss; columns of `schemas.tables.TOKENS`.

    What several rounds tell of a node is averaged by their weights, so that sums over the rows stay the pooled ones.
    """
    frames = []
    for q in scored:
        node, of = np.unique(q.tree["node"], return_inverse=True)
        rows = _Rows(of, len(node), q.weight, q.totals["draws"])
        token = np.asarray(q.rollouts["tokens"])[node]
        rollout = q.rollout_of_position[node]
        plain = rows.mean(q.ideal["g_sq_plain"])
        g_sq = rows.mean(q.ideal["g_sq"])
        with np.errstate(divide="ignore", invalid="ignore"):
            reliability = np.where(plain > 1e-12, g_sq / plain, np.nan)
        common: dict[str, Any] = {
            "question_id": [q.question_id] * len(node),
            "rollout_id": rollout,
            "position": q.place[node],
            "token_id": token,
            "token": [texts[int(t)] for t in token],
            "correct": np.asarray(q.rollouts["correct"])[rollout],
            "weight": rows.sum(q.weight),
            "student_prob": q.tree["token_prob"][node],
            "entropy": q.tree["entropy"][node],
            "branches": rows.most(q.totals["branches"]),
            "draws": rows.sum(q.totals["draws"]),
            "truncated_draws": rows.sum(q.totals["truncations"]),
            "tail_prob": rows.mean(q.tree["tail_prob"]),
            "reliability": reliability,
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
    return pl.concat(frames) if frames else _frame({name: [] for name in TOKENS}, TOKENS)


class _Rows:
    """What the rows of each node come to; `of` leads from rows to nodes."""

    def __init__(self, of: Ints, nodes: int, weight: Floats, draws: Ints) -> None:
        self._of, self._nodes = of, nodes
        self.first = np.unique(of, return_index=True)[1]
        # a node drawn for its own sake alone has no weight: its rows count by their draws
        self._weight = np.where(self.sum(weight)[of] > 0, weight, draws)

    def sum(self, values: AnyArray) -> AnyArray:
        return np.bincount(self._of, values, self._nodes)

    def most(self, values: AnyArray) -> AnyArray:
        out = np.zeros(self._nodes, dtype=np.int64)
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


def _quantile_bins(group: str, values: Floats, n: int) -> Bins:
    """Bins of as many positions each, labelled by their percentiles; fewer where values tie or are not known."""
    values = values[np.isfinite(values)]
    quantiles = np.quantile(values, np.arange(1, n) / n, method="inverted_cdf")
    edges, last = np.unique(quantiles[::-1], return_index=True)  # of tied edges, the highest percentile
    ranks = (n - 1 - last)[edges > values.min()]
    return Bins(group, edges[edges > values.min()], _percent_labels([0, *(ranks / n), 1]))


def _even_bins(group: str, n: int) -> Bins:
    return Bins(group, np.arange(1, n) / n, _percent_labels([k / n for k in range(n + 1)]))


def _percent_labels(ends: Sequence[float]) -> list[str]:
    texts = [f"{100 * end:.0f}" for end in ends]
    return [f"{a}-{b} %" for a, b in pairwise(texts)]


def bins_for(grouping: Grouping, scored: Sequence[QuestionScores], source: Signal) -> Bins:
    """Bins of a grouping; quantiles are those of all the student's positions."""
    match grouping.by:
        case "outcome":
            return Bins("outcome", np.array([0.5]), ["incorrect", "correct"])
        case "position":
            return _even_bins("position", grouping.bins)
        case "difficulty":
            return _even_bins("difficulty", grouping.bins)
        case "entropy":
            values = [np.asarray(q.tree["entropy"]) for q in scored]
        case "divergence":
            values = [np.asarray(q.distillation[source]["kl"]) for q in scored]
    return _quantile_bins(grouping.by, np.concatenate(values), grouping.bins)


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
    """Sums over each rollout and bin, [R, 1 + all bins, len(_SUMS)]; bin 0 is all positions."""
    rollout, node, w = q.rollout_of_position, q.tree["node"], q.weight
    a, d = q.alignment[signal], np.asarray(q.distillation[signal]["d_sq"], dtype=np.float64)
    plain = np.asarray(a["cosine_plain"], dtype=np.float64)
    by_node = np.stack(
        [
            w * np.asarray(a["inner"]),
            w * np.asarray(q.ideal["g_sq"]),
            w * np.asarray(q.ideal["g_sq_plain"]),
            np.zeros(len(w)) if q.sampled else w * d[node],
            np.nan_to_num(plain),
            np.isfinite(plain).astype(np.float64),
            np.ones(len(w)),
        ],
        axis=1,
    )
    width = 1 + sum(len(b.labels) for b in bins)
    out = np.zeros((len(q.rollouts["correct"]), width, len(_SUMS)))
    first = 1
    for b in [None, *bins]:
        if b is None:
            column = np.zeros(len(rollout), dtype=np.int64)
        else:
            column = first + b.of(_bin_values(b.group, q, signal))
            first += len(b.labels)
        np.add.at(out, (rollout[node], column[node]), by_node)
        if q.sampled:  # every position was scored
            np.add.at(out[:, :, _SUMS.index("d_sq")], (rollout, column), d)
    return out


def pooled(sums: Floats) -> dict[str, Floats]:
    """Scores from sums over units: [..., len(_SUMS)] -> [...] each; NaN where undefined."""
    s = dict(zip(_SUMS, np.moveaxis(sums, -1, 0), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        teaches = s["d_sq"] > 0
        gain = np.where(teaches & (s["nodes"] > 0), s["inner"] / np.sqrt(s["d_sq"]), np.nan)
        known = teaches & (s["g_sq"] > 0)
        return {
            "alignment": np.where(known, s["inner"] / np.sqrt(s["g_sq"] * s["d_sq"]), np.nan),
            "gain": gain,
            "mean_cosine": np.where(s["cosines"] > 0, s["cosine"] / s["cosines"], np.nan),
            "reliability": np.where(s["g_sq_plain"] > 0, s["g_sq"] / s["g_sq_plain"], np.nan),
        }


@dataclass(frozen=True)
class Pool:
    """Pooled scores of every signal with their bootstrap replicates, the same ones for all: differences are paired.

    places: group, bin, lower and upper edge of each column G; total: sums [G, K] by signal; point: [G] and replicates:
    [b, G] by signal and score; carrying: units with a node, [G].
    """

    level: float
    units: int
    places: dict[Signal, list[tuple[str, str, float, float]]]
    total: dict[Signal, Floats]
    questions: dict[Signal, Ints]
    carrying: dict[Signal, Ints]
    point: dict[Signal, dict[str, Floats]]
    replicates: dict[Signal, dict[str, Floats]]

    def resolved(self, signal: Signal, g: int) -> bool:
        """True where the pooled |g|^2 is above 0, in the replicates too."""
        undefined = np.isnan(self.replicates[signal]["alignment"][:, g]).mean()
        told = np.isfinite(self.point[signal]["alignment"][g]) and undefined <= (1 - self.level) / 2
        return bool(told and self.carrying[signal][g] > 1)

    def known(self, signal: Signal, g: int, score: str) -> bool:
        """True where the score is defined and, if it divides by |g|, resolved."""
        defined = bool(np.isfinite(self.point[signal][score][g]))
        return defined and (score != "alignment" or self.resolved(signal, g))


def make_pool(scored: Sequence[QuestionScores], signals: Sequence[Signal], scores: Scores, seed: int) -> Pool:
    """Pool all questions, for every signal and group."""
    units = len(scored) if len(scored) >= QUESTIONS_TO_RESAMPLE else sum(len(q.rollouts["correct"]) for q in scored)
    counts = resample(units, scores.bootstrap, seed)
    pool = Pool(scores.level, units, {}, {}, {}, {}, {}, {})
    for signal in signals:
        bins = [bins_for(g, scored, signal) for g in scores.groupings]
        by_rollout = [sum_rollouts(q, signal, bins) for q in scored]
        by_question = np.stack([s.sum(axis=0) for s in by_rollout])
        by_unit = by_question if units == len(scored) else np.concatenate(by_rollout)
        nodes = _SUMS.index("nodes")
        pool.places[signal] = [("all", "all", np.nan, np.nan), *(place for b in bins for place in b.places())]
        pool.total[signal] = by_question.sum(axis=0)
        pool.questions[signal] = (by_question[:, :, nodes] > 0).sum(axis=0)
        pool.carrying[signal] = (by_unit[:, :, nodes] > 0).sum(axis=0)
        pool.point[signal] = pooled(pool.total[signal])
        pool.replicates[signal] = pooled(np.einsum("bu,ugk->bgk", counts, by_unit))
    return pool


def resample(units: int, replicates: int, seed: int) -> Floats:
    """How often each unit is in each bootstrap replicate, [replicates, units]."""
    rng = np.random.default_rng([seed, 6])
    return rng.multinomial(units, np.full(units, 1 / units), size=replicates).astype(np.float64)


def percentiles(values: Floats, units: int, level: float) -> tuple[float, float]:
    """Bootstrap interval of a score: percentiles, moved out for few units as Student's t and n/(n-1) ask for.

    Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 5.3. Undefined replicates
    are left out.
    """
    finite = values[np.isfinite(values)]
    if units < 2 or not len(finite):
        return np.nan, np.nan
    alpha = float(norm.cdf(np.sqrt(units / (units - 1)) * student_t.ppf((1 - level) / 2, units - 1)))
    low, high = np.quantile(finite, [alpha, 1 - alpha])
    return float(low), float(high)


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
                "reliability": point["reliability"][g],
                "resolved": pool.resolved(signal, g),
                "d_sq": total[g, _SUMS.index("d_sq")],
                "bin_low": bin_low,
                "bin_high": bin_high,
            }
            for name in ("alignment", "gain", "mean_cosine"):
                known = pool.known(signal, g, name)
                low = high = np.nan
                if known and pool.carrying[signal][g] > 1:  # one unit alone says nothing of its spread
                    low, high = percentiles(pool.replicates[signal][name][:, g], pool.units, pool.level)
                row |= {name: point[name][g] if known else np.nan, f"{name}_low": low, f"{name}_high": high}
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
            known = pool.known(a, g, name) and pool.known(b, h, name)
            low = high = np.nan
            if known and min(pool.carrying[a][g], pool.carrying[b][h]) > 1:
                values = pool.replicates[a][name][:, g] - pool.replicates[b][name][:, h]
                low, high = percentiles(values, pool.units, pool.level)
            value = pool.point[a][name][g] - pool.point[b][name][h] if known else np.nan
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
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
