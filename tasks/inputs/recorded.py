"""Outcomes and teachers that another system collected, from tables: checked, then laid out as stages 1, 2 and 4 do.

A table has branches, not whole distributions. What is left of each distribution counts as one more token, whose
success is that of the branches on average; nothing is told of it beyond `tail_prob`, the bound of that bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import RecordedTeacher, RecordedTree
from schemas.limits import INT32, LEAST_INCLUSION, MOST_POSITIONS, MOST_TOKENS
from schemas.text import id_problem, listed, shown
from tasks.inputs.questions import InputError, read_rows
from tasks.statistics.csr import Floats, Ints, owners, row_sums
from tasks.store.keys import digest

_OVER_ONE = 1e-6
"""Rounding that sums of recorded probabilities may show."""

Key = tuple[str, int, int, int]


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
    table = _Table("tree.path", tree.path)
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
        theirs, probs = _teacher_rows(i, teacher, by_key)
        for question, numbers in questions.items():
            at = [probs[_key(rows[n])] for n in numbers]
            theirs.check_sums("teacher_prob", out[question].tree["branch_offsets"], at)
            prob = np.array([p for _, p in at])
            out[question].teachers[teacher.name] = RecordedBranches(prob, digest([repr(p) for p in prob.tolist()]))
    return out


OUTCOMES: dict[str, type] = {
    "question_id": str,
    "rollout_id": int,
    "position": int,
    "token_id": int,
    "student_prob": float,
    "successes": int,
    "draws": int,
    "correct": bool,
}
TEACHER: dict[str, type] = {
    "question_id": str,
    "rollout_id": int,
    "position": int,
    "token_id": int,
    "teacher_prob": float,
}
OPTIONAL: dict[str, type] = {"token": str, "sampled": bool, "inclusion": float, "entropy": float}
_MOST = {"rollout_id": INT32, "position": MOST_TOKENS, "token_id": INT32, "successes": INT32, "draws": INT32}
_PROBABILITIES = {
    "student_prob": (math.ulp(0.0), " above 0"),
    "teacher_prob": (0.0, ""),
    "inclusion": (LEAST_INCLUSION, f" of {LEAST_INCLUSION:g} or more"),
}
_WHAT = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class _Table:
    """A table of the configuration, for reading and for telling what is wrong with it."""

    field: str
    path: str

    def error(self, row: int, column: str, message: str) -> InputError:
        """Rows count from 1, as their order in the table."""
        return InputError(self.field, f"{shown(self.path)}, row {row + 1}, column {column!r}: {message}")

    def read(self, columns: Mapping[str, type]) -> list[dict[str, Any]]:
        """Rows with these columns, and those of the optional ones that are there, checked one value at a time."""
        raw = read_rows(self.path, self.field, texts=[n for n, kind in {**columns, **OPTIONAL}.items() if kind is str])
        if not raw:
            raise InputError(self.field, f"{shown(self.path)} has no rows")
        lacking = [name for name in columns if not any(name in row for row in raw)]
        if lacking:
            raise InputError(
                self.field,
                f"{shown(self.path)} has no column {lacking[0]!r}; it needs {', '.join(columns)}, has {listed(raw[0])}",
            )
        return [self._checked(number, row, columns) for number, row in enumerate(raw)]

    def _checked(self, number: int, row: Mapping[str, Any], columns: Mapping[str, type]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, kind in {**columns, **OPTIONAL}.items():
            value = row.get(name)
            if value is None:
                if name in columns:
                    raise self.error(number, name, f"missing; every row needs {_WHAT[kind]}")
                continue
            if kind is str and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            elif kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value) if abs(value) < 2**53 else math.inf
            elif kind is int and isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise self.error(number, name, f"{shown(value)} is not {_WHAT[kind]}")
            out[name] = value
        problem = id_problem(out["question_id"])
        if problem is not None:
            raise self.error(number, "question_id", f"{shown(out['question_id'])} {problem}")
        for name, (least, what) in _PROBABILITIES.items():
            if name in out and not least <= out[name] <= 1 + _OVER_ONE:
                raise self.error(number, name, f"{out[name]!r} is not a probability{what}")
        if not 0 <= out.get("entropy", 0.0) < math.inf:
            raise self.error(number, "entropy", f"{out['entropy']!r} is not an entropy, 0 or more")
        for name, most in _MOST.items():
            if name in out and out[name] < 0:
                raise self.error(number, name, f"{shown(out[name])} is negative")
            if name in out and out[name] > most:
                raise self.error(number, name, f"{shown(out[name])} is too large; the most is {most:,}")
        if "draws" in out:
            if out["draws"] < 2:
                raise self.error(number, "draws", f"{out['draws']} is too small; a branch needs two draws or more")
            if out["successes"] > out["draws"]:
                raise self.error(number, "successes", f"{out['successes']} is above the row's draws, {out['draws']}")
        return out

    def distinct(self, rows: Sequence[Mapping[str, Any]]) -> dict[Key, int]:
        """Row of every branch; a branch that stands there twice is an error."""
        found: dict[Key, int] = {}
        for number, row in enumerate(rows):
            first = found.setdefault(_key(row), number)
            if first != number:
                raise self.error(number, "token_id", f"{row['token_id']} is a branch that row {first + 1} has already")
        return found

    def check_positions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rollouts that are longer, all together, than what can be laid out."""
        lengths: dict[tuple[str, int], int] = {}
        total = 0
        for number, row in enumerate(rows):
            rollout, length = (row["question_id"], row["rollout_id"]), row["position"] + 1
            total += max(0, length - lengths.get(rollout, 0))
            lengths[rollout] = max(length, lengths.get(rollout, 0))
            if total > MOST_POSITIONS:
                raise self.error(
                    number,
                    "position",
                    f"with {row['position']} here all rollouts have {total:,} "
                    f"positions, counted from 0; the most are {MOST_POSITIONS:,}",
                )

    def check_draws(self, offsets: Ints, values: Sequence[tuple[int, int]]) -> None:
        """Refuse a node with more draws than a column of the tables holds."""
        for a, b in pairwise(offsets):
            total = sum(n for _, n in values[a:b])
            if total > INT32:
                row = max(n for n, _ in values[a:b])
                raise self.error(row, "draws", f"this node's branches have {total:,} draws; the most are {INT32:,}")

    def check_sums(self, column: str, offsets: Ints, values: Sequence[tuple[int, float]]) -> None:
        """Refuse a node whose probabilities sum to more than 1; `values` are rows and probabilities at branches."""
        for a, b in pairwise(offsets):
            total = math.fsum(p for _, p in values[a:b])
            if total > 1 + _OVER_ONE:
                row = max(n for n, _ in values[a:b])
                raise self.error(row, column, f"the probabilities of this node's branches sum to {total:.6g}, above 1")


def _key(row: Mapping[str, Any]) -> Key:
    return row["question_id"], row["rollout_id"], row["position"], row["token_id"]


def _teacher_rows(
    index: int, teacher: RecordedTeacher, branches: Mapping[Key, int]
) -> tuple[_Table, dict[Key, tuple[int, float]]]:
    """A teacher's probability at every recorded branch, with its row."""
    table = _Table(f"teachers.{index}.path", teacher.path)
    rows = table.read(TEACHER)
    found = table.distinct(rows)
    missing = next((key for key in branches if key not in found), None)
    if missing is not None:
        question, rollout, position, token = missing
        raise InputError(
            table.field,
            f"{shown(teacher.path)} has no row for question {shown(question)}, rollout_id {rollout}, "
            f"position {position}, token_id {token}, which row {branches[missing] + 1} of the outcomes has",
        )
    return table, {key: (n, float(rows[n]["teacher_prob"])) for key, n in found.items()}


def _question(table: _Table, question: str, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> RecordedQuestion:
    rollouts = sorted({row["rollout_id"] for _, row in rows})
    if rollouts != list(range(len(rollouts))):
        gap = next(i for i, r in enumerate(rollouts) if r != i)
        number = next(n for n, row in rows if row["rollout_id"] == rollouts[gap])
        raise table.error(
            number,
            "rollout_id",
            f"question {shown(question)} has rollout {rollouts[gap]} but no rollout {gap}; "
            "they count from 0 without gaps",
        )
    lengths = [0] * len(rollouts)
    verdict: dict[int, bool] = {}
    for number, row in rows:
        r = row["rollout_id"]
        lengths[r] = max(lengths[r], row["position"] + 1)
        if verdict.setdefault(r, row["correct"]) != row["correct"]:
            raise table.error(number, "correct", f"rollout {r} of question {shown(question)} is both true and false")
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    T = int(offsets[-1])
    at = np.array([int(offsets[row["rollout_id"]]) + row["position"] for _, row in rows], dtype=np.int64)
    node, first = np.unique(at, return_index=True)
    branch_offsets = np.append(first, len(at)).astype(np.int64)
    prob = np.array([row["student_prob"] for _, row in rows], dtype=np.float64)
    table.check_sums("student_prob", branch_offsets, [(n, row["student_prob"]) for n, row in rows])
    table.check_draws(branch_offsets, [(n, row["draws"]) for n, row in rows])
    tail = np.maximum(1 - row_sums(prob, branch_offsets), 0.0)

    tokens, token_prob = np.full(T, -1, dtype=np.int32), np.full(T, np.nan)
    entropy = np.full(T, np.nan)
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

    return RecordedQuestion(
        {
            "prompt": np.empty(0, dtype=np.int32),
            "tokens": tokens,
            "offsets": offsets,
            "correct": np.array([verdict[r] for r in rollouts], dtype=bool),
            "truncated": np.zeros(len(rollouts), dtype=bool),
        },
        {
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
        },
        texts,
        digest([[[name, repr(value)] for name, value in sorted(row.items())] for _, row in rows]),
    )


def _entropy(probs: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probs if p > 0)
