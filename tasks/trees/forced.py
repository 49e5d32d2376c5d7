"""The forced plan: candidate tokens and draws of chosen nodes. Nothing here looks at a teacher."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.config import ForcedTree

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Branches(NamedTuple):
    """The branches of one node; arrays [B]. Tail branches stand last, in the order they were sampled."""

    token: Ints
    prob: Floats
    tail: npt.NDArray[np.bool_]
    draws: Ints
    tail_prob: float


def plan_node(tree: ForcedTree, top_tokens: Ints, top_probs: Floats, row: Floats, uniforms: Floats) -> Branches:
    """Head, tail and draws of one node.

    The head is the shortest run of likeliest tokens that leaves less than `tail_limit`, at most `head` long. Where
    more is left, `tail` tokens are sampled from the rest (with replacement) and drawn twice each: two draws of one
    token estimate Q_j^2 without bias, and with it the tail's part of |g|^2.

    Args:
        tree: settings.
        top_tokens, top_probs: the likeliest tokens, falling, [head].
        row: the whole distribution, [V]; its head is set to 0 in place.
        uniforms: [tail], for the tail's tokens.
    """
    possible = int((top_probs > 0).sum())
    enough = np.flatnonzero(1 - np.cumsum(top_probs) < tree.tail_limit)
    head = min(int(enough[0]) + 1 if len(enough) else possible, possible)
    token, prob = top_tokens[:head], top_probs[:head]
    row[token] = 0.0
    cdf = np.cumsum(row)
    tail_prob = float(cdf[-1])
    if tail_prob < tree.tail_limit or tail_prob <= 0.0:
        draws = allocate(tree, prob, tree.draws)
        return Branches(token, prob, np.zeros(head, dtype=bool), draws, tail_prob)
    sampled = np.searchsorted(cdf, uniforms * tail_prob, side="right").clip(max=int(np.flatnonzero(row)[-1]))
    draws = allocate(tree, prob, tree.draws - 2 * tree.tail)
    return Branches(
        np.concatenate([token, sampled]),
        np.concatenate([prob, row[sampled]]),
        np.arange(head + tree.tail) >= head,
        np.concatenate([draws, np.full(tree.tail, 2)]),
        tail_prob,
    )


def allocate(tree: ForcedTree, prob: Floats, draws: int) -> Ints:
    """Draws of the head branches: two each, the rest by the root of their leverage, or all alike.

    Args:
        prob: P of the head, [B].
        draws: in all, at least 2 B.
    """
    spare = draws - 2 * len(prob)
    if tree.allocation == "leverage":
        weight = prob * np.sqrt(np.maximum(0.0, 1 - 2 * prob + np.square(prob).sum()))
    else:
        weight = np.ones(len(prob))
    if weight.sum() <= 0:
        weight = np.ones(len(prob))
    # fill up to the proportional share of all draws, so that the floor of two is not paid twice
    share = weight / weight.sum() * draws
    wanted = np.maximum(share - 2, 0.0)
    wanted *= spare / wanted.sum() if wanted.sum() > 0 else 0.0
    extra = np.floor(wanted).astype(np.int64)
    rest = spare - int(extra.sum())
    order = np.argsort(-(wanted - extra), kind="stable")
    extra[np.resize(order, rest)] += 1
    return np.asarray(2 + extra, dtype=np.int64)
