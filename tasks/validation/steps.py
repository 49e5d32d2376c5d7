"""One step of on-policy distillation: fresh rollouts, and the gradient of the loss on them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from schemas.arrays import Arrays
from schemas.config import RunConfig
from schemas.signals import POLICY, Source, losses, model_sources
from tasks.engines.protocol import Completed, Draw, Trunk
from tasks.engines.scoring import Scored, View, hidden_each, padded_groups
from tasks.run.models import LoadedModels
from tasks.stages.aggregate.token_rules import NEED_DISTRIBUTIONS, NEED_VERDICTS, Tokens, selected
from tasks.stages.distillation.directions import divergences
from tasks.stages.distillation.gradients import complete
from tasks.stages.draws import continuations
from tasks.stages.models import teacher_view
from tasks.stages.ranking import advantages
from tasks.stages.updates.directions import BACKWARD, Direction, of_loss, of_reward, pulled
from tasks.statistics.csr import Floats, offsets_of
from tasks.statistics.streams import stream_seed
from tasks.validation.student import Student
from tasks.validation.trainings import Training


class Rollout(NamedTuple):
    """A fresh rollout.

    Attributes:
        view: the teacher with its prompt for the question; None where the reward is the signal.
        place: its number among those of the question, by which the view may tell prompts apart.
        correct: the verifier's verdict; None where nobody asked for it.
    """

    sequence: Completed
    view: Scored | None
    place: int
    correct: bool | None


class Asked:
    """What student and teacher are asked, kept for the next step that has the same questions."""

    def __init__(self, models: LoadedModels) -> None:
        self.models = models
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._views: dict[str, Scored] = {}
        self._source: Source | None = None

    def prompt(self, question: str) -> tuple[int, ...]:
        """The student's prompt."""
        if question not in self._prompts:
            self._prompts[question] = tuple(self.models.prompt(question))
        return self._prompts[question]

    def view(self, source: Source, question: str, rollouts: Arrays | None) -> Scored:
        """A teacher with its context.

        Args:
            rollouts: the question's, where the context depends on them.
        """
        if rollouts is not None:
            return teacher_view(self.models, source, question, rollouts, None)
        if source != self._source:
            self._source, self._views = source, {}
        if question not in self._views:
            self._views[question] = teacher_view(self.models, source, question, {}, None)
        return self._views[question]


def sample(
    asked: Asked, config: RunConfig, student: Student, training: Training, step: int, questions: Sequence[str]
) -> list[Rollout]:
    """The rollouts of a step, of some questions; verified where the signal depends on it."""
    n, signal, out = config.validation.rollouts, training.signal, list[Rollout]()
    trunks = [Trunk(asked.prompt(question)) for question in questions]
    draws = [
        Draw(
            i,
            0,
            None,
            config.sampling.max_tokens,
            stream_seed(config.seed, question, "training", training.seed, step, *_again(questions, i), r),
        )
        for i, question in enumerate(questions)
        for r in range(n)
    ]
    ends = student.sampler.continue_prefixes(trunks, draws, config.sampling.temperature)
    for i, question in enumerate(questions):
        of_question, rollouts = ends[i * n : (i + 1) * n], None
        correct: Sequence[bool | None] = [None] * n
        if _needs_verdicts(config, training):
            arrays = continuations(asked.models, question, [()] * n, of_question)
            correct = arrays["success"].tolist()
            rollouts = {**arrays, "correct": arrays["success"]} if _shows_rollouts(config, training) else None
        view = None if signal is None or signal == POLICY else asked.view(signal.source, question, rollouts)
        for r, end in enumerate(of_question):
            out.append(Rollout(Completed(trunks[i].prompt, end.tokens.tolist()), view, r, correct[r]))
    return out


def _again(questions: Sequence[str], place: int) -> tuple[str, ...]:
    """Tells a question that a step has more than once from itself."""
    before = questions[:place].count(questions[place])
    return (f"again {before}",) if before else ()


def _needs_verdicts(config: RunConfig, training: Training) -> bool:
    """Whether the signal, its context or the selection of tokens depends on which rollouts are right."""
    by_outcome = training.selection is not None and training.selection.kind in NEED_VERDICTS
    return by_outcome or training.signal == POLICY or _shows_rollouts(config, training)


def _shows_rollouts(config: RunConfig, training: Training) -> bool:
    if training.signal is None or training.signal == POLICY:
        return False
    _, context = model_sources(config)[training.signal.source]
    return context.of_rollouts


def gradient(
    config: RunConfig, student: Student, training: Training, rollouts: Sequence[Rollout]
) -> dict[Parameter, Tensor]:
    """Gradient of the loss by the trained parameters: sums over tokens, means over rollouts.

    The loss is minus success where the reward is the signal: the advantage of a rollout is its outcome less the mean of
    the others of its question, or of the step where there is one a question.
    """
    lengths = [sum(map(len, rollout.sequence)) for rollout in rollouts]
    groups = padded_groups(lengths, config.engine.batch_tokens // BACKWARD)
    credit = _credits(config, rollouts)
    passes = [_Pass.of(config, student, training, [rollouts[i] for i in group], credit[group]) for group in groups]
    weight = _weights(config, student, training, rollouts, passes)
    total: dict[Parameter, Tensor] = {}
    start, largest = 0, _Largest()
    for of_group in passes:
        forward = student.scorer.forward([rollout.sequence for rollout in of_group.rollouts])
        part = weight[start : start + of_group.tokens]
        start += of_group.tokens
        direction = largest.seen(_weighted(of_group.direction, torch.from_numpy(part)))
        steps = pulled(forward, direction, of_group.tokens, config.engine.score_rows, of_group.vocabulary)
        for parameter, found in forward.by_parameter(forward.gradient(steps, last=True)).items():
            scaled = found.neg().div_(len(rollouts))
            total[parameter] = total[parameter].add_(scaled) if parameter in total else scaled
    return total if largest.value > _ROUNDING else {parameter: torch.zeros_like(g) for parameter, g in total.items()}


_ROUNDING = 1e-5
"""Largest direction at a token that is rounding alone, as of a teacher that equals the student: optimisers that
divide by the gradient's size would follow it."""


class _Largest:
    """The largest norm of a direction that was seen."""

    def __init__(self) -> None:
        self.value = 0.0

    def seen(self, direction: Direction) -> Direction:
        """The same direction, noted as it is taken."""

        def noted(log_p: Tensor, rows: slice) -> Tensor:
            d = direction(log_p, rows)
            self.value = max(self.value, float(d.norm(dim=-1).max()))
            return d

        return noted


class _Pass(NamedTuple):
    """Rollouts that go through the models together.

    Attributes:
        view, states: the teacher, and its states before every token; None where the reward is the signal.
        vocabulary: tokens that student and teacher have in common.
    """

    rollouts: Sequence[Rollout]
    tokens: int
    direction: Direction
    view: Scored | None
    states: Tensor | None
    vocabulary: int

    @classmethod
    def of(
        cls, config: RunConfig, student: Student, training: Training, group: Sequence[Rollout], credit: Tensor
    ) -> "_Pass":
        counts, temperature = [len(rollout.sequence.tokens) for rollout in group], config.sampling.temperature
        signal, vocabulary = training.signal, student.scorer.vocabulary
        views = _views(config, student, training, group)
        if signal is None or not views:
            sampled = torch.tensor([token for rollout in group for token in rollout.sequence.tokens])
            direction = of_reward(sampled, credit.repeat_interleave(torch.tensor(counts)), temperature)
            return cls(group, sum(counts), direction, None, None, vocabulary)
        completions = [rollout.sequence.tokens for rollout in group]
        states = torch.cat(hidden_each(views, [rollout.place for rollout in group], completions))
        direction = of_loss(views[0], states, losses(config)[signal.loss], temperature)
        return cls(group, sum(counts), direction, views[0], states, min(vocabulary, views[0].vocabulary))


def _views(config: RunConfig, student: Student, training: Training, group: Sequence[Rollout]) -> list[Scored]:
    """The teacher of each rollout: that of the diagnosis, or the student as it is now where it teaches itself."""
    views = [rollout.view for rollout in group if rollout.view is not None]
    if config.validation.teacher == "initial" or training.signal is None or not views:
        return views
    teacher, _ = model_sources(config)[training.signal.source]
    itself = teacher.model is None and teacher.server is None
    return [View(student.scorer, v.prompt, v.by_rollout) if itself and isinstance(v, View) else v for v in views]


def _weights(
    config: RunConfig, student: Student, training: Training, rollouts: Sequence[Rollout], passes: Sequence[_Pass]
) -> Floats:
    """Weight of every token: 1 where the training learns from it, else 0, [T]."""
    counts = [len(rollout.sequence.tokens) for rollout in rollouts]
    if training.selection is None:
        return np.ones(sum(counts))
    nothing = np.full(sum(counts), np.nan)
    entropy, divergence = nothing, nothing
    if training.selection.kind in NEED_DISTRIBUTIONS:
        found = [_distributions(config, student, of_group) for of_group in passes]
        entropy, divergence = (np.concatenate(of_all) for of_all in zip(*found, strict=True))
    correct = np.array([np.nan if r.correct is None else float(r.correct) for r in rollouts])
    return selected(training.selection, Tokens(offsets_of(np.array(counts)), correct, entropy, divergence))


@torch.inference_mode()
def _distributions(config: RunConfig, student: Student, of_group: _Pass) -> tuple[Floats, Floats]:
    """Entropy of the student, and its divergence from the teacher, before every token of some rollouts."""
    states = torch.cat(student.scorer.hidden_each([rollout.sequence for rollout in of_group.rollouts]))
    entropy, divergence = [], []
    for start in range(0, of_group.tokens, config.engine.score_rows):
        rows = slice(start, start + config.engine.score_rows)
        log_p = torch.log_softmax(student.scorer.logits(states[rows])[:, : of_group.vocabulary].double(), -1)
        entropy.append(-(log_p.exp() * log_p).sum(-1))
        if of_group.view is None or of_group.states is None:
            divergence.append(torch.zeros(len(log_p)))
            continue
        log_t = of_group.view.rows(of_group.states[rows], of_group.vocabulary).to(log_p)
        log_t = complete(log_t, log_p) if of_group.view.partial else log_t
        divergence.append(divergences(log_p, log_t)[0])
    return torch.cat(entropy).cpu().numpy(), torch.cat(divergence).cpu().numpy()


def _weighted(direction: Direction, weight: Tensor) -> Direction:
    def weighted(log_p: Tensor, rows: slice) -> Tensor:
        return direction(log_p, rows) * weight[rows, None].to(log_p.device)

    return weighted


def _credits(config: RunConfig, rollouts: Sequence[Rollout]) -> Tensor:
    """Advantage of every rollout, [R]."""
    n = config.validation.rollouts
    reward = np.array([float(bool(rollout.correct)) for rollout in rollouts])
    units = reward.reshape(-1, n) if n > 1 else reward[None]
    return torch.from_numpy(np.concatenate([advantages(unit) for unit in units]))
