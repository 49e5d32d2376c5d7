"""Stage 4: distillation gradients, exact over the whole vocabulary, streamed in blocks."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from schemas.arrays import AnyArray
from schemas.config import Settings
from tasks.engines.scoring import View, score_blocks, tempered
from tasks.inputs.questions import Question
from tasks.inputs.recorded import RecordedBranches, RecordedQuestion
from tasks.run.keys import Source, taught
from tasks.run.session import Job
from tasks.stages.distillation.losses import descent, floored, log_mix
from tasks.statistics.csr import Floats, Ints, owners, row_sums


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
        temperature: of the policy that weights means of d; the losses are of the untempered distributions.

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
        starts = branch_offsets[first : last + 1] - branches.start
        row = in_block[torch.from_numpy(owners(starts)).to(log_p.device)]
        column = torch.from_numpy(tree["branch_token"][branches]).long().to(log_p.device)
        teacher_prob[branches] = log_t[row, column].double().exp().cpu().numpy()
        p_branches, t_branches = log_p[row, column], log_t[row, column]
        policy = tempered(log_p, temperature)
        for name, loss in losses.items():
            d = descent(loss, log_p, log_t)
            d_bar = (policy * d).sum(-1, dtype=torch.float64)
            out = by_loss[name]
            out["d_sq"][positions] = d.square().sum(-1, dtype=torch.float64).cpu().numpy()
            out["d_token"][positions] = (d.gather(-1, sampled)[:, 0].double() - d_bar).cpu().numpy()
            out["d_bar"][first:last] = d_bar[in_block].cpu().numpy()
            out["d"][branches] = d[row, column].double().cpu().numpy()
            out["d_head"][branches] = head_direction(
                loss, p_branches, t_branches, starts, tree["branch_tail"][branches]
            )
    return {name: {**shared, "teacher_prob": teacher_prob, **out} for name, out in by_loss.items()}


def head_direction(
    loss: Settings, log_p: torch.Tensor, log_t: torch.Tensor, offsets: Ints, tail: npt.NDArray[np.bool_]
) -> Floats:
    """d of student and teacher renormalised over the head's branches alone, 0 in the tail.

    Args:
        log_p, log_t: log-probabilities at the branches, [B].
        offsets: where each node's branches start, [N+1].
        tail: branches that are not of the head, [B].
    """
    if not len(tail):
        return np.empty(0)
    row = torch.from_numpy(owners(offsets))
    place = torch.arange(len(row)) - torch.from_numpy(np.asarray(offsets, dtype=np.int64))[row]
    head = torch.from_numpy(~np.asarray(tail))
    heads = []
    for log_probs in (log_p, log_t):
        table = log_probs.new_full((len(offsets) - 1, int(place.max()) + 1), -torch.inf)
        table[row, place] = log_probs.masked_fill(~head.to(log_probs.device), -torch.inf)
        heads.append(torch.log_softmax(table, dim=-1))
    return np.asarray(torch.where(head, descent(loss, *heads)[row, place].cpu(), 0.0).double().numpy())


def recorded_distillation(
    question: RecordedQuestion, teacher: RecordedBranches, losses: Mapping[str, Settings]
) -> dict[str, dict[str, AnyArray]]:
    """The arrays of stage 4 by loss: of the branches and, as one more token, the rest of both distributions."""
    tree, T = question.tree, len(question.rollouts["tokens"])
    offsets, node = tree["branch_offsets"], tree["node"]
    owner = owners(offsets)
    place = np.arange(len(owner)) - offsets[owner]
    width = int(np.diff(offsets).max(initial=0)) + 1
    logs = []
    for prob in (tree["branch_prob"], teacher.prob):
        table = np.zeros((len(node), width))
        table[owner, place] = prob
        table[:, -1] = np.maximum(1 - row_sums(prob, offsets), 0.0)
        with np.errstate(divide="ignore"):
            logs.append(torch.from_numpy(np.log(table)))
    log_p, log_t = logs
    kl, js = (x.numpy() for x in divergences(log_p, log_t))
    sampled = np.flatnonzero(tree["branch_token"] == question.rollouts["tokens"][node[owner]])

    def everywhere(values: Floats, at: AnyArray = node, fill: float = np.nan) -> Floats:
        out = np.full(T, fill)
        out[at] = values
        return out

    out = {}
    for name, loss in losses.items():
        d = descent(loss, log_p, log_t).numpy()
        d_bar = (np.exp(log_p.numpy()) * d).sum(axis=1)
        out[name] = {
            "d_sq": everywhere(np.square(d).sum(axis=1), fill=0.0),
            "d_token": everywhere((d[owner, place] - d_bar[owner])[sampled], node[owner[sampled]]),
            "kl": everywhere(kl),
            "js": everywhere(js),
            "teacher_token_prob": everywhere(teacher.prob[sampled], node[owner[sampled]]),
            "d_bar": d_bar,
            "d": d[owner, place],
            "d_head": head_direction(
                loss, floored(log_p)[owner, place], floored(log_t)[owner, place], offsets, tree["branch_tail"]
            ),
            "teacher_prob": teacher.prob,
        }
    return out


def make_distillation(
    job: Job,
    question: Question,
    source: Source,
    losses: Mapping[str, Settings],
    rollouts: Mapping[str, AnyArray],
    tree: Mapping[str, AnyArray],
) -> dict[str, dict[str, AnyArray]]:
    """Stage 4 of one question, for one teacher with one context and the losses that are missing."""
    if job.recorded:
        recorded = job.recorded[question.id]
        return recorded_distillation(recorded, recorded.teachers[source.teacher], losses)
    teacher, context = taught(job.config)[source]
    return distill(
        View(job.student, rollouts["prompt"].tolist()),
        View(job.teacher_scorer(teacher), job.teacher_prompt_ids(teacher, context, question)),
        rollouts["tokens"],
        rollouts["offsets"],
        tree,
        losses,
        temperature=job.config.sampling.temperature,
        block=job.config.engine.score_rows,
        group_tokens=job.config.engine.batch_tokens,
    )


NO_NODES: dict[str, AnyArray] = {
    "node": np.empty(0, dtype=np.int64),
    "branch_offsets": np.zeros(1, dtype=np.int64),
    "branch_token": np.empty(0, dtype=np.int32),
    "branch_tail": np.empty(0, dtype=bool),
}


def make_ranking(
    job: Job, question: Question, source: Source, losses: Mapping[str, Settings], rollouts: Mapping[str, AnyArray]
) -> dict[str, dict[str, AnyArray]]:
    """What a ranking reads: stage 4 at the sampled tokens alone, without a tree."""
    made = make_distillation(job, question, source, losses, rollouts, NO_NODES)
    return {name: {n: arrays[n] for n in ("d_sq", "d_token")} for name, arrays in made.items()}
