"""Which tokens of the vocabulary a signal makes likelier, and which would raise success.

At a node a loss moves the logit of token j by d_j, and success wants g_j = P_j (Q_j - V) there. Both are summed over
the nodes, weighted by the positions that each stands for, for every token by itself. Only tokens of a node's head
count, as the others are a sample.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from schemas.signals import Signal
from tasks.stages.aggregate.questions import QuestionScores
from tasks.statistics.bootstrap import LEAST_UNITS, critical_value
from tasks.statistics.csr import Floats, Ints, owners

MOST_TOKENS = 20
"""Tokens of each signal that gain, and that lose, in the table."""


class Pushes:
    """Sums over nodes by token of the vocabulary, question by question, with their variance between questions."""

    def __init__(self, signals: Sequence[Signal]) -> None:
        """Start empty."""
        self._signals = list(signals)
        self._tokens: Ints = np.empty(0, dtype=np.int64)
        self._sums: Floats = np.empty((0, 2, 1 + len(signals)))  # by token: sum and sum of squares over questions
        self._nodes: Ints = np.empty(0, dtype=np.int64)
        self._questions = self._rollouts = 0

    def add(self, q: QuestionScores) -> None:
        """Add a question."""
        head = ~np.asarray(q.tree["branch_tail"], dtype=np.bool_)
        owner = owners(np.asarray(q.tree["branch_offsets"], dtype=np.int64))[head]
        tokens, of = np.unique(np.asarray(q.tree["branch_token"])[head], return_inverse=True)
        weight = q.weight[owner]
        columns = [np.asarray(q.ideal["gradient"])[head]]
        for signal in self._signals:
            known = not q.needs_draws(signal)
            columns.append(np.asarray(q.distillation[signal]["d"])[head] if known else np.full(len(owner), np.nan))
        sums = np.stack([np.bincount(of, weight * column, len(tokens)) for column in columns], axis=1)
        places = self._places(tokens)
        self._sums[places] += np.stack([sums, sums**2], axis=1)
        self._nodes[places] += np.bincount(of[weight > 0], minlength=len(tokens))
        self._questions += 1
        self._rollouts += len(q.rollouts["correct"])

    def _places(self, tokens: Ints) -> Ints:
        """Places of some tokens, with room for new ones."""
        every = np.union1d(self._tokens, tokens)
        kept = np.searchsorted(every, self._tokens)
        sums, nodes = np.zeros((len(every), *self._sums.shape[1:])), np.zeros(len(every), dtype=np.int64)
        sums[kept], nodes[kept] = self._sums, self._nodes
        self._tokens, self._sums, self._nodes = every.astype(np.int64), sums, nodes
        return np.searchsorted(every, tokens)

    def shown(self, signal: Signal) -> Ints:
        """Places of a signal's tokens that gain most, then of those that lose most."""
        push = self._sums[:, 0, 1 + self._signals.index(signal)]
        order = np.argsort(-push, kind="stable")
        gaining = [i for i in order[:MOST_TOKENS] if push[i] > 0]
        losing = [i for i in order[::-1][:MOST_TOKENS] if push[i] < 0]
        return np.array([*gaining, *losing], dtype=np.int64)

    @property
    def token_ids(self) -> Iterable[int]:
        """Ids of all tokens that a row may name."""
        return [int(self._tokens[i]) for signal in self._signals for i in self.shown(signal)]

    def rows(self, texts: Mapping[int, str], level: float) -> list[dict[str, Any]]:
        """Rows of `schemas.tables.VOCABULARY`, in the order of the signals, those that gain first.

        Intervals are those of a sum over independent questions, by Student's t.
        """
        n = self._questions
        total, squares = self._sums[:, 0], self._sums[:, 1]
        width = np.full_like(total, np.nan)
        if n >= LEAST_UNITS:
            variance = np.maximum(squares - total**2 / n, 0.0)
            width = critical_value(n, level) * np.sqrt(variance)
        out = []
        for signal in self._signals:
            column = 1 + self._signals.index(signal)
            for i in self.shown(signal):
                row: dict[str, Any] = {"token_id": int(self._tokens[i]), "token": texts[int(self._tokens[i])]}
                row |= {**signal._asdict(), "nodes": int(self._nodes[i])}
                for name, c in (("push", column), ("ideal", 0)):
                    low, high = total[i, c] - width[i, c], total[i, c] + width[i, c]
                    row |= {name: total[i, c] / self._rollouts}
                    row |= {f"{name}_low": low / self._rollouts, f"{name}_high": high / self._rollouts}
                out.append(row)
        return out
