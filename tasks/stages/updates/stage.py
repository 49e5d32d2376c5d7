"""The update of every signal on one question: minus the gradient of its loss by the student's parameters."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from schemas.arrays import AnyArray, Arrays
from schemas.config import Settings
from schemas.signals import POLICY, REWARDED, Signal, Source, losses, written_sources
from tasks.engines.protocol import Completed, Differentiable
from tasks.engines.scoring import Scored, View, padded_groups
from tasks.stages.protocol import Made, Work
from tasks.stages.ranking import advantages
from tasks.stages.updates.directions import BACKWARD, Direction, of_loss, of_reward, pulled
from tasks.statistics.csr import Floats


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
    group_tokens: int,
) -> dict[Signal, dict[str, AnyArray]]:
    """Means over a question's rollouts of sum_t J_t d_t, J_t the derivative of the logits by the parameters.

    d is the distillation direction; of the policy gradient (R - b) (e_y - P) / temperature, b the mean reward of the
    other rollouts.

    Args:
        teachers: models with their prompts; the reward has none.
        wanted: losses of each of them; of the reward none, its policy gradient is meant.
        project: of a gradient by parameter.
        block: vocabulary rows in memory at once.
        group_tokens: most tokens in one pass.

    Returns:
        `update` of each signal, [U].
    """
    prompt, tokens = rollouts["prompt"].tolist(), rollouts["tokens"]
    vocabulary = min([student.vocabulary, *(view.vocabulary for view in teachers.values())])
    totals: dict[Signal, Floats] = {}
    credit = torch.from_numpy(advantages(rollouts["reward"]))
    offsets = np.asarray(rollouts["offsets"], dtype=np.int64)
    R = len(offsets) - 1
    lengths = (np.diff(offsets) + len(prompt)).tolist()
    for group in padded_groups(lengths, group_tokens // BACKWARD):
        completions = [tokens[offsets[r] : offsets[r + 1]].tolist() for r in group]
        forward = student.forward([Completed(prompt, completion) for completion in completions])
        sampled = torch.tensor([token for completion in completions for token in completion])
        directions: dict[Signal, Direction] = {}
        for source, of_source in wanted.items():
            if source == REWARDED:
                of_token = credit[group].repeat_interleave(torch.tensor([len(c) for c in completions]))
                directions[POLICY] = of_reward(sampled, of_token, temperature)
                continue
            view = teachers[source]
            states = torch.cat(view.hidden(group, completions)) if view != View(student, prompt) else None
            for name, loss in of_source.items():
                directions[Signal(*source, name)] = of_loss(view, states, loss, temperature)
        for left, (signal, direction) in zip(range(len(directions) - 1, -1, -1), directions.items(), strict=True):
            steps = pulled(forward, direction, len(sampled), block, vocabulary)
            found = project(forward.gradient(steps, last=left == 0)) / R
            totals[signal] = totals.get(signal, np.zeros_like(found)) + found
    return {signal: {"update": total.astype(np.float32)} for signal, total in totals.items()}
