"""The rows of recorded tables, checked one by one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from schemas.limits import INT32, LEAST_INCLUSION, MOST_POSITIONS, MOST_TOKENS
from schemas.text import id_problem, listed, quoted
from tasks.inputs.errors import InputError
from tasks.inputs.questions import read_rows
from tasks.statistics.csr import Ints

_OVER_ONE = 1e-6
"""Rounding error allowed in sums of recorded probabilities."""


Key = tuple[str, int, int, int]


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


_WHAT = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class RecordedTable:
    """A table of the configuration: reads it and reports what is wrong with it."""

    field: str
    path: str

    def error(self, row: int, column: str, message: str) -> InputError:
        """An error in a row, numbered from 1 in messages."""
        return InputError(self.field, f"{quoted(self.path)}, row {row + 1}, column {column!r}: {message}")

    def read(self, columns: Mapping[str, type]) -> list[dict[str, Any]]:
        """Rows with these columns and any optional ones that exist, checked one value at a time."""
        raw = read_rows(self.path, self.field, texts=[n for n, kind in {**columns, **OPTIONAL}.items() if kind is str])
        if not raw:
            raise InputError(self.field, f"{quoted(self.path)} has no rows")
        missing = [name for name in columns if not any(name in row for row in raw)]
        if missing:
            raise InputError(
                self.field,
                f"{quoted(self.path)} has no column {missing[0]!r}; it needs {', '.join(columns)}, "
                f"has {listed(raw[0])}",
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
                raise self.error(number, name, f"{quoted(value)} is not {_WHAT[kind]}")
            out[name] = value
        problem = id_problem(out["question_id"])
        if problem is not None:
            raise self.error(number, "question_id", f"{quoted(out['question_id'])} {problem}")
        for name, (least, what) in _PROBABILITIES.items():
            if name in out and not least <= out[name] <= 1 + _OVER_ONE:
                raise self.error(number, name, f"{out[name]!r} is not a probability{what}")
        if not 0 <= out.get("entropy", 0.0) < math.inf:
            raise self.error(number, "entropy", f"{out['entropy']!r} is not an entropy, 0 or more")
        for name, most in _MOST.items():
            if name in out and out[name] < 0:
                raise self.error(number, name, f"{quoted(out[name])} is negative")
            if name in out and out[name] > most:
                raise self.error(number, name, f"{quoted(out[name])} is too large; the maximum is {most:,}")
        if "draws" in out:
            if out["draws"] < 2:
                raise self.error(number, "draws", f"{out['draws']} is too small; a branch needs at least two draws")
            if out["successes"] > out["draws"]:
                raise self.error(number, "successes", f"{out['successes']} is above the row's draws, {out['draws']}")
        return out

    def distinct(self, rows: Sequence[Mapping[str, Any]]) -> dict[Key, int]:
        """Row of every branch; a duplicate branch is an error."""
        found: dict[Key, int] = {}
        for number, row in enumerate(rows):
            first = found.setdefault(branch_key(row), number)
            if first != number:
                raise self.error(number, "token_id", f"{row['token_id']} repeats the branch of row {first + 1}")
        return found

    def check_positions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rollouts with more positions in total than can be laid out."""
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
                    f"{row['position']} brings all rollouts to {total:,} "
                    f"positions, counted from 0; the maximum is {MOST_POSITIONS:,}",
                )

    def check_draws(self, offsets: Ints, values: Sequence[tuple[int, int]]) -> None:
        """Refuse a node with more draws than a table column can hold."""
        for a, b in pairwise(offsets):
            total = sum(n for _, n in values[a:b])
            if total > INT32:
                row = max(n for n, _ in values[a:b])
                raise self.error(row, "draws", f"this node's branches have {total:,} draws; the maximum is {INT32:,}")

    def check_sums(self, column: str, offsets: Ints, values: Sequence[tuple[int, float]]) -> None:
        """Refuse a node whose probabilities sum to more than 1; `values` are rows and probabilities at branches."""
        for a, b in pairwise(offsets):
            total = math.fsum(p for _, p in values[a:b])
            if total > 1 + _OVER_ONE:
                row = max(n for n, _ in values[a:b])
                raise self.error(row, column, f"the probabilities of this node's branches sum to {total:.6g}, above 1")


def branch_key(row: Mapping[str, Any]) -> Key:
    return row["question_id"], row["rollout_id"], row["position"], row["token_id"]
