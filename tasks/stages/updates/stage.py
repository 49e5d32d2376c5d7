"""The update of every signal on one question: minus the gradient of its loss by the student's parameters."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from schemas.arrays import AnyArray, Arrays
from schemas.config import Settings
from schemas.signals import POLICY, REWARDED, Signal, Source, losses, written_sources
from tasks.engines.protocol import Backward, Differentiable
from tasks.engines.scoring import Scored, View, tempered
from tasks.stages.distillation.gradients import complete
from tasks.stages.distillation.losses import distillation_direction
from tasks.stages.protocol import Made, Work
from tasks.stages.ranking import advantages
from tasks.statistics.csr import Floats

Direction = Callable[[Tensor, slice], Tensor]
"""Log-probabilities of the student at some rows of a completion, [n, V], to the direction there, [n, V]."""


def make(work: Work) -> Made:
    """The updates of one question, for every requested signal."""
    of_run, rollouts = losses(work.config), work.read("rollouts")
    wanted: dict[Source, dict[str, Settings]] = {}
    for signal in work.signals:
        of_source = wanted.setdefault(signal.source, {})
        if signal != POLICY:
            of_source[signal.loss] = of_run[signal.loss]
    written = [source for source in written_sources(work.config) if source in wanted]
    texts = {source: work.read("texts", source.every_loss) for source in written}
    return dict(work.provider.updates(work.question, wanted, rollouts, texts).items())


def updates(
    student: Differentiable,
    teachers: Mapping[Source, Scored],
    wanted: Mapping[Source, Mapping[str, Settings]],
    rollouts: Arrays,
    project: Callable[[Mapping[str, Tensor]], Floats],
    *,
    temperature: float,
    block: int,
) -> dict[Signal, dict[str, AnyArray]]:
    """Means over a question's rollouts of sum_t J_t d_t, J_t the derivative of the logits by the parameters.

    d is the distillation direction; of the policy gradient (R - b) (e_y - P) / temperature, b the mean reward of the
    other rollouts.

    Args:
        teachers: models with their prompts; the reward has none.
        wanted: losses of each of them; of the reward none, its policy gradient is meant.
        project: of a gradient by parameter.
        block: vocabulary rows in memory at once.

    Returns:
        `update` of each signal, [U].
    """
    prompt, tokens = rollouts["prompt"].tolist(), rollouts["tokens"]
    vocabulary = min([student.vocabulary, *(view.vocabulary for view in teachers.values())])
    totals: dict[Signal, Floats] = {}
    credit = advantages(rollouts["reward"])
    spans = list(pairwise(rollouts["offsets"].tolist()))
    for r, (first, last) in enumerate(spans):
        completion = tokens[first:last].tolist()
        forward = student.forward(prompt, completion)
        directions: dict[Signal, Direction] = {}
        for source, of_source in wanted.items():
            if source == REWARDED:
                directions[POLICY] = partial(_of_reward, torch.tensor(completion), float(credit[r]), temperature)
                continue
            view = teachers[source]
            (states,) = view.hidden([r], [completion]) if view != View(student, prompt) else (None,)
            for name, loss in of_source.items():
                directions[Signal(*source, name)] = partial(_of_loss, view, states, loss, temperature)
        for left, (signal, direction) in zip(range(len(directions) - 1, -1, -1), directions.items(), strict=True):
            pulled = _pulled(forward, direction, len(completion), block, vocabulary)
            found = project(forward.gradient(pulled, last=left == 0))
            totals[signal] = totals.get(signal, np.zeros_like(found)) + found / len(spans)
    return {signal: {"update": total.astype(np.float32)} for signal, total in totals.items()}


def _pulled(
    forward: Backward, direction: Direction, length: int, block: int, vocabulary: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of a completion's positions, and the direction there, in blocks."""
    for start in range(0, length, block):
        rows = slice(start, min(start + block, length))
        logits = forward.logits(rows)
        d = direction(torch.log_softmax(logits.detach()[:, :vocabulary].double(), -1), rows)
        yield logits, torch.nn.functional.pad(d, (0, logits.shape[-1] - vocabulary))


def _of_reward(sampled: Tensor, credit: float, temperature: float, log_p: Tensor, rows: slice) -> Tensor:
    """Direction of the policy gradient, whose reward is better than the others' by `credit`."""
    one_hot = torch.nn.functional.one_hot(sampled[rows].to(log_p.device), log_p.shape[-1])
    return credit * (one_hot - tempered(log_p, temperature)) / temperature


def _of_loss(
    view: Scored, states: Tensor | None, loss: Settings, temperature: float, log_p: Tensor, rows: slice
) -> Tensor:
    """Direction of a loss by a teacher, whose states are given; None: the student is its own teacher."""
    log_t = log_p if states is None else view.rows(states[rows], log_p.shape[-1]).to(log_p)
    if view.partial:
        log_t = complete(log_t, log_p)
    return distillation_direction(loss, log_p, log_t, tempered(log_p, temperature))
