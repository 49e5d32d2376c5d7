"""Stage 6: pooled scores with bootstrap intervals, and the tables (statistics of section 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from schemas.arrays import AnyArray
from schemas.config import Grouping, Scores
from schemas.tables import SUMMARY, TOKENS, Column
from tasks.lineage import Signal
from tasks.ragged import Floats, Ints, owners

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
        """1 / inclusion probability of the nodes, [N]."""
        return 1.0 / np.asarray(self.tree["inclusion"], dtype=np.float64)


def tokens_table(
    scored: Sequence[QuestionScores], signals: Sequence[Signal], texts: Mapping[int, str], level: float
) -> pl.DataFrame:
    """One row for node x teacher x loss; columns of `schemas.tables.TOKENS`."""
    frames = []
    for q in scored:
        node = q.tree["node"]
        token = np.asarray(q.rollouts["tokens"])[node]
        rollout = q.rollout_of_position[node]
        rows = np.diff(q.tree["branch_offsets"])
        starts = q.tree["branch_offsets"][:-1]
        common: dict[str, Any] = {
            "question_id": [q.question_id] * len(node),
            "rollout_id": rollout,
            "position": q.place[node],
            "token_id": token,
            "token": [texts[int(t)] for t in token],
            "correct": np.asarray(q.rollouts["correct"])[rollout],
            "weight": q.weight,
            "student_prob": q.tree["token_prob"][node],
            "entropy": q.tree["entropy"][node],
            "branches": rows,
            "draws": _row_totals(q.tree["draws"], starts),
            "truncated_draws": _row_totals(q.tree["truncations"], starts),
            "tail_prob": q.tree["tail_prob"],
            "reliability": q.ideal["reliability"],
            "g_sq": q.ideal["g_sq"],
            "value": q.ideal["value"],
        }
        for signal in signals:
            d, a = q.distillation[signal], q.alignment[signal]
            tail = (1 - level) / 2
            p_positive = np.asarray(a["p_positive"])
            frames.append(
                _frame(
                    {
                        **common,
                        **{name: [value] * len(node) for name, value in signal._asdict().items()},
                        **{n: a[n] for n in a},
                        **{n: d[n][node] for n in ("d_sq", "kl", "js")},
                        "teacher_prob": d["teacher_token_prob"][node],
                        "resolved": (p_positive <= tail) | (p_positive >= 1 - tail),
                    },
                    TOKENS,
                )
            )
    return pl.concat(frames) if frames else _frame({name: [] for name in TOKENS}, TOKENS)


def _row_totals(values: AnyArray, starts: AnyArray) -> AnyArray:
    return np.add.reduceat(values, starts) if len(starts) else np.empty(0, dtype=np.int64)


def _frame(columns: Mapping[str, Any], declared: Mapping[str, Column]) -> pl.DataFrame:
    """A table with exactly the declared columns; NaN becomes null."""
    schema = pl.Schema({name: getattr(pl, column.dtype) for name, column in declared.items()})
    frame = pl.DataFrame({name: columns[name] for name in declared}, strict=False)
    return frame.cast(schema).with_columns(pl.col(pl.Float64).fill_nan(None))


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
    """Bins of as many positions each, labelled by their percentiles; fewer where values tie."""
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
            np.zeros(len(w)),
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


def summary_table(
    scored: Sequence[QuestionScores], signals: Sequence[Signal], scores: Scores, seed: int
) -> pl.DataFrame:
    """One row for group x teacher x loss; columns of `schemas.tables.SUMMARY`."""
    rows: list[dict[str, Any]] = []
    units = len(scored) if len(scored) >= QUESTIONS_TO_RESAMPLE else sum(len(q.rollouts["correct"]) for q in scored)
    rng = np.random.default_rng([seed, 6])
    # the same replicates for every signal and group, so that differences are paired
    counts = rng.multinomial(units, np.full(units, 1 / units), size=scores.bootstrap).astype(np.float64)
    tail = (1 - scores.level) / 2
    for signal in signals:
        bins = [bins_for(g, scored, signal) for g in scores.groupings]
        by_rollout = [sum_rollouts(q, signal, bins) for q in scored]
        by_question = np.stack([s.sum(axis=0) for s in by_rollout])
        by_unit = by_question if units == len(scored) else np.concatenate(by_rollout)
        total = by_question.sum(axis=0)
        point = pooled(total)
        replicates = pooled(np.einsum("bu,ugk->bgk", counts, by_unit))
        labels = [("all", "all", np.nan, np.nan), *(place for b in bins for place in b.places())]
        for g, (group, label, bin_low, bin_high) in enumerate(labels):
            nodes = int(total[g, _SUMS.index("nodes")])
            if nodes == 0:
                continue
            undefined = np.isnan(replicates["alignment"][:, g]).mean()
            carrying = int((by_unit[:, g, _SUMS.index("nodes")] > 0).sum())
            resolved = bool(np.isfinite(point["alignment"][g]) and undefined <= tail and carrying > 1)
            row: dict[str, Any] = {
                "group": group,
                "bin": label,
                **signal._asdict(),
                "nodes": nodes,
                "questions": int((by_question[:, g, _SUMS.index("nodes")] > 0).sum()),
                "reliability": point["reliability"][g],
                "resolved": resolved,
                "d_sq": total[g, _SUMS.index("d_sq")],
                "bin_low": bin_low,
                "bin_high": bin_high,
            }
            for name in ("alignment", "gain", "mean_cosine"):
                known = np.isfinite(point[name][g]) and (resolved or name != "alignment")
                values = replicates[name][:, g]
                values = values[np.isfinite(values)]
                told = known and carrying > 1  # one unit alone says nothing of its spread
                low, high = np.quantile(values, [tail, 1 - tail]) if told else (np.nan, np.nan)
                row |= {name: point[name][g] if known else np.nan, f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
    return _frame({name: [row[name] for row in rows] for name in SUMMARY}, SUMMARY)


def headline(summary: pl.DataFrame) -> list[dict[str, Any]]:
    """A row for each signal: its name, and its rows of the summary for all, correct and incorrect rollouts."""
    wanted = summary.filter(pl.col("group").is_in(["all", "outcome"]))
    rows = []
    for signal, part in wanted.group_by(["teacher", "context", "loss"], maintain_order=True):
        found = {row["bin"]: row for row in part.iter_rows(named=True)}
        names = Signal(*map(str, signal))._asdict()
        rows.append({**names, **{name: found.get(name) for name in ("all", "correct", "incorrect")}})
    return rows
