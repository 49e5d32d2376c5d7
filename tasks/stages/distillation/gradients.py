"""Distillation gradients, exact over the whole vocabulary, streamed in blocks."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Settings
from tasks.engines.scoring import View, score_blocks, tempered
from tasks.stages.distillation.directions import divergences, head_direction
from tasks.stages.distillation.losses import distillation_direction
from tasks.statistics.csr import Floats, Ints, owners


def distill(
    student: View,
    teacher: View,
    tokens: npt.NDArray[np.int32],
    offsets: Ints,
    tree: Mapping[str, AnyArray],
    losses: Mapping[str, Settings],
    *,
    temperature: float,
    block: int,
    group_tokens: int,
) -> dict[str, dict[str, AnyArray]]:
    """Distillation gradients of one teacher for several losses, from one pass over student and teacher.

    Args:
        student, teacher: models with their prompts; equal ones are computed once.
        tokens, offsets: completions, CSR.
        tree: a tree's arrays: the nodes and branches at which d is returned.
        losses: settings by name.
        temperature: of the policy that weights means of d; losses use the untempered distributions.

    Returns:
        for each loss, the arrays of stage 4.
    """
    T, B, N = len(tokens), len(tree["branch_token"]), len(tree["node"])
    shared: dict[str, Floats] = {name: np.zeros(T) for name in ("kl", "js", "teacher_token_prob")}
    teacher_prob = np.zeros(B)
    by_loss = {
        name: {
            "d_sq": np.zeros(T),
            "d_token": np.zeros(T),
            "d_bar": np.zeros(N),
            "d": np.zeros(B),
            "d_head": np.zeros(B),
        }
        for name in losses
    }
    stream = score_blocks([student, teacher], tokens, offsets, block=block, group_tokens=group_tokens)
    for positions, (log_p, log_t) in stream:
        sampled = torch.from_numpy(tokens[positions]).long().to(log_t.device)[:, None]
        kl, js = divergences(log_p, log_t)
        shared["kl"][positions], shared["js"][positions] = kl.cpu().numpy(), js.cpu().numpy()
        shared["teacher_token_prob"][positions] = log_t.gather(-1, sampled)[:, 0].double().exp().cpu().numpy()

        at = _places(tree, positions, log_p.device)
        p_branches, t_branches = log_p[at.row, at.token], log_t[at.row, at.token]
        teacher_prob[at.branches] = t_branches.double().exp().cpu().numpy()
        policy = tempered(log_p, temperature)
        for name, loss in losses.items():
            d = distillation_direction(loss, log_p, log_t)
            d_bar = (policy * d).sum(-1, dtype=torch.float64)
            out = by_loss[name]
            out["d_sq"][positions] = d.square().sum(-1, dtype=torch.float64).cpu().numpy()
            out["d_token"][positions] = (d.gather(-1, sampled)[:, 0].double() - d_bar).cpu().numpy()
            out["d_bar"][at.nodes] = d_bar[at.node].cpu().numpy()
            out["d"][at.branches] = d[at.row, at.token].double().cpu().numpy()
            tail = tree["branch_tail"][at.branches]
            out["d_head"][at.branches] = head_direction(loss, p_branches, t_branches, at.starts, tail)
    return {name: {**shared, "teacher_prob": teacher_prob, **out} for name, out in by_loss.items()}


class _Places(NamedTuple):
    """A tree's nodes and branches in a block of rows: their slices, and the row (and token) of each in the block.

    `starts` are the offsets of each node's branches among those of the block.
    """

    nodes: slice
    branches: slice
    starts: Ints
    node: torch.Tensor
    row: torch.Tensor
    token: torch.Tensor


def _places(tree: Mapping[str, AnyArray], positions: Ints, device: torch.device) -> _Places:
    node, offsets = np.asarray(tree["node"]), np.asarray(tree["branch_offsets"])
    first, last = np.searchsorted(node, [positions[0], positions[-1] + 1])
    branches = slice(int(offsets[first]), int(offsets[last]))
    starts = offsets[first : last + 1] - branches.start
    in_block = torch.from_numpy(node[first:last] - positions[0]).to(device)
    row = in_block[torch.from_numpy(owners(starts)).to(device)]
    token = torch.from_numpy(tree["branch_token"][branches]).long().to(device)
    return _Places(slice(first, last), branches, starts, in_block, row, token)
