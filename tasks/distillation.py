"""Stage 4: distillation gradients, exact over the whole vocabulary, streamed in blocks."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Context, Settings, Teacher
from tasks.engines.scoring import View, score_blocks
from tasks.job import Job
from tasks.losses import descent, floored, log_mix
from tasks.questions import Question
from tasks.ragged import Floats, Ints, owners
from tasks.store.artefact import Artefact
from tasks.trees.tree import tempered


def divergences(log_p: torch.Tensor, log_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(P || T) and the Jensen-Shannon divergence, in nats: [n, V], [n, V] -> [n], [n]."""
    log_p, log_t = floored(log_p), floored(log_t)
    p, t, log_m = log_p.exp(), log_t.exp(), log_mix(log_p, log_t, 0.5)
    kl = (p * (log_p - log_t)).sum(-1, dtype=torch.float64)
    js = 0.5 * (p * (log_p - log_m) + t * (log_t - log_m)).sum(-1, dtype=torch.float64)
    return kl.clamp(min=0), js.clamp(min=0)


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
        tree: a tree's arrays: the nodes and branches at which d is kept.
        losses: settings by name.
        temperature: of the policy that weights `d_bar`; the losses are of the untempered distributions.

    Returns:
        for each loss, the arrays of stage 4.
    """
    T, B, N = len(tokens), len(tree["branch_token"]), len(tree["node"])
    shared: dict[str, Floats] = {name: np.zeros(T) for name in ("kl", "js", "teacher_token_prob")}
    teacher_prob = np.zeros(B)
    by_loss = {
        name: {"d_sq": np.zeros(T), "d_bar": np.zeros(N), "d": np.zeros(B), "d_head": np.zeros(B)} for name in losses
    }
    node, branch_offsets = np.asarray(tree["node"]), np.asarray(tree["branch_offsets"])
    stream = score_blocks([student, teacher], tokens, offsets, block=block, group_tokens=group_tokens)
    for positions, (log_p, log_t) in stream:
        sampled = torch.from_numpy(tokens[positions]).long().to(log_t.device)[:, None]
        kl, js = divergences(log_p, log_t)
        shared["kl"][positions], shared["js"][positions] = kl.cpu().numpy(), js.cpu().numpy()
        shared["teacher_token_prob"][positions] = log_t.gather(-1, sampled)[:, 0].double().exp().cpu().numpy()

        first, last = np.searchsorted(node, [positions[0], positions[-1] + 1])
        in_block = torch.from_numpy(node[first:last] - positions[0]).to(log_p.device)
        branches = slice(int(branch_offsets[first]), int(branch_offsets[last]))
        starts = branch_offsets[first : last + 1]
        owner = torch.from_numpy(owners(starts))
        row = in_block[owner.to(log_p.device)]
        column = torch.from_numpy(tree["branch_token"][branches]).long().to(log_p.device)
        teacher_prob[branches] = log_t[row, column].double().exp().cpu().numpy()
        head = torch.from_numpy(~tree["branch_tail"][branches]).to(log_p.device)
        place = torch.arange(branches.start, branches.stop) - torch.from_numpy(starts)[owner]
        heads = [renormalised(x[row, column], owner, place, head) for x in (log_p, log_t)]
        policy = tempered(log_p[in_block], temperature)
        for name, loss in losses.items():
            d = descent(loss, log_p, log_t)
            out = by_loss[name]
            out["d_sq"][positions] = d.square().sum(-1, dtype=torch.float64).cpu().numpy()
            out["d_bar"][first:last] = (policy * d[in_block]).sum(-1, dtype=torch.float64).cpu().numpy()
            out["d"][branches] = d[row, column].double().cpu().numpy()
            if len(column):
                d_head = descent(loss, *heads)[owner, place]
                out["d_head"][branches] = torch.where(head.cpu(), d_head.cpu(), 0.0).double().numpy()
    return {name: {**shared, "teacher_prob": teacher_prob, **out} for name, out in by_loss.items()}


def renormalised(log_probs: torch.Tensor, row: torch.Tensor, place: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the head's branches alone: [B] values with row, place and membership -> [N, most]."""
    shape = (int(row[-1]) + 1, int(place.max()) + 1) if len(row) else (0, 0)
    table = log_probs.new_full(shape, -torch.inf)
    table[row, place] = log_probs.masked_fill(~head, -torch.inf)
    return torch.log_softmax(table, dim=-1)


def make_distillation(
    job: Job,
    question: Question,
    teacher: Teacher,
    context: Context,
    losses: Mapping[str, Settings],
    rollouts: Artefact,
    tree: Artefact,
) -> dict[str, dict[str, AnyArray]]:
    """Stage 4 of one question, for one teacher with one context and the losses that are missing."""
    student = View(job.student, rollouts["prompt"].tolist())
    engine = job.student if job.is_student(teacher) else job.engine(teacher.model or job.config.student)
    return distill(
        student,
        View(engine, job.teacher_prompt_ids(teacher, context, question)),
        rollouts["tokens"],
        rollouts["offsets"],
        tree.arrays,
        losses,
        temperature=job.config.sampling.temperature,
        block=job.config.engine.score_rows,
        group_tokens=job.config.engine.batch_tokens,
    )
