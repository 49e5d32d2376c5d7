"""Outcomes and teachers collected by another system: read from tables, checked, laid out as by stages 1, 2 and 4.

A table has branches, not whole distributions. The rest of each distribution counts as one more token, which succeeds
as often as the branches on average; only `tail_prob`, the bound of that bias, is reported about it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.arrays import NO_DRAWS, AnyArray
from schemas.config import RecordedTeacher, RecordedTree
from schemas.text import quoted
from tasks.inputs.errors import InputError
from tasks.inputs.recorded_rows import OUTCOMES, TEACHER, Key, RecordedTable, branch_key
from tasks.statistics.csr import Floats, owners, row_sums
from tasks.store.keys import digest

NumberedRow = tuple[int, Mapping[str, Any]]
"""A row with its index in the table."""


@dataclass(frozen=True)
class RecordedBranches:
    """A teacher's probabilities at the branches of one question, [B], with the digest of its rows."""

    prob: Floats
    digest: str


@dataclass(frozen=True)
class RecordedQuestion:
    """One question's outcomes, as the arrays of stages 1 and 2."""

    rollouts: dict[str, AnyArray]
    tree: dict[str, AnyArray]
    texts: dict[int, str]
    digest: str
    teachers: dict[str, RecordedBranches] = field(default_factory=dict)


def read_recorded(tree: RecordedTree, teachers: Sequence[RecordedTeacher]) -> dict[str, RecordedQuestion]:
    """All questions of the tables, in order of their first row.

    Raises:
        InputError: naming table, row and column.
    """
    table = RecordedTable("tree.path", tree.path)
    rows = table.read(OUTCOMES)
    by_key = table.distinct(rows)
    table.check_positions(rows)
    questions: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        questions.setdefault(row["question_id"], []).append(number)
    out = {}
    for question, numbers in questions.items():
        numbers.sort(key=lambda n: (rows[n]["rollout_id"], rows[n]["position"], -rows[n]["student_prob"], n))
        out[question] = _question(table, question, [(n, rows[n]) for n in numbers])
    for i, teacher in enumerate(teachers):
        teacher_table, probs = _teacher_rows(i, teacher, by_key)
        for question, numbers in questions.items():
            at = [probs[branch_key(rows[n])] for n in numbers]
            teacher_table.check_sums("teacher_prob", out[question].tree["branch_offsets"], at)
            prob = np.array([p for _, p in at])
            out[question].teachers[teacher.name] = RecordedBranches(prob, digest([repr(p) for p in prob.tolist()]))
    return out


def _teacher_rows(
    index: int, teacher: RecordedTeacher, branches: Mapping[Key, int]
) -> tuple[RecordedTable, dict[Key, tuple[int, float]]]:
    """A teacher's probability at every recorded branch, with its row."""
    table = RecordedTable(f"teachers.{index}.path", teacher.path)
    rows = table.read(TEACHER)
    found = table.distinct(rows)
    missing = next((key for key in branches if key not in found), None)
    if missing is not None:
        question, rollout, position, token = missing
        raise InputError(
            table.field,
            f"{quoted(teacher.path)} has no row for question {quoted(question)}, rollout_id {rollout}, "
            f"position {position}, token_id {token}, which row {branches[missing] + 1} of the outcomes has",
        )
    return table, {key: (n, float(rows[n]["teacher_prob"])) for key, n in found.items()}


def _question(table: RecordedTable, question: str, rows: Sequence[NumberedRow]) -> RecordedQuestion:
    lengths, verdicts = _rollouts(table, question, rows)
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    at = np.array([int(offsets[row["rollout_id"]]) + row["position"] for _, row in rows], dtype=np.int64)
    node, first = np.unique(at, return_index=True)
    branch_offsets = np.append(first, len(at)).astype(np.int64)
    prob = np.array([row["student_prob"] for _, row in rows], dtype=np.float64)
    table.check_sums("student_prob", branch_offsets, [(n, row["student_prob"]) for n, row in rows])
    table.check_draws(branch_offsets, [(n, row["draws"]) for n, row in rows])
    tail = np.maximum(1 - row_sums(prob, branch_offsets), 0.0)

    T = int(offsets[-1])
    tokens, token_prob, entropy = np.full(T, -1, dtype=np.int32), np.full(T, np.nan), np.full(T, np.nan)
    entropy[node] = [
        _entropy([*prob[a:b].tolist(), rest]) for a, b, rest in zip(first, branch_offsets[1:], tail, strict=True)
    ]
    inclusion = np.ones(len(node))
    texts: dict[int, str] = {}
    for (_, row), place, owner in zip(rows, at, owners(branch_offsets), strict=True):
        if row.get("sampled"):
            tokens[place], token_prob[place] = row["token_id"], row["student_prob"]
        if "token" in row:
            texts[row["token_id"]] = row["token"]
        inclusion[owner] = row.get("inclusion", 1.0)
        entropy[place] = row.get("entropy", entropy[place])

    def column(name: str) -> AnyArray:
        return np.array([row[name] for _, row in rows], dtype=np.int32)

    rollouts: dict[str, AnyArray] = {
        "prompt": np.empty(0, dtype=np.int32),
        "tokens": tokens,
        "offsets": offsets,
        "correct": np.array(verdicts, dtype=bool),
        "truncated": np.zeros(len(verdicts), dtype=bool),
        "reward": np.array(verdicts, dtype=np.float64),
    }
    tree: dict[str, AnyArray] = {
        "token_prob": token_prob,
        "entropy": entropy,
        "leverage": np.full(T, np.nan),
        "node": node,
        "round": np.zeros(len(node), dtype=np.int32),
        "inclusion": inclusion,
        "share": np.ones(len(node)),
        "p_sq": row_sums(prob**2, branch_offsets) + tail**2,
        "tail_prob": tail,
        "branch_offsets": branch_offsets,
        "branch_token": column("token_id"),
        "branch_prob": prob,
        "branch_tail": np.zeros(len(rows), dtype=bool),
        "draws": column("draws"),
        "successes": column("successes"),
        "truncations": np.zeros(len(rows), dtype=np.int32),
        **NO_DRAWS,
    }
    content = digest([[[name, repr(value)] for name, value in sorted(row.items())] for _, row in rows])
    return RecordedQuestion(rollouts, tree, texts, content)


def _rollouts(table: RecordedTable, question: str, rows: Sequence[NumberedRow]) -> tuple[list[int], list[bool]]:
    """Length and verdict of each rollout, [R] each.

    Raises:
        InputError: a rollout is missing, or has two verdicts.
    """
    rollouts = sorted({row["rollout_id"] for _, row in rows})
    if rollouts != list(range(len(rollouts))):
        gap = next(i for i, r in enumerate(rollouts) if r != i)
        number = next(n for n, row in rows if row["rollout_id"] == rollouts[gap])
        raise table.error(
            number,
            "rollout_id",
            f"question {quoted(question)} has rollout {rollouts[gap]} but no rollout {gap}; "
            "number them from 0 without gaps",
        )
    lengths = [0] * len(rollouts)
    verdicts: dict[int, bool] = {}
    for number, row in rows:
        r = row["rollout_id"]
        lengths[r] = max(lengths[r], row["position"] + 1)
        if verdicts.setdefault(r, row["correct"]) != row["correct"]:
            raise table.error(number, "correct", f"rollout {r} of question {quoted(question)} is both true and false")
    return lengths, [verdicts[r] for r in rollouts]


def _entropy(probs: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probs if p > 0)
