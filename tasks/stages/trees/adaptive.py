"""The adaptive plan: rounds of equal size, each with its own node sample with known inclusion probabilities.

A round's inclusion probabilities may depend on the outcomes of earlier rounds. Its node sample and its draws are fresh,
so its estimates are unbiased given the earlier rounds; so is the mean over rounds, since all rounds have equal weight.
"""

from collections.abc import Sequence

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import AdaptiveTree
from tasks.stages.trees.design import Completed, RoundDesign, assemble, design_round, observed, tree_of
from tasks.stages.trees.frame import SamplingFrame
from tasks.statistics.csr import Floats, Ints, row_sums
from tasks.statistics.design import inclusion_probabilities, systematic_sample
from tasks.statistics.estimators import estimate_squared_norm, estimate_value, pool_rounds

_KNOWN = 0.95
"""Reliability of |g|^2 from which a node gets no more focused draws."""
_LEAST_VARIANCE = 0.1
"""Smallest outcome variance assumed at any position, as a share of the question's: no position is ever excluded."""


class AdaptivePlanner:
    """Plans rounds until the budget is spent or the precision is reached."""

    def __init__(self, tree: AdaptiveTree) -> None:
        self._tree = tree

    def next_round(self, frame: SamplingFrame, completed: Sequence[Completed], seconds: float) -> RoundDesign | None:
        """The next round; None if the budget is spent or the precision is reached."""
        tree = self._tree
        if completed and _finished(tree, frame, completed, seconds):
            return None
        if tree.target == "tokens" and len(completed) % 2 == 1:
            chosen = promising(tree, frame, completed)
            design = design_round(frame, chosen, np.ones(len(chosen)), tree, tree.node_draws, len(completed))
            return RoundDesign(design.arrays, focused=True)
        sizes = frame.leverage * outcome_variance(frame, completed)
        inclusion = inclusion_probabilities(sizes, tree.round // tree.node_draws)
        if completed and not inclusion.any():
            return None  # the student is certain of every token: nothing to branch
        nodes = systematic_sample(inclusion, frame.start(len(completed)))
        return design_round(frame, nodes, inclusion[nodes], tree, tree.node_draws, len(completed))

    def tree(self, frame: SamplingFrame, completed: Sequence[Completed]) -> dict[str, AnyArray]:
        """The tree of all rounds."""
        return tree_of(frame, completed)


def _finished(tree: AdaptiveTree, frame: SamplingFrame, completed: Sequence[Completed], seconds: float) -> bool:
    n = sum(c.draws for c in completed)
    tokens = [c.tokens for c in completed]
    if n + tree.round > tree.draws:
        return True
    if tree.tokens is not None and sum(tokens) + max(tokens) > tree.tokens:
        return True
    if tree.seconds is not None and seconds * (1 + 1 / len(completed)) > tree.seconds:
        return True
    return tree.half_width is not None and half_width(frame, completed) <= tree.half_width


def half_width(frame: SamplingFrame, completed: Sequence[Completed]) -> float:
    """Half-width of the 95 % interval of sqrt(sum |g|^2) of a rollout, from the spread between rounds.

    Infinite with fewer than four rounds.
    """
    sums = []
    for c in completed:
        if not c.design.focused:
            sums.append(float((estimate_squared_norm(observed(c))[0] / c.design.arrays["inclusion"]).sum()))
    if len(sums) < 4:
        return float("inf")
    rollouts = len(frame.correct)
    mean, error = np.mean(sums) / rollouts, 1.96 * np.std(sums, ddof=1) / np.sqrt(len(sums)) / rollouts
    return float(np.sqrt(max(mean, 0.0) + error) - np.sqrt(max(mean - error, 0.0))) / 2


def promising(tree: AdaptiveTree, frame: SamplingFrame, completed: Sequence[Completed]) -> Ints:
    """Sampled nodes with the largest estimates of |g|^2 that are not yet reliable: increasing positions."""
    arrays = assemble(frame, completed)
    unbiased, plain = estimate_squared_norm(pool_rounds(arrays).outcomes)
    unknown = unbiased < _KNOWN * plain
    worth = np.where(unknown, np.maximum(unbiased, 0.0), -1.0)
    order = np.argsort(-worth, kind="stable")[: tree.round // tree.node_draws]
    return np.sort(np.unique(arrays["node"])[order])


def outcome_variance(frame: SamplingFrame, completed: Sequence[Completed]) -> Floats:
    """Estimated V (1 - V) at every position, [T].

    Values of the sampled nodes are shrunk towards the question's mean with the weight of two draws, and interpolated
    linearly between them within each rollout, with distance measured in cumulative root leverage.
    """
    correct, offsets = frame.correct, frame.offsets
    mean = (correct.sum() + 0.5) / (len(correct) + 1)
    if completed:
        mean = (mean * len(correct) + sum(c.successes.sum() for c in completed)) / (
            len(correct) + sum(c.draws for c in completed)
        )
    profile = np.full(len(frame.leverage), mean)
    if completed:
        outcomes = [observed(c) for c in completed]
        node = np.concatenate([c.design.arrays["node"] for c in completed])
        draws = np.concatenate([row_sums(o.draws, o.offsets) for o in outcomes])
        known = np.concatenate([np.clip(estimate_value(o), 0.0, 1.0) for o in outcomes])
        places, inverse = np.unique(node, return_inverse=True)
        n = np.bincount(inverse, draws)
        v = (np.bincount(inverse, draws * known) + 2 * mean) / (n + 2)
        distance = np.cumsum(np.sqrt(frame.leverage))
        for r in range(len(correct)):
            first, last = np.searchsorted(places, offsets[r : r + 2])
            if last > first:
                part = slice(int(offsets[r]), int(offsets[r + 1]))
                profile[part] = np.interp(distance[part], distance[places[first:last]], v[first:last])
    floor = _LEAST_VARIANCE * mean * (1 - mean)
    return np.asarray(np.maximum(profile * (1 - profile), floor))
