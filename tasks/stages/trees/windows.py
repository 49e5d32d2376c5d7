"""The windows plan: the paper's targeted rollouts, as reconstructed.

Continuations start from prefixes of a rollout at depths 0, 1, 2, 4, 8, ... and are counted on the prefix tree of all of
them. A node's branches are the tokens that followed its prefix often enough, in any continuation.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import NO_DRAWS, AnyArray
from schemas.config import WindowsTree
from tasks.stages.protocol import Unit
from tasks.stages.trees.design import concatenated
from tasks.stages.trees.frame import SamplingFrame
from tasks.stages.trees.planner import CompletedRound, Launches
from tasks.statistics.csr import Ints
from tasks.statistics.design import leverage


class Window(NamedTuple):
    """Continuations that start together: from the first `depth` tokens of a rollout."""

    rollout: int
    depth: int
    draws: int


@dataclass(frozen=True)
class WindowsDesign:
    """The single round of a tree of windows."""

    windows: list[Window]

    def launches(self, offsets: Ints) -> Launches:
        """One launch per window, without forced tokens."""
        columns = np.array(self.windows, dtype=np.int64).reshape(-1, 3).T
        return Launches(columns[0], columns[1], np.full(len(self.windows), -1), columns[2])

    def units(self, offsets: Ints, most: int) -> list[Unit]:
        """Consecutive windows."""
        edges, count = [0], 0
        for i, window in enumerate(self.windows):
            if count and count + window.draws > most:
                edges.append(i)
                count = 0
            count += window.draws
        return [Unit(a, b) for a, b in pairwise([*edges, len(self.windows)])]


class WindowsPlanner:
    """Plans the single round of a tree of windows."""

    def __init__(self, tree: WindowsTree) -> None:
        self._tree = tree

    def next_round(
        self, frame: SamplingFrame, completed: Sequence[CompletedRound[WindowsDesign]], seconds: float
    ) -> WindowsDesign | None:
        """All windows, then None."""
        return None if completed else WindowsDesign(windows(self._tree, frame.offsets))

    def tree(self, frame: SamplingFrame, completed: Sequence[CompletedRound[WindowsDesign]]) -> dict[str, AnyArray]:
        """The tree of the visits counted on the rollouts."""
        (only,) = completed
        outcome, offsets = only.outcome, only.outcome["offsets"]
        continued = [outcome["tokens"][a:b] for a, b in pairwise(offsets)]
        each = [only.design.windows[i] for i in only.launches.owner]
        visits = count_visits(frame.tokens, frame.offsets, each, continued, outcome["success"], outcome["truncated"])
        return windows_tree(self._tree, frame, visits)


def windows(tree: WindowsTree, offsets: Ints) -> list[Window]:
    """All windows of a question's rollouts with the budget split equally; the first ones take the remainder."""
    places = [
        (r, depth)
        for r, length in enumerate(np.diff(offsets).tolist())
        for depth in [0, *(2**k for k in range(length.bit_length()))]
        if depth < length
    ]
    share, remainder = divmod(tree.draws, len(places))
    return [Window(r, depth, share + (i < remainder)) for i, (r, depth) in enumerate(places) if share + (i < remainder)]


class Visits(NamedTuple):
    """How often a token followed the prefix of a position, and how these continuations ended; arrays [M]."""

    position: Ints
    token: Ints
    visits: Ints
    successes: Ints
    truncations: Ints


def count_visits(
    tokens: npt.NDArray[np.integer[Any]],
    offsets: Ints,
    launched: Sequence[Window],
    continued: Sequence[Ints],
    success: AnyArray,
    truncated: AnyArray,
) -> Visits:
    """Visits of the positions of all rollouts by all continuations.

    Args:
        tokens, offsets: the rollouts, [T] and [R+1].
        launched: the window of every continuation, [D].
        continued: its sampled tokens.
    """
    completions = [tokens[a:b] for a, b in pairwise(offsets)]
    shared = {
        (a, b): _common(x, y) for a, x in enumerate(completions) for b, y in enumerate(completions)
    }  # of each pair of rollouts
    counts: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for window, sampled, succeeded, was_truncated in zip(launched, continued, success, truncated, strict=True):
        for r, completion in enumerate(completions):
            if shared[window.rollout, r] < window.depth:
                continue  # this rollout does not share the prefix
            rest = completion[window.depth :]
            reached = min(_common(sampled, rest) + 1, len(sampled), len(rest))
            start = int(offsets[r]) + window.depth
            for i in range(reached):
                entry = counts[start + i, int(sampled[i])]
                entry[0] += 1
                entry[1] += succeeded
                entry[2] += was_truncated
    keys = sorted(counts)
    columns = np.array([[*key, *counts[key]] for key in keys], dtype=np.int64).reshape(-1, 5).T
    return Visits(*columns)


def _common(a: AnyArray, b: AnyArray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def windows_tree(tree: WindowsTree, frame: SamplingFrame, visits: Visits) -> dict[str, AnyArray]:
    """The arrays of a tree: nodes with at least two counted children; unknown inclusion probabilities are set to 1."""
    counted = visits.visits >= tree.min_visits
    position = visits.position[counted]
    nodes, children = np.unique(position, return_counts=True)
    nodes = nodes[children >= 2]
    kept = np.flatnonzero(counted)[np.isin(position, nodes)]
    where, token = visits.position[kept], visits.token[kept]
    probs, p_sq = [], []
    for positions, p in frame.distributions(nodes):
        p_sq += leverage(p)[1].tolist()
        for row, at in enumerate(positions.tolist()):
            probs.append(p[row, token[where == at]].double().cpu().numpy())
    branch_prob = concatenated(probs, np.float64)
    offsets = np.searchsorted(where, np.append(nodes, np.iinfo(np.int64).max)).astype(np.int64)
    in_head = np.add.reduceat(branch_prob, offsets[:-1]) if len(nodes) else np.empty(0)
    return {
        **frame.by_position,
        "node": nodes.astype(np.int64),
        "round": np.zeros(len(nodes), dtype=np.int32),
        "inclusion": np.ones(len(nodes)),
        "share": np.ones(len(nodes)),
        "p_sq": np.array(p_sq, dtype=np.float64),
        "tail_prob": np.maximum(1 - in_head, 0.0),
        "branch_offsets": offsets,
        "branch_token": token.astype(np.int32),
        "branch_prob": branch_prob,
        "branch_tail": np.zeros(len(token), dtype=bool),
        "draws": visits.visits[kept].astype(np.int32),
        "successes": visits.successes[kept].astype(np.int32),
        "truncations": visits.truncations[kept].astype(np.int32),
        **NO_DRAWS,
    }
