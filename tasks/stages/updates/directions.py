"""Directions at the student's logits: minus the gradient of a distillation loss, and the policy gradient."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from schemas.config import Settings
from tasks.engines.protocol import Backward
from tasks.engines.scoring import Scored, tempered
from tasks.stages.distillation.gradients import complete
from tasks.stages.distillation.losses import distillation_direction

BACKWARD = 4
"""How many times fewer tokens go through a model together where its activations are kept for gradients."""

Direction = Callable[[Tensor, slice], Tensor]
"""Log-probabilities of the student at some rows of completions, [n, V], to the direction there, [n, V]."""


def of_reward(sampled: Tensor, credit: Tensor, temperature: float) -> Direction:
    """Direction of the policy gradient, credit (e_y - P) / temperature.

    Args:
        sampled, credit: tokens of the completions, and how much better each is than others, [T].
    """

    def direction(log_p: Tensor, rows: slice) -> Tensor:
        one_hot = torch.nn.functional.one_hot(sampled[rows].to(log_p.device), log_p.shape[-1])
        return credit[rows, None].to(log_p.device) * (one_hot - tempered(log_p, temperature)) / temperature

    return direction


def of_loss(view: Scored, states: Tensor | None, loss: Settings, temperature: float) -> Direction:
    """Minus the gradient of a loss by the student's logits.

    Args:
        states: the teacher's before every token; None: the student is its own teacher.
    """

    def direction(log_p: Tensor, rows: slice) -> Tensor:
        log_t = log_p if states is None else view.rows(states[rows], log_p.shape[-1]).to(log_p)
        if view.partial:
            log_t = complete(log_t, log_p)
        return distillation_direction(loss, log_p, log_t, tempered(log_p, temperature))

    return direction


def pulled(
    forward: Backward, direction: Direction, tokens: int, block: int, vocabulary: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of a pass and the direction there, in blocks of rows, as `Backward.gradient` takes them.

    Args:
        tokens: of the completions.
        block: most vocabulary rows in memory at once.
        vocabulary: tokens that student and teachers have in common.
    """
    for start in range(0, tokens, block):
        rows = slice(start, min(start + block, tokens))
        logits = forward.logits(rows)
        d = direction(torch.log_softmax(logits.detach()[:, :vocabulary].double(), -1), rows)
        yield logits, torch.nn.functional.pad(d, (0, logits.shape[-1] - vocabulary))
