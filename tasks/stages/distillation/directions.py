"""Shared by streamed and recorded gradients: divergences, and the direction restricted to a node's head."""

import numpy as np
import numpy.typing as npt
import torch

from schemas.config import Settings
from tasks.stages.distillation.losses import distillation_direction, floored, log_mix
from tasks.statistics.csr import Floats, Ints, owners


def divergences(log_p: torch.Tensor, log_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(P || T) and the Jensen-Shannon divergence, in nats: [n, V], [n, V] -> [n], [n]."""
    log_p, log_t = floored(log_p), floored(log_t)
    p, t, log_m = log_p.exp(), log_t.exp(), log_mix(log_p, log_t, 0.5)
    kl = (p * (log_p - log_t)).sum(-1, dtype=torch.float64)
    js = 0.5 * (p * (log_p - log_m) + t * (log_t - log_m)).sum(-1, dtype=torch.float64)
    return kl.clamp(min=0), js.clamp(min=0)


def head_direction(
    loss: Settings,
    log_p: torch.Tensor,
    log_t: torch.Tensor,
    offsets: Ints,
    tail: npt.NDArray[np.bool_],
    log_policy: torch.Tensor | None = None,
) -> Floats:
    """d of student and teacher renormalised over the head's branches, 0 in the tail.

    Args:
        log_p, log_t: log-probabilities at the branches, [B].
        log_policy: those of the policy that samples, where that is not the student's own, [B].
        offsets: where each node's branches start, [N+1].
        tail: branches that are not in the head, [B].
    """
    if not len(tail):
        return np.empty(0)
    row = torch.from_numpy(owners(offsets))
    place = torch.arange(len(row)) - torch.from_numpy(np.asarray(offsets, dtype=np.int64))[row]
    head = torch.from_numpy(~np.asarray(tail))
    heads = []
    for log_probs in (log_p, log_t, log_p if log_policy is None else log_policy):
        table = log_probs.new_full((len(offsets) - 1, int(place.max()) + 1), -torch.inf)
        table[row, place] = log_probs.masked_fill(~head.to(log_probs.device), -torch.inf)
        heads.append(torch.log_softmax(table, dim=-1))
    d = distillation_direction(loss, heads[0], heads[1], heads[2].exp())
    return np.asarray(torch.where(head, d[row, place].cpu(), 0.0).double().numpy())
