"""Rollouts of a report, token by token: what the page shows of them, packed by question."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from schemas.signals import Signal
from tasks.outputs.report.packing import Column, packed
from tasks.stages.aggregate.questions import NodeRows, QuestionScores
from tasks.stages.aggregate.tables import Texts
from tasks.statistics.csr import Floats, Ints, rows_of
from tasks.statistics.estimators import pool_rounds

MOST_BYTES = 40 * 2**20
"""Most bytes of all packed rollouts of a page."""
LEAST_BYTES = 128 * 2**10
"""What a question may take at least, however many there are; where they do not all fit, the most telling ones do."""
BROKEN = "\ufffd"
"""What a part of a character is decoded to."""
_LONGEST_CHARACTER = 4

Decode = Callable[[Sequence[Sequence[int]]], Sequence[str]]
"""Gives the text of runs of tokens."""


class Shown(NamedTuple):
    """What the page holds of a question.

    Attributes:
        listed: its id, and lists by shown rollout: number, correct, truncated, tokens, nodes, nodes with a known sign.
        data: its shown rollouts, packed.
        tokens: ids that they and the branches of their nodes have.
        known: nodes of all its rollouts with a known sign, and all its nodes.
        left_out: rollouts, and nodes of shown ones, that had no room.
    """

    listed: dict[str, Any]
    data: str
    tokens: Ints
    known: tuple[int, int]
    left_out: tuple[int, int]


class Rollouts:
    """Collects the rollouts of a page, question by question.

    Attributes:
        questions: those shown.
    """

    def __init__(
        self, signals: Sequence[Signal], questions: int, texts: Texts, decode: Decode, temperature: float
    ) -> None:
        """Start empty.

        Args:
            questions: number of them that will be added.
            texts: gives the text of token ids.
            decode: gives the text of runs of tokens.
            temperature: of sampling.
        """
        self._signals, self._texts, self._decode, self._temperature = list(signals), texts, decode, temperature
        self._expected = questions
        self._bytes = 0
        self._without_room = (0, 0)  # questions, and their rollouts
        self.questions: list[Shown] = []

    @property
    def vocabulary(self) -> Mapping[int, str]:
        """Texts of all tokens shown."""
        return self._texts(sorted({int(token) for question in self.questions for token in question.tokens}))

    @property
    def left_out(self) -> dict[str, int]:
        """Questions, rollouts (theirs too), and nodes of shown rollouts, that had no room."""
        questions, rollouts = self._without_room
        of_shown = [question.left_out for question in self.questions]
        rollouts += sum(rollouts_ for rollouts_, _ in of_shown)
        return {"questions": questions, "rollouts": rollouts, "nodes": sum(nodes for _, nodes in of_shown)}

    def add(self, q: QuestionScores, tokens: pl.DataFrame) -> None:
        """Add a question.

        Its most telling rollouts come first: those with most known signs, then with most nodes. What does not fit is
        left out, the last first; of a single rollout the nodes whose signs are least known.

        Args:
            tokens: its rows of `tokens.parquet`.
        """
        # what is left is shared by the questions to come
        room = max(LEAST_BYTES, (MOST_BYTES - self._bytes) // max(1, self._expected))
        self._expected -= 1
        told = _Told.of(q, tokens, self._signals, self._temperature)
        resolved = told.resolved.any(axis=0)
        number = len(q.rollouts["correct"])
        nodes = np.bincount(told.rollout, minlength=number)
        known = np.bincount(told.rollout, weights=resolved, minlength=number)
        order = np.lexsort((np.arange(number), -nodes, -known))
        share, every = 1.0, np.arange(len(told.node))
        while True:
            shown = order[: max(1, int(share * number))]
            kept = every[np.isin(told.rollout, shown)]
            if share * number < 1:
                least = np.argsort(told.lfsr[kept], kind="stable")
                kept = np.sort(kept[least[: int(share * number * len(kept))]])
            data, ids = self._packed(q, told, shown, kept)
            if len(data) <= room or (len(shown) == 1 and not len(kept)):
                break
            share *= 0.9 * room / len(data)
        if len(data) > room:  # the text of a single rollout
            self._leave_out(number)
            return
        left_out = number - len(shown), int(np.isin(told.rollout, shown).sum()) - len(kept)
        lengths = np.diff(np.asarray(q.rollouts["offsets"], dtype=np.int64))
        lists = {
            "rollout": shown,
            "correct": np.asarray(q.rollouts["correct"])[shown].astype(int),
            "truncated": np.asarray(q.rollouts["truncated"])[shown].astype(int),
            "tokens": lengths[shown],
            "nodes": nodes[shown],
            "resolved": known[shown].astype(int),
        }
        listed = {"id": q.question_id, **{name: values.tolist() for name, values in lists.items()}}
        self.questions.append(Shown(listed, data, ids, (int(resolved.sum()), len(told.node)), left_out))
        self._bytes += len(data)
        while self._bytes > MOST_BYTES:
            last = min(range(len(self.questions)), key=lambda i: (*self.questions[i].known, -i))
            dropped = self.questions.pop(last)
            self._bytes -= len(dropped.data)
            self._leave_out(len(dropped.listed["rollout"]) + dropped.left_out[0])

    def _leave_out(self, rollouts: int) -> None:
        questions, before = self._without_room
        self._without_room = questions + 1, before + rollouts

    def _packed(self, q: QuestionScores, told: "_Told", shown: Ints, kept: Ints) -> tuple[str, Ints]:
        """The rollouts with some of their nodes, packed, and the ids of their tokens and branches."""
        offsets = np.asarray(q.rollouts["offsets"], dtype=np.int64)
        text = np.asarray(q.rollouts["tokens"])[rows_of(offsets, shown)]
        branches = rows_of(told.offsets, kept)
        ids = np.union1d(text, told.branch_token[branches]).astype(np.int64)
        place = np.zeros(int(max(shown, default=0)) + 1, dtype=np.int64)
        place[shown] = np.arange(len(shown))
        columns = {
            "length": Column("int", np.diff(offsets)[shown]),
            "token": Column("int", text),
            "node_rollout": Column("int", place[told.rollout[kept]]),
            "node_position": Column("int", told.position[kept]),
            "branches": Column("int", np.diff(told.offsets)[kept]),
            "branch_token": Column("int", told.branch_token[branches]),
            "branch_draws": Column("int", told.draws[branches]),
            "branch_successes": Column("int", told.successes[branches]),
            "branch_tail": Column("int", told.tail[branches]),
            "branch_prob": Column("unit", told.prob[branches]),
            "ideal": Column("rough", told.ideal[branches]),
            **{name: Column("unit", told.table[name][0, kept]) for name in ("student_prob", "value", "tail_prob")},
            **{name: Column("real", told.table[name][0, kept]) for name in ("entropy", "weight")},
            **{name: Column("unit", told.table[name][:, kept]) for name in _SHARES},
            "d_sq": Column("real", told.table["d_sq"][:, kept]),
            "resolved": Column("int", told.resolved[:, kept]),
            "direction": Column("rough", told.direction[:, branches]),
            "teacher_branch": Column("unit", told.teacher[:, branches]),
            "kl": Column("real", told.table["kl"][told.of_source][:, kept]),
            "teacher_prob": Column("unit", told.table["teacher_prob"][told.of_source][:, kept]),
        }
        pieces = self._pieces(text.tolist(), np.cumsum(np.diff(offsets)[shown]).tolist())
        return packed(columns, {"pieces": pieces}), ids

    def _pieces(self, text: Sequence[int], ends: Sequence[int]) -> dict[int, str]:
        """Texts of tokens that are parts of a character: the last part has all of it, the others have none.

        Args:
            ends: where the rollouts end.
        """
        alone = self._texts(set(text))
        broken = [BROKEN in alone[token] for token in text]
        out: dict[int, str] = {}
        start = 0
        while start < len(text):
            if not broken[start]:
                start += 1
                continue
            end = min(ends[bisect_right(ends, start)], start + _LONGEST_CHARACTER)
            runs = [text[start:stop] for stop in range(start + 1, end + 1)]
            decoded = self._decode(runs)
            whole = next((n for n, found in enumerate(decoded, 1) if BROKEN not in found), 1)
            if BROKEN not in decoded[whole - 1]:
                out |= {start + n: "" for n in range(whole - 1)} | {start + whole - 1: decoded[whole - 1]}
            start += whole
        return out


_SHARES = ("cosine", "cosine_low", "cosine_high", "p_positive", "lfsr")


class _Told(NamedTuple):
    """What is known of a question's nodes: S signals, M sources, N nodes, B branches, merged over rounds.

    Attributes:
        node, rollout, position: of the completions' tokens, its rollout, and its place there, [N].
        table: columns of `tokens.parquet`, [S, N].
        resolved: whether the sign is known, [S, N]; lfsr: the least of all signals', [N].
        of_source: the first signal of each source, [M].
        offsets: where each node's branches start, [N+1].
        direction: d at the branches, NaN for losses that need draws, [S, B].
        teacher: the teacher's probability of the branches, [M, B].
        ideal: P (Q - V) / temperature, [B].
    """

    node: Ints
    rollout: Ints
    position: Ints
    table: dict[str, Floats]
    resolved: Ints
    lfsr: Floats
    of_source: Ints
    offsets: Ints
    branch_token: Ints
    draws: Ints
    successes: Ints
    tail: Ints
    prob: Floats
    ideal: Floats
    direction: Floats
    teacher: Floats

    @classmethod
    def of(cls, q: QuestionScores, tokens: pl.DataFrame, signals: Sequence[Signal], temperature: float) -> "_Told":
        """From a question's arrays and its rows of the table of tokens."""
        node = NodeRows(q).node
        shape = (len(signals), len(node))
        names = (*_SHARES, "student_prob", "value", "tail_prob", "entropy", "weight", "d_sq", "kl", "teacher_prob")
        table = {name: tokens[name].to_numpy().astype(np.float64).reshape(shape) for name in names}
        resolved = tokens["resolved"].fill_null(value=False).to_numpy().astype(np.int64).reshape(shape)
        pooled = pool_rounds(q.tree)
        outcomes, first = pooled.outcomes, pooled.first
        sources = list(dict.fromkeys(signal.source for signal in signals))
        of_source = np.array([next(i for i, s in enumerate(signals) if s.source == m) for m in sources], dtype=np.int64)
        owner = np.repeat(np.arange(len(node)), np.diff(outcomes.offsets))
        blank = np.full(len(first), np.nan)
        direction = [blank if q.needs_draws(s) else np.asarray(q.distillation[s]["d"])[first] for s in signals]
        teacher = [np.asarray(q.distillation[signals[i]]["teacher_prob"])[first] for i in of_source]
        return cls(
            node,
            q.rollout_of_position[node],
            q.place[node],
            table,
            resolved,
            np.nan_to_num(table["lfsr"], nan=1.0).min(axis=0, initial=1.0),
            of_source,
            np.asarray(outcomes.offsets, dtype=np.int64),
            np.asarray(q.tree["branch_token"], dtype=np.int64)[first],
            outcomes.draws.astype(np.int64),
            outcomes.successes.astype(np.int64),
            outcomes.tail.astype(np.int64),
            outcomes.prob,
            outcomes.prob * (outcomes.rate - table["value"][0][owner]) / temperature,
            np.reshape(direction, (len(signals), len(first))),
            np.reshape(teacher, (len(sources), len(first))),
        )
