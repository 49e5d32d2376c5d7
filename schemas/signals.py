"""The signals of a run: teacher, context and loss, by their names."""

from typing import NamedTuple

from schemas.config import NEED_DRAWS, YARDSTICKS, Context, RecordedTree, RunConfig, Settings, Teacher, loss_name
from schemas.config.run import REWARD


class Source(NamedTuple):
    """One teacher with one context, by their names."""

    teacher: str
    context: str

    @property
    def every_loss(self) -> "Signal":
        """Stands for all its signals, in places of artefacts that do not depend on a loss."""
        return Signal(*self, "")


class Signal(NamedTuple):
    """One distillation signal: teacher, context and loss, by their names."""

    teacher: str
    context: str
    loss: str

    @property
    def source(self) -> Source:
        """Its teacher and context."""
        return Source(self.teacher, self.context)


REWARDED = Source(REWARD, Context().label)
"""Takes the place of teacher and context where the reward itself is the signal."""


POLICY = Signal(*REWARDED, "policy_gradient")
"""Training on the reward itself, with whose update those of other signals are compared."""


def sources(config: RunConfig) -> list[Source]:
    """Teachers with contexts, in the order of the configuration."""
    recorded = [Source(t.name, Context().label) for t in config.recorded_teachers]
    return [*model_sources(config), *recorded]


def model_sources(config: RunConfig) -> dict[Source, tuple[Teacher, Context]]:
    """Teachers that are models, with contexts, in the order of the configuration."""
    return {Source(t.name, c.label): (t, c) for t in config.model_teachers for c in t.contexts}


def written_sources(config: RunConfig) -> list[Source]:
    """Teachers with contexts that contain generated text."""
    return [source for source, (_, context) in model_sources(config).items() if context.generate is not None]


def answering_sources(config: RunConfig) -> list[Source]:
    """Teachers with contexts that answer the questions themselves: those that a model is loaded of."""
    asked = config.success.rollouts > 0
    return [source for source, (teacher, _) in model_sources(config).items() if asked and teacher.server is None]


def not_ranked(config: RunConfig) -> list[Source]:
    """Teachers whose context shows the very rollout that is scored.

    A ranking takes each token as a draw that the teacher's distribution does not depend on, which it does there.
    """
    return [source for source, (_, context) in model_sources(config).items() if context.shows_scored]


def losses(config: RunConfig) -> dict[str, Settings]:
    """Losses by name, in the order of the configuration."""
    return {loss_name(loss): loss for loss in config.losses}


def signals(config: RunConfig) -> list[Signal]:
    """Every signal of a run: each loss of each teacher with each context, then the yardsticks."""
    compared = of_teachers(config)
    taught = [Signal(*source, loss) for source in sources(config) for loss in compared]
    return [*taught, *(Signal(*REWARDED, loss) for loss in losses(config) if loss not in compared)]


def of_teachers(config: RunConfig) -> dict[str, Settings]:
    """Losses that compare student and teacher, by name."""
    return {name: loss for name, loss in losses(config).items() if not isinstance(loss, YARDSTICKS)}


def ranked_signals(config: RunConfig) -> list[Signal]:
    """Those that rollouts alone can judge: a loss that needs draws needs several from one place."""
    of_run = losses(config)
    return [signal for signal in signals(config) if not isinstance(of_run[signal.loss], NEED_DRAWS)]


def updating_signals(config: RunConfig) -> list[Signal]:
    """Those whose updates of the parameters are computed, the policy gradient first; none unless asked for."""
    wanted = config.update.dimensions > 0 and not isinstance(config.tree, RecordedTree)
    return [POLICY, *ranked_signals(config)] if wanted else []


def unranked_losses(config: RunConfig) -> list[str]:
    """Names of the losses that need draws, which a ranking has none of."""
    return [name for name, loss in losses(config).items() if isinstance(loss, NEED_DRAWS)]
