"""The adaptive plan: rounds of the same size, each a sample of nodes of its own with known probabilities.

A round's inclusion probabilities may follow from all that earlier rounds showed. The sample that it takes with them and
its draws are fresh, so its estimates are unbiased whatever was learned before; the mean over rounds is too, since every
round counts the same.
"""

from collections.abc import Sequence

import numpy as np

from schemas.config import AdaptiveTree
from tasks.stages.trees.rounds import Drawn, Ground, Plan, assembled, plan_round
from tasks.statistics.csr import Floats, Ints, row_sums
from tasks.statistics.design import inclusion_probabilities, systematic_sample
from tasks.statistics.estimators import merged, squared_norm, value

_KNOWN = 0.95
"""Share of |g|^2 as drawn that is signal, from which on a node is left alone."""
_LEAST_VARIANCE = 0.1
"""Share of a question's outcome variance that any position is thought to have: nothing is ever ruled out."""


def adaptive_plan(tree: AdaptiveTree, ground: Ground, drawn: Sequence[Drawn], seconds: float) -> Plan | None:
    """The next round; None where the budget is spent or the precision reached.

    Args:
        drawn: the rounds so far.
        seconds: that they took.
    """
    if drawn and _finished(tree, ground, drawn, seconds):
        return None
    if tree.target == "tokens" and len(drawn) % 2 == 1:
        chosen = promising(tree, ground, drawn)
        plan = plan_round(ground, chosen, np.ones(len(chosen)), tree, tree.node_draws, len(drawn))
        return plan._replace(focused=True)
    variance = outcome_variance(ground, drawn)
    sizes = ground.leverage * variance
    inclusion = inclusion_probabilities(sizes, tree.round // tree.node_draws)
    if drawn and not inclusion.any():
        return None  # the student is certain of every token: nothing to branch
    nodes = systematic_sample(inclusion, ground.start(len(drawn)))
    return plan_round(ground, nodes, inclusion[nodes], tree, tree.node_draws, len(drawn))


def _finished(tree: AdaptiveTree, ground: Ground, drawn: Sequence[Drawn], seconds: float) -> bool:
    n = sum(d.plan.draws for d in drawn)
    tokens = [d.tokens for d in drawn]
    if n + tree.round > tree.draws:
        return True
    if tree.tokens is not None and sum(tokens) + max(tokens) > tree.tokens:
        return True
    if tree.seconds is not None and seconds * (1 + 1 / len(drawn)) > tree.seconds:
        return True
    return tree.half_width is not None and half_width(ground, drawn) <= tree.half_width


def half_width(ground: Ground, drawn: Sequence[Drawn]) -> float:
    """Half-width of the 95 % interval of sqrt(sum |g|^2) of a rollout, from the spread between rounds.

    Infinite with fewer than four rounds.
    """
    sums = []
    for d in drawn:
        if not d.plan.focused:
            sums.append(float((squared_norm(d.outcomes)[0] / d.plan.arrays["inclusion"]).sum()))
    if len(sums) < 4:
        return float("inf")
    rollouts = len(ground.correct)
    mean, error = np.mean(sums) / rollouts, 1.96 * np.std(sums, ddof=1) / np.sqrt(len(sums)) / rollouts
    return float(np.sqrt(max(mean, 0.0) + error) - np.sqrt(max(mean - error, 0.0))) / 2


def promising(tree: AdaptiveTree, ground: Ground, drawn: Sequence[Drawn]) -> Ints:
    """Nodes seen so far whose |g|^2 seems largest and is not yet known well: positions, increasing."""
    arrays = assembled(ground, drawn)
    unbiased, plain = squared_norm(merged(arrays).outcomes)
    unknown = unbiased < _KNOWN * plain
    worth = np.where(unknown, np.maximum(unbiased, 0.0), -1.0)
    order = np.argsort(-worth, kind="stable")[: tree.round // tree.node_draws]
    return np.sort(np.unique(arrays["node"])[order])


def outcome_variance(ground: Ground, drawn: Sequence[Drawn]) -> Floats:
    """V (1 - V) at every position, as far as it is known, [T].

    Values of the nodes so far, drawn towards the question's mean as if by two more draws, and between them in each
    rollout by straight lines over the leverage that lies between.
    """
    correct, offsets = ground.correct, ground.offsets
    mean = (correct.sum() + 0.5) / (len(correct) + 1)
    if drawn:
        mean = (mean * len(correct) + sum(d.successes.sum() for d in drawn)) / (
            len(correct) + sum(d.plan.draws for d in drawn)
        )
    profile = np.full(len(ground.leverage), mean)
    if drawn:
        node = np.concatenate([d.plan.arrays["node"] for d in drawn])
        draws = np.concatenate([row_sums(d.outcomes.draws, d.outcomes.offsets) for d in drawn])
        known = np.concatenate([np.clip(value(d.outcomes), 0.0, 1.0) for d in drawn])
        places, inverse = np.unique(node, return_inverse=True)
        n = np.bincount(inverse, draws)
        v = (np.bincount(inverse, draws * known) + 2 * mean) / (n + 2)
        distance = np.cumsum(np.sqrt(ground.leverage))
        for r in range(len(correct)):
            first, last = np.searchsorted(places, offsets[r : r + 2])
            if last > first:
                part = slice(int(offsets[r]), int(offsets[r + 1]))
                profile[part] = np.interp(distance[part], distance[places[first:last]], v[first:last])
    floor = _LEAST_VARIANCE * mean * (1 - mean)
    return np.asarray(np.maximum(profile * (1 - profile), floor))
