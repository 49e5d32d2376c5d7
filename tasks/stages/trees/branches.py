"""The branches of a node: candidate tokens and their draws. Nothing here depends on a teacher."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.config import Branching
from tasks.statistics.csr import Floats, Ints


class Branches(NamedTuple):
    """The branches of one node; arrays [B]. Tail branches come last, in the order in which they were sampled."""

    token: Ints
    prob: Floats
    tail: npt.NDArray[np.bool_]
    draws: Ints
    tail_prob: float


def split_head_and_tail(branching: Branching, draws: int, p: torch.Tensor, uniforms: torch.Tensor) -> list[Branches]:
    """Head, tail and draws of some nodes.

    The head is the smallest set of likeliest tokens that leaves a probability below `tail_limit`, with at most `head`
    tokens. Where more is left, `tail` tokens are sampled from the rest (with replacement) and drawn twice each: two
    draws of a token give an unbiased estimate of Q_j^2, and so of the tail's part of |g|^2.

    Args:
        branching: settings.
        draws: per node.
        p: next-token distributions of the nodes, [n, V].
        uniforms: for the tail's tokens, [n, tail].
    """
    top = p.topk(min(branching.head, p.shape[-1]), dim=-1)
    left = 1 - top.values.double().cumsum(-1)
    ended = (left < branching.tail_limit) | (left <= 0)
    # the first size that leaves little enough; impossible tokens are never in the head
    size = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, top.values.shape[-1])
    size = torch.minimum(size, (top.values > 0).sum(-1))
    in_head = torch.arange(top.values.shape[-1], device=p.device) < size[:, None]

    cdf = p.double().scatter(-1, top.indices, top.values.double().masked_fill(in_head, 0.0)).cumsum_(-1)
    total = cdf[:, -1:].contiguous()
    sampled = torch.searchsorted(cdf, uniforms.to(cdf) * total, right=True)
    sampled = torch.minimum(sampled, (cdf < total).sum(-1, keepdim=True))  # u close to 1
    sampled_prob = p.gather(-1, sampled)
    rows = zip(
        *(
            x.cpu().numpy()
            for x in (top.indices, top.values.double(), size, sampled, sampled_prob.double(), total[:, 0])
        ),
        strict=True,
    )
    return [
        _branches(branching, draws, token[:n], prob[:n], tail, tail_p, float(mass))
        for token, prob, n, tail, tail_p, mass in rows
    ]


def _branches(
    branching: Branching, draws: int, token: Ints, prob: Floats, tail_token: Ints, tail_p: Floats, tail_prob: float
) -> Branches:
    head = len(token)
    if tail_prob < branching.tail_limit or tail_prob <= 0.0:
        return Branches(
            token.copy(), prob.copy(), np.zeros(head, dtype=bool), allocate(branching, prob, draws), tail_prob
        )
    of_head = allocate(branching, prob, draws - 2 * branching.tail)
    return Branches(
        np.concatenate([token, tail_token]),
        np.concatenate([prob, tail_p]),
        np.arange(head + branching.tail) >= head,
        np.concatenate([of_head, np.full(branching.tail, 2)]),
        tail_prob,
    )


def allocate(branching: Branching, prob: Floats, draws: int) -> Ints:
    """Draws of the head branches: two each, the rest in proportion to the root of their leverage, or equally.

    Args:
        prob: P of the head, [B].
        draws: total, at least 2 B.
    """
    spare = draws - 2 * len(prob)
    if branching.allocation == "leverage":
        weight = prob * np.sqrt(np.maximum(0.0, 1 - 2 * prob + np.square(prob).sum()))
    else:
        weight = np.ones(len(prob))
    if weight.sum() <= 0:
        weight = np.ones(len(prob))
    # fill up to the proportional share of all draws, so that the minimum of two is not counted twice
    share = weight / weight.sum() * draws
    wanted = np.maximum(share - 2, 0.0)
    wanted *= spare / wanted.sum() if wanted.sum() > 0 else 0.0
    extra = np.floor(wanted).astype(np.int64)
    rest = spare - int(extra.sum())
    order = np.argsort(-(wanted - extra), kind="stable")
    extra[np.resize(order, rest)] += 1
    return np.asarray(2 + extra, dtype=np.int64)
