"""Distillation gradients, exact over the whole vocabulary, streamed in blocks."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Settings
from schemas.signals import Signal, Source
from tasks.engines.scoring import Scored, score_blocks, tempered
from tasks.stages.distillation.directions import divergences, head_direction
from tasks.stages.distillation.losses import LOG_ZERO, distillation_direction, kept_probability, squared_norm
from tasks.stages.distillation.returns import NO_RETURNS
from tasks.statistics.csr import Floats, Ints, owners


def distill(
    student: Scored,
    teachers: Mapping[Source, Scored],
    tokens: npt.NDArray[np.int32],
    offsets: Ints,
    tree: Mapping[str, AnyArray],
    losses: Mapping[Source, Mapping[str, Settings]],
    *,
    temperature: float,
    block: int,
    group_tokens: int,
) -> dict[Signal, dict[str, AnyArray]]:
    """Distillation gradients of several teachers with their contexts, from one pass over each and over the student.

    Args:
        student, teachers: models with their prompts; equal ones are computed once. What a teacher does not
            tell is filled in (`complete`).
        tokens, offsets: completions, CSR.
        tree: a tree's arrays: the nodes and branches at which d is returned.
        losses: settings by name, for each teacher.
        temperature: of the policy that weights means of d; losses use the untempered distributions.

    Returns:
        for each signal, the arrays of stage 4.
    """
    by_source = {source: _Gradients(len(tokens), tree, losses[source]) for source in teachers}
    stream = score_blocks([student, *teachers.values()], tokens, offsets, block=block, group_tokens=group_tokens)
    for positions, (log_p, *of_teachers) in stream:
        sampled = torch.from_numpy(tokens[positions]).long().to(log_p.device)[:, None]
        policy, at = tempered(log_p, temperature), _places(tree, positions, log_p.device)
        for (source, gradients), log_t in zip(by_source.items(), of_teachers, strict=True):
            known = None
            if teachers[source].partial:
                known, log_t = log_t[:, :-1].isfinite(), complete(log_t, log_p)
            gradients.add(positions, sampled, at, policy, log_p, log_t)
            if known is not None:
                gradients.mark(positions, sampled, at, log_p, log_t, known)
    return {Signal(*source, name): arrays for source, g in by_source.items() for name, arrays in g.by_loss().items()}


def complete(log_t: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """A teacher's distribution where it is known for some tokens only, -inf elsewhere: [n, V + 1], [n, V] -> [n, V].

    Its probability of all the others, the last column, is divided among them as the student's is: then every divergence
    of ratios is that of the known tokens and one more that stands for the rest. Where nothing is known it is the
    student's.
    """
    log_t, rest_t = log_t[:, :-1], log_t[:, -1:].clamp(min=LOG_ZERO)
    known = log_t.isfinite()
    rest_p = log_p.masked_fill(known, -torch.inf).logsumexp(-1, keepdim=True).clamp(min=LOG_ZERO)
    filled = torch.where(known, log_t, log_p - rest_p + rest_t)
    return torch.where(known.any(-1, keepdim=True), filled, log_p)


class _Gradients:
    """The arrays of one teacher with one context, filled block by block."""

    def __init__(self, tokens: int, tree: Mapping[str, AnyArray], losses: Mapping[str, Settings]) -> None:
        B, N = len(tree["branch_token"]), len(tree["node"])
        self._losses, self._tail = losses, tree["branch_tail"]
        self._shared: dict[str, Floats] = {name: np.zeros(tokens) for name in ("kl", "js", "teacher_token_prob")}
        self._shared["teacher_prob"] = np.zeros(B)
        by_token = ("d_sq", "d_token", "student_kept", "teacher_kept")
        lengths = {**dict.fromkeys(by_token, tokens), "d_bar": N, "d": B, "d_head": B}
        self._by_loss = {loss: {name: np.zeros(length) for name, length in lengths.items()} for loss in losses}

    def add(
        self,
        positions: Ints,
        sampled: torch.Tensor,
        at: "_Places",
        policy: torch.Tensor,
        log_p: torch.Tensor,
        log_t: torch.Tensor,
    ) -> None:
        """Take a block: its positions [n], their sampled tokens [n, 1], and distributions [n, V]."""
        kl, js = divergences(log_p, log_t)
        self._shared["kl"][positions], self._shared["js"][positions] = kl.cpu().numpy(), js.cpu().numpy()
        self._shared["teacher_token_prob"][positions] = log_t.gather(-1, sampled)[:, 0].double().exp().cpu().numpy()
        p_branches, t_branches = log_p[at.row, at.token], log_t[at.row, at.token]
        self._shared["teacher_prob"][at.branches] = t_branches.double().exp().cpu().numpy()
        for name, loss in self._losses.items():
            d = distillation_direction(loss, log_p, log_t, policy)
            d_bar = (policy * d).sum(-1, dtype=torch.float64)
            out = self._by_loss[name]
            student_kept, teacher_kept = kept_probability(loss, log_p, log_t)
            out["student_kept"][positions] = student_kept.cpu().numpy()
            out["teacher_kept"][positions] = teacher_kept.cpu().numpy()
            out["d_sq"][positions] = squared_norm(loss, d, log_p, log_t, policy).cpu().numpy()
            out["d_token"][positions] = (d.gather(-1, sampled)[:, 0].double() - d_bar).cpu().numpy()
            out["d_bar"][at.nodes] = d_bar[at.node].cpu().numpy()
            out["d"][at.branches] = d[at.row, at.token].double().cpu().numpy()
            tail = self._tail[at.branches]
            out["d_head"][at.branches] = head_direction(
                loss, p_branches, t_branches, at.starts, tail, policy[at.row, at.token].log()
            )

    def mark(
        self,
        positions: Ints,
        sampled: torch.Tensor,
        at: "_Places",
        log_p: torch.Tensor,
        log_t: torch.Tensor,
        known: torch.Tensor,
    ) -> None:
        """Note in a block what the teacher tells: nothing at some positions, and there of known tokens only."""
        covered = known.any(-1)
        untold = ~covered.cpu().numpy()
        for name in ("kl", "js", "teacher_token_prob"):
            self._shared[name][positions[untold]] = np.nan
        self._shared["teacher_token_prob"][positions[~known.gather(-1, sampled)[:, 0].cpu().numpy()]] = np.nan
        self._shared["teacher_prob"][np.arange(at.branches.start, at.branches.stop)[untold[at.row.cpu().numpy()]]] = (
            np.nan
        )
        for name, log_probs in (("student_kept", log_p), ("teacher_kept", log_t)):
            share = log_probs.exp().masked_fill(~known, 0.0).sum(-1, dtype=torch.float64).cpu().numpy()
            for out in self._by_loss.values():
                out[name][positions] = np.where(untold, np.nan, share)

    def by_loss(self) -> dict[str, dict[str, AnyArray]]:
        """The arrays of each loss."""
        return {name: {**self._shared, **out, **NO_RETURNS} for name, out in self._by_loss.items()}


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
