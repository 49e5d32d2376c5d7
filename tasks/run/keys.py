"""The dependencies between artefacts: the keys of a run, known before anything is computed."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from schemas.config import RunConfig
from schemas.pipeline import AGGREGATE_VERSION, PIPELINE, ROUNDS_VERSION, Scope, Stage, diagnosis_stages
from schemas.signals import POLICY, REWARDED, Signal, Source, losses, signals, written_sources
from tasks.operations.user_code import keyed_with_code
from tasks.store.keys import Recipe


class Identities(Protocol):
    """What keys contain about inputs from outside the store: questions, models, recorded tables."""

    def settings(self, stage: Stage) -> dict[str, object]:
        """The part of the configuration that enters a stage's keys."""
        ...

    def of_question(self, question: str) -> dict[str, str]:
        """Fingerprints of the inputs from which the first stage makes a question's artefact."""
        ...

    def of_teacher(self, source: Source, question: str) -> dict[str, object]:
        """Identity of a teacher with its context, for one question."""
        ...

    def of_writer(self, source: Source, question: str) -> dict[str, object]:
        """Identity of the model that writes a context's text for one question, and of what it is asked."""
        ...


class RunKeys:
    """The keys of a run, computed on demand, and the recipe of each."""

    def __init__(self, config: RunConfig, identities: Identities, questions: Iterable[str]) -> None:
        self.recipes: dict[str, Recipe] = {}
        self._config, self._identities = config, identities
        self._all = list(questions)
        self._left_out: frozenset[str] = frozenset()
        self._losses = losses(config)
        self._signals = signals(config)
        self._written = written_sources(config)
        self._known: dict[tuple[str, str, Signal | None], str] = {}

    @property
    def questions(self) -> list[str]:
        """Questions that have not been left out."""
        return [q for q in self._all if q not in self._left_out]

    def leave_out(self, questions: Iterable[str]) -> None:
        """Continue without some questions: artefacts over all questions are then made from the remaining ones."""
        left_out = frozenset(questions)
        if left_out == self._left_out:
            return
        self._left_out = left_out
        pooled = {name for name in PIPELINE if _pools(name)}
        self._known = {place: key for place, key in self._known.items() if place[0] not in pooled}

    def key(self, stage: str, question: str, signal: Signal | None = None) -> str:
        """Key of one artefact; if one artefact covers all questions or all signals, its key is the same for each."""
        declared = PIPELINE[stage]
        place = declared.place(question, signal)
        if place not in self._known:
            self._known[place] = self._compute(declared, *place[1:])
        return self._known[place]

    def of_stage(self, stage: str, question: str) -> dict[Signal | None, str]:
        """Keys of one stage for one question, by signal if the stage has an artefact per signal."""
        if PIPELINE[stage].scope is Scope.SOURCE:
            sources = PIPELINE[stage].sources(self._config)
            return {source.every_loss: self.key(stage, question, source.every_loss) for source in sources}
        if PIPELINE[stage].scope is Scope.SIGNAL:
            wanted = PIPELINE[stage].signals(self._config)
            return {signal: self.key(stage, question, signal) for signal in wanted}
        return {None: self.key(stage, question)}

    def rounds(self, stage: str, question: str) -> str:
        """Key under which a stage keeps its draws while it samples them."""
        declared = PIPELINE[stage]
        if declared.round_settings is None:
            return self.key(stage, question)
        place = f"rounds of {stage}", question, None
        if place not in self._known:
            inputs = self._inputs(declared, question, None)
            settings = declared.round_settings(self._config)  # their names distinguish the stages
            recipe = Recipe("rounds", ROUNDS_VERSION, settings, inputs, {})
            self._known[place] = self._register(recipe)
        return self._known[place]

    def references(self, stages: Sequence[str]) -> list[tuple[str, str]]:
        """Every (stage, key) that a run of some stages may read or make."""
        found: list[tuple[str, str]] = []
        for question in self.questions:
            for stage in stages:
                found += [(stage, key) for key in self.of_stage(stage, question).values()]
                if self._config.tree.samples and PIPELINE[stage].keeps_draws:
                    found.append(("rounds", self.rounds(stage, question)))
        return list(dict.fromkeys(found))

    def artefacts(self, question: str) -> list[tuple[str, str]]:
        """Every (stage, key) from which the tables of a diagnosis are read, for one question."""
        return [(stage, key) for stage in diagnosis_stages() for key in self.of_stage(stage, question).values()]

    def aggregate(self, questions: Sequence[str]) -> str:
        """Key of the tables over some questions: all artefacts they are read from, and the names they contain."""
        settings: dict[str, object] = {
            "seed": self._config.seed,
            "scores": self._config.scores.keyed(),
            "signals": [list(s) for s in self._signals],
        }
        read = dict.fromkeys(key for question in questions for _, key in self.artefacts(question))
        return self._register(Recipe("aggregate", AGGREGATE_VERSION, settings, list(read), {}))

    def _compute(self, stage: Stage, question: str, signal: Signal | None) -> str:
        settings = self._identities.settings(stage)
        if stage.of_source and signal is not None:
            settings = {**settings, **self._of_source(stage, question, signal)}
        fingerprints = {} if stage.reads else self._identities.of_question(question)
        inputs = self._inputs(stage, question, signal)
        return self._register(Recipe(stage.name, stage.version, settings, inputs, fingerprints))

    def _of_source(self, stage: Stage, question: str, signal: Signal) -> dict[str, object]:
        """What keys contain of a teacher with its context, or of who writes its texts, and of a loss."""
        if stage.name == "texts":
            return self._identities.of_writer(signal.source, question)
        loss: dict[str, object] = {}
        if stage.scope is Scope.SIGNAL:
            loss = {"loss": signal.loss if signal == POLICY else keyed_with_code(self._losses[signal.loss])}
        return loss if signal.source == REWARDED else {**self._identities.of_teacher(signal.source, question), **loss}

    def _inputs(self, stage: Stage, question: str, signal: Signal | None) -> list[str]:
        if stage.scope is Scope.RUN:
            return sorted(self.key(read, q) for read in stage.reads for q in self.questions)
        reads = [self.key(read, question, signal) for read in stage.reads]
        if stage.of_source and stage.name != "texts" and signal is not None and signal.source in self._written:
            reads.append(self.key("texts", question, signal))
        return reads

    def _register(self, recipe: Recipe) -> str:
        self.recipes[recipe.key] = recipe
        return recipe.key


def _pools(stage: str) -> bool:
    """True for stages over all questions together, and for stages that read from those."""
    declared = PIPELINE[stage]
    return declared.scope is Scope.RUN or any(_pools(read) for read in declared.reads)
