"""Distillation gradients from probabilities known only at branches."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Settings
from tasks.stages.distillation.directions import divergences, head_direction
from tasks.stages.distillation.losses import distillation_direction, floored
from tasks.stages.distillation.returns import NO_RETURNS
from tasks.statistics.csr import Floats, owners, row_sums


def distill_branches(
    tokens: npt.NDArray[np.int32], tree: Mapping[str, AnyArray], teacher_prob: Floats, losses: Mapping[str, Settings]
) -> dict[str, dict[str, AnyArray]]:
    """The arrays of stage 4 by loss, over the branches and one more token for the rest of both distributions.

    Args:
        tokens: the rollouts, [T].
        tree: a tree's arrays.
        teacher_prob: the teacher's probability of each branch, [B].
    """
    T, offsets, node = len(tokens), tree["branch_offsets"], tree["node"]
    owner = owners(offsets)
    place = np.arange(len(owner)) - offsets[owner]
    width = int(np.diff(offsets).max(initial=0)) + 1
    logs = []
    for prob in (tree["branch_prob"], teacher_prob):
        table = np.zeros((len(node), width))
        table[owner, place] = prob
        table[:, -1] = np.maximum(1 - row_sums(prob, offsets), 0.0)
        with np.errstate(divide="ignore"):
            logs.append(torch.from_numpy(np.log(table)))
    log_p, log_t = logs
    kl, js = (x.numpy() for x in divergences(log_p, log_t))
    sampled = np.flatnonzero(tree["branch_token"] == tokens[node[owner]])

    def everywhere(values: Floats, at: AnyArray = node, fill: float = np.nan) -> Floats:
        out = np.full(T, fill)
        out[at] = values
        return out

    out = {}
    for name, loss in losses.items():
        d = distillation_direction(loss, log_p, log_t).numpy()
        d_bar = (np.exp(log_p.numpy()) * d).sum(axis=1)
        out[name] = {
            "d_sq": everywhere(np.square(d).sum(axis=1), fill=0.0),
            "d_token": everywhere((d[owner, place] - d_bar[owner])[sampled], node[owner[sampled]]),
            "student_kept": np.ones(T),  # losses that truncate are refused
            "teacher_kept": np.ones(T),
            "kl": everywhere(kl),
            "js": everywhere(js),
            "teacher_token_prob": everywhere(teacher_prob[sampled], node[owner[sampled]]),
            "d_bar": d_bar,
            "d": d[owner, place],
            "d_head": head_direction(
                loss, floored(log_p)[owner, place], floored(log_t)[owner, place], offsets, tree["branch_tail"]
            ),
            "teacher_prob": teacher_prob,
            **NO_RETURNS,
        }
    return out
