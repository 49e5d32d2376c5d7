"""The stages of the pipeline, each declared once.

Keys, shells, `plan`, progress, the order of the flows, the clean-up of stores and the tables of the documentation all
read these declarations. A new stage is its own module and an entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from schemas import costs
from schemas.arrays import (
    ALIGNMENT,
    CONTINUATIONS,
    DISTILLATION,
    HANDOVER,
    IDEAL,
    OTHER_LAYOUTS,
    PRIOR,
    RANKING,
    ROLLOUTS,
    TEXTS,
    TREES,
    UPDATES,
    VALUES,
    Array,
)
from schemas.config import RolloutTable, RunConfig
from schemas.costs import Cost, Draws
from schemas.signals import (
    Signal,
    Source,
    answering_sources,
    ranked_signals,
    signals,
    updating_signals,
    written_sources,
)


class Scope(Enum):
    """What a stage makes one artefact for."""

    QUESTION = "question"
    SOURCE = "question and teacher with its context"
    SIGNAL = "question and signal"
    RUN = "run"


def _nothing(config: RunConfig) -> dict[str, object]:
    return {}


def _free(config: RunConfig) -> Cost:
    return Cost()


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: name of its folder in the store.
        version: raised whenever its code gives other numbers or another layout; part of its keys.
        arrays: layout of its artefacts.
        make: `module:function`, which takes a `tasks.stages.protocol.Work` and returns the requested arrays.
        scope: what there is one artefact for.
        reads: stages whose artefacts it reads; their keys are part of its own, in this order.
        settings: the part of a configuration that is in its keys.
        signals: where there is one artefact for each signal, which signals these are.
        sources: where there is one for each teacher with its context, which these are.
        of_source: its artefacts are of a teacher with a context; both are in their keys, so is the loss if there is one
            for each, and so are the texts of a generated context.
        with_model: it samples from a model or scores with one.
        draws: what it samples, if anything.
        round_settings: settings in the keys of its rounds, where the stage can reuse them under other settings; else
            rounds are kept under the stage's own key until it is done.
        keeps_rounds: whether finished rounds are kept, for larger settings to extend.
        refuse: `module:function`, which returns from a question's artefact why the run cannot continue with it.
        cost: upper bounds for a question; where `of_source`, for the student and again for each teacher with a context.
        flows: flows that it is part of.
    """

    name: str
    version: int
    arrays: Mapping[str, Array]
    make: str
    scope: Scope = Scope.QUESTION
    reads: tuple[str, ...] = ()
    settings: Callable[[RunConfig], dict[str, object]] = _nothing
    signals: Callable[[RunConfig], list[Signal]] = signals
    sources: Callable[[RunConfig], list[Source]] = written_sources
    of_source: bool = False
    with_model: bool = False
    draws: Draws | None = None
    round_settings: Callable[[RunConfig], dict[str, object]] | None = None
    keeps_rounds: Callable[[RunConfig], bool] = lambda config: False
    refuse: str | None = None
    cost: Callable[[RunConfig], Cost] = _free
    flows: tuple[str, ...] = ("diagnose",)

    def place(self, question: str, signal: Signal | None) -> tuple[str, str, Signal | None]:
        """Stage, question and signal of the artefact for a question and signal, without what is beyond the scope."""
        of_signal = signal if self.scope is Scope.SIGNAL else None
        if self.scope is Scope.SOURCE and signal is not None:
            of_signal = signal.source.every_loss
        return self.name, "" if self.scope is Scope.RUN else question, of_signal

    @property
    def keeps_draws(self) -> bool:
        """Whether draws are saved while the stage samples."""
        return self.draws is not None and self.scope is not Scope.SOURCE


_STAGES = (
    Stage(
        "rollouts",
        4,
        ROLLOUTS,
        "tasks.stages.rollouts:make",
        settings=lambda config: {
            "seed": config.seed,
            "prompt": config.prompt.keyed(),
            "sampling": config.sampling.keyed(),
            "verifier": config.verifier.keyed(),
            **({"rollouts": config.rollouts.keyed()} if isinstance(config.rollouts, RolloutTable) else {}),
        },
        with_model=True,
        draws=Draws("completions", costs.rollouts, costs.rollouts),
        refuse="tasks.stages.rollouts:refusal",
        cost=costs.rollouts_cost,
        flows=("diagnose", "rank"),
    ),
    Stage(
        "texts",
        1,
        TEXTS,
        "tasks.stages.texts:make",
        Scope.SOURCE,
        reads=("rollouts",),
        settings=lambda config: {"seed": config.seed},
        of_source=True,
        with_model=True,
        draws=Draws("generated texts", costs.texts, costs.texts),
        cost=costs.texts_cost,
        flows=("diagnose", "rank"),
    ),
    Stage(
        "answers",
        1,
        CONTINUATIONS,
        "tasks.stages.answers:make",
        Scope.SOURCE,
        reads=("rollouts",),
        settings=lambda config: {
            "seed": config.seed,
            "sampling": config.sampling.keyed(),
            "rollouts": config.success.rollouts,
        },
        sources=answering_sources,
        of_source=True,
        with_model=True,
        draws=Draws("teachers' answers", costs.answers, costs.answers),
        cost=costs.answers_cost,
        flows=("diagnose", "rank"),
    ),
    Stage(
        "handover",
        1,
        HANDOVER,
        "tasks.stages.answers:make_handover",
        Scope.SOURCE,
        reads=("rollouts", "answers"),
        settings=lambda config: {"parts": config.success.parts, "continuations": config.success.continuations},
        sources=answering_sources,
        of_source=True,
        with_model=True,
        draws=Draws("continuations of teachers' answers", costs.handovers, costs.handovers),
        cost=costs.handover_cost,
        flows=("diagnose", "rank"),
    ),
    Stage(
        "trees",
        4,
        TREES,
        "tasks.stages.trees.stage:make",
        reads=("rollouts",),
        settings=lambda config: {"tree": config.tree.keyed()},
        with_model=True,
        draws=Draws("draws", lambda config: config.tree.most_draws, lambda config: config.tree.most_at_once),
        round_settings=lambda config: {"tree": config.tree.round_settings()},
        keeps_rounds=lambda config: config.tree.extends,
        cost=costs.trees_cost,
    ),
    Stage("ideal", 2, IDEAL, "tasks.stages.ideal:make", reads=("trees",)),
    Stage("prior", 2, PRIOR, "tasks.stages.prior:make", Scope.RUN, reads=("trees",)),
    Stage(
        "distillation",
        5,
        DISTILLATION,
        "tasks.stages.distillation.stage:make",
        Scope.SIGNAL,
        reads=("rollouts", "trees"),
        of_source=True,
        with_model=True,
        cost=costs.distillation_cost,
    ),
    Stage(
        "alignment",
        3,
        ALIGNMENT,
        "tasks.stages.alignment:make",
        Scope.SIGNAL,
        reads=("trees", "ideal", "prior", "distillation"),
        settings=lambda config: {"level": config.scores.level, "posterior": config.scores.posterior},
    ),
    Stage(
        "values",
        2,
        VALUES,
        "tasks.stages.values:make",
        reads=("rollouts",),
        settings=lambda config: config.ranking.keyed(),
        with_model=True,
        draws=Draws("draws of values", costs.value_draws, costs.value_draws),
        cost=lambda config: Cost(
            costs.value_draws(config), costs.value_draws(config) * (config.sampling.max_tokens - 1)
        ),
        flows=("rank",),
    ),
    Stage(
        "ranking",
        3,
        RANKING,
        "tasks.stages.distillation.stage:make_ranking",
        Scope.SIGNAL,
        reads=("rollouts",),
        signals=ranked_signals,
        of_source=True,
        with_model=True,
        cost=lambda config: Cost(forwards=config.sampling.rollouts),
        flows=("rank",),
    ),
    Stage(
        "updates",
        2,
        UPDATES,
        "tasks.stages.updates.stage:make",
        Scope.SIGNAL,
        reads=("rollouts",),
        settings=lambda config: {"dimensions": config.update.dimensions},
        signals=updating_signals,
        of_source=True,
        with_model=True,
        cost=costs.updates_cost,
        flows=("diagnose", "rank"),
    ),
)

PIPELINE = {stage.name: stage for stage in _STAGES}
"""Every stage by name, in order."""

ROUNDS_VERSION = 3
"""Version of the draws that are kept while a stage makes them."""
AGGREGATE_VERSION = 9
"""Version of a run's tables."""


def layout_of(name: str) -> Mapping[str, Array]:
    """Layout of a stage's artefact, of a round of draws, or of a training."""
    return OTHER_LAYOUTS[name] if name in OTHER_LAYOUTS else PIPELINE[name].arrays


def diagnosis_stages() -> tuple[str, ...]:
    """The stages of a diagnosis; its tables are made from all of them."""
    return tuple(stage.name for stage in PIPELINE.values() if "diagnose" in stage.flows)


def ranking_stages(config: RunConfig) -> tuple[str, ...]:
    """The stages of a ranking; later ones that sample are included only where they have something to do."""
    stages = (stage for stage in PIPELINE.values() if "rank" in stage.flows)

    def has_work(stage: Stage) -> bool:
        if stage.draws is not None and stage.reads:
            return stage.draws.most(config) > 0
        return stage.scope is not Scope.SIGNAL or bool(stage.signals(config))

    return tuple(stage.name for stage in stages if has_work(stage))


def versions() -> dict[str, int]:
    """Versions of everything that can affect a number."""
    return {
        **{stage.name: stage.version for stage in PIPELINE.values()},
        "rounds": ROUNDS_VERSION,
        "aggregate": AGGREGATE_VERSION,
    }
