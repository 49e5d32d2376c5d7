"""The tables of a diagnosis: tokens, summary, differences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from schemas.columns import Column
from schemas.question_tables import POOLED
from schemas.signals import Signal
from schemas.tables import DIFFERENCES, SUMMARY, TOKENS
from tasks.stages.aggregate.pooling import SUMS, Pool
from tasks.stages.aggregate.questions import NodeRows, QuestionScores
from tasks.stages.no_signal import Endings
from tasks.statistics.csr import Floats
from tasks.statistics.estimators import reliability

Texts = Callable[[Iterable[int]], Mapping[int, str]]
"""Gives the text of token ids."""


def tokens_table(q: QuestionScores, signals: Sequence[Signal], texts: Texts, level: float) -> pl.DataFrame:
    """One row per node, teacher, context and loss of a question; columns of `schemas.tables.TOKENS`.

    Estimates of a node from several rounds are averaged by weight, so that sums over the rows equal the pooled ones.
    """
    rows = NodeRows(q)
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
        for name in ("inner", "d_sq", "cosine_plain", "teacher_advantage"):
            of_node[name] = rows.mean(a[name])
        frames.append(
            _frame(
                {
                    **common,
                    **{name: [value] * len(node) for name, value in signal._asdict().items()},
                    **of_node,
                    **{n: d[n][node] for n in ("kl", "js")},
                    "teacher_prob": d["teacher_token_prob"][node],
                    "resolved": of_node["lfsr"] < 1 - level,
                },
                TOKENS,
            )
        )
    return pl.concat(frames)


def _frame(columns: Mapping[str, Any], declared: Mapping[str, Column]) -> pl.DataFrame:
    """A table with exactly the declared columns; NaN becomes null."""
    schema = pl.Schema({name: getattr(pl, column.dtype) for name, column in declared.items()})
    table = pl.DataFrame({name: columns[name] for name in declared}, strict=False)
    return table.cast(schema).with_columns(pl.col(pl.Float64).fill_nan(None))


def frame(rows: Sequence[Mapping[str, Any]], declared: Mapping[str, Column]) -> pl.DataFrame:
    """A table of rows with exactly the declared columns; NaN becomes null."""
    return _frame({name: [row[name] for row in rows] for name in declared}, declared)


def summary_table(pool: Pool) -> pl.DataFrame:
    """One row per group, teacher, context and loss; columns of `schemas.tables.SUMMARY`."""
    rows: list[dict[str, Any]] = []
    for signal, places in pool.places.items():
        total, point = pool.total[signal], pool.point[signal]
        for g, (group, label, bin_low, bin_high) in enumerate(places):
            nodes = int(total[g, SUMS.index("nodes")])
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
                "d_sq": total[g, SUMS.index("d_sq")],
                "bin_low": bin_low,
                "bin_high": bin_high,
            }
            for name in ("alignment", "gain", "mean_cosine"):
                row |= zip((name, f"{name}_low", f"{name}_high"), pool.estimate(signal, g, name), strict=True)
            rows.append(row)
    return frame(rows, SUMMARY)


def questions_table(sums: Mapping[Signal, Floats], ids: Sequence[str], endings: Sequence[Endings]) -> pl.DataFrame:
    """One row per question, teacher, context and loss; columns of `schemas.question_tables.POOLED`.

    Args:
        sums: over all positions of each question, [Q, len(SUMS)], by signal.
        ids: of the questions.
        endings: how their rollouts ended.
    """
    frames = []
    for signal, of_questions in sums.items():
        columns: dict[str, Any] = dict(zip(SUMS, of_questions.T, strict=True))
        columns |= {name: [value] * len(ids) for name, value in signal._asdict().items()}
        columns |= {"question_id": ids, "nonempty": columns["rollouts"]}
        columns |= {name: [getattr(e, name) for e in endings] for name in ("rollouts", "correct", "truncated")}
        frames.append(_frame(columns, POOLED))
    return pl.concat(frames)


def differences_table(pool: Pool) -> pl.DataFrame:
    """Differences of pooled scores with intervals; columns of `schemas.tables.DIFFERENCES`.

    For each signal: correct minus incorrect rollouts, and the last bin minus the first of every other grouping. Over
    all rollouts: every signal minus every later one.
    """
    pairs: list[tuple[Signal, int, Signal, int]] = []
    for signal, places in pool.places.items():
        for group in dict.fromkeys(place[0] for place in places if place[0] != "all"):
            present = [g for g, place in enumerate(places) if place[0] == group and pool.carrying[signal][g] > 0]
            if len(present) > 1:
                pairs.append((signal, present[-1], signal, present[0]))
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
    """One row per signal: its name, and its summary rows for all, correct and incorrect rollouts."""
    wanted = summary.filter(pl.col("group").is_in(["all", "outcome"]))
    rows = []
    for signal, part in wanted.group_by(["teacher", "context", "loss"], maintain_order=True):
        found = {row["bin"]: row for row in part.iter_rows(named=True)}
        names = Signal(*map(str, signal))._asdict()
        rows.append({**names, **{name: found.get(name) for name in ("all", "correct", "incorrect")}})
    return rows
