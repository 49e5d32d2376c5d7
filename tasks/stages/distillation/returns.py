"""What a tree's draws return, for losses that need draws: of the reward, and of sequence-level reverse KL."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from schemas.arrays import DISTILLATION, AnyArray, Arrays
from schemas.config import GRPO, DrGRPO, MiniLLM
from tasks.engines.scoring import View, score_blocks
from tasks.stages.distillation.losses import floored
from tasks.statistics.csr import Floats, Ints, offsets_of, owners, row_sums

NO_RETURNS: dict[str, AnyArray] = {
    name: np.empty(0) for name, declared in DISTILLATION.items() if declared.dims == ("E",)
}
"""Those of a loss that needs no draws."""


def reward_gradients(loss: DrGRPO | GRPO, rollouts: Arrays, tree: Arrays) -> dict[str, AnyArray]:
    """The arrays of stage 4 where the reward itself is the signal: f = -Q, or -Q / std (statistics of section 3).

    std is that of success among a question's rollouts, as GRPO (arXiv 2402.03300) has it of a reward of 0 or 1; where
    they all succeed, or all fail, they give no gradient.
    """
    scale = 1.0
    if isinstance(loss, GRPO):
        p = float(np.mean(rollouts["correct"]))
        scale = 1 / np.sqrt(p * (1 - p)) if 0 < p < 1 else 0.0
    successes = np.asarray(tree["successes"], dtype=np.float64)
    lengths = {"T": len(rollouts["tokens"]), "N": len(tree["node"]), "B": len(tree["branch_token"])}
    nothing = {name: np.zeros(lengths[a.dims[0]]) for name, a in DISTILLATION.items() if name not in NO_RETURNS}
    unknown = {name: np.full_like(nothing[name], np.nan) for name in ("kl", "js", "teacher_token_prob", "teacher_prob")}
    whole = {name: np.ones_like(nothing[name]) for name in ("student_kept", "teacher_kept")}
    sums = {"return_sum": -scale * successes, "return_sq": scale**2 * successes}
    return {**nothing, **unknown, **whole, **sums, **{f"{name}_won": values for name, values in sums.items()}}


def branch_sums(returns: Floats, tree: Arrays) -> dict[str, AnyArray]:
    """Sums by branch of what each draw returns, [D], as stage 4 has them."""
    offsets = offsets_of(tree["draws"])
    won = np.asarray(tree["draw_success"], dtype=np.float64)
    columns = {"return_sum": returns, "return_sq": returns**2}
    columns |= {f"{name}_won": values * won for name, values in columns.items()}
    return {name: row_sums(values, offsets) for name, values in columns.items()}


def draw_returns(loss: MiniLLM, log_ratios: Floats, tree: Arrays) -> Floats:
    """What each draw adds to f at its branch: the sum of log P - log T over its tokens, or their mean; [D].

    Args:
        log_ratios: log P - log T of the draws' tokens, [K].
    """
    offsets = np.asarray(tree["draw_offsets"], dtype=np.int64)
    total = np.bincount(owners(offsets), log_ratios, len(offsets) - 1).astype(np.float64)
    return total / np.maximum(np.diff(offsets), 1) if loss.length_normalised else total


def draw_log_ratios(
    student: View, teachers: Sequence[View], rollouts: Arrays, tree: Arrays, *, block: int, group_tokens: int
) -> list[Floats]:
    """log P - log T of every token of a tree's draws, [K], by each teacher; branches' own tokens are not among them.

    Args:
        student, teachers: models with their prompts, over one vocabulary.
        block, group_tokens: as in `score_blocks`.
    """
    starts = np.asarray(tree["draw_offsets"], dtype=np.int64)
    sizes = np.diff(starts)
    branch = owners(offsets_of(tree["draws"]))
    row = owners(tree["branch_offsets"])[branch]
    # each draw is scored with its branch's token before it, after the prompt and the rollout as far as the node
    offsets = offsets_of(sizes + 1)
    drawn = np.ones(int(offsets[-1]), dtype=bool)
    drawn[offsets[:-1]] = False
    tokens = np.empty(len(drawn), dtype=np.int32)
    tokens[offsets[:-1]], tokens[drawn] = tree["branch_token"][branch], tree["draw_tokens"]
    views = [_from_nodes(view, rollouts, tree["node"], row) for view in (student, *teachers)]
    out = [np.zeros(len(tree["draw_tokens"])) for _ in teachers]
    place = np.cumsum(drawn) - 1
    wanted = np.flatnonzero(drawn).astype(np.int64)
    for positions, (log_p, *of_teachers) in score_blocks(
        views, tokens, offsets, rows=wanted, block=block, group_tokens=group_tokens
    ):
        sampled = torch.from_numpy(tokens[positions]).long()[:, None]
        own = _of_sampled(log_p, sampled)
        for ratios, log_t in zip(out, of_teachers, strict=True):
            ratios[place[positions]] = own - _of_sampled(log_t, sampled)
    return out


def _of_sampled(log_probs: torch.Tensor, sampled: torch.Tensor) -> Floats:
    picked = floored(log_probs.gather(-1, sampled.to(log_probs.device))[:, 0].double())
    return np.asarray(picked.cpu().numpy(), dtype=np.float64)


def _from_nodes(view: View, rollouts: Arrays, node: Ints, row: Ints) -> View:
    """The same model, with a prompt for each draw: its own, and the rollout as far as the draw's node.

    Args:
        node: positions of the tree's rows, [N].
        row: of each draw, [D].
    """
    offsets, tokens = rollouts["offsets"], rollouts["tokens"]
    prompts = []
    for position in node.tolist():
        r = int(np.searchsorted(offsets, position, side="right")) - 1
        prompts.append([*view.prompt_of(r), *tokens[offsets[r] : position].tolist()])
    return View(view.scorer, view.prompt, [prompts[i] for i in row.tolist()])


def with_returns(made: Mapping[str, AnyArray], loss: MiniLLM, log_ratios: Floats, tree: Arrays) -> dict[str, AnyArray]:
    """The arrays of stage 4, and the part of them that needs draws."""
    return {**made, **branch_sums(draw_returns(loss, log_ratios, tree), tree)}
