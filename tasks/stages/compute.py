"""Calls a stage's own function, and runs stages one after another without a store."""

from collections.abc import Callable, Iterator, Sequence

from schemas.arrays import Arrays
from schemas.config import RunConfig
from schemas.pipeline import PIPELINE, Scope, Stage
from schemas.signals import Signal
from tasks.operations.implementations import implementation
from tasks.stages.protocol import Made, Provider, Work


def compute(stage: Stage, work: Work) -> Made:
    """The artefacts that a stage makes."""
    made: Made = implementation(stage.make)(work)
    return made


class Computed:
    """In-memory artefacts of some questions, made by stages in the order in which they are run.

    Args:
        seed: gives the seed of an artefact's random stream from its purpose, stage and question.
    """

    def __init__(
        self,
        config: RunConfig,
        provider: Provider,
        questions: Sequence[str],
        signals: Sequence[Signal],
        seed: Callable[[str, str, str], int],
    ) -> None:
        self.questions, self.signals = list(questions), list(signals)
        self._config, self._provider, self._seed = config, provider, seed
        self._made: dict[tuple[str, str, Signal | None], Arrays] = {}

    def run(self, *stages: str) -> None:
        """Make the artefacts of some stages for all questions."""
        for name in stages:
            stage = PIPELINE[name]
            for question in self.questions[:1] if stage.scope is Scope.RUN else self.questions:
                of_stage = stage.signals(self._config)
                wanted: Sequence[Signal | None] = [None]
                if stage.scope is Scope.SIGNAL:
                    wanted = [signal for signal in self.signals if signal in of_stage]
                if stage.scope is Scope.SOURCE:
                    wanted = [source.every_loss for source in stage.sources(self._config)]
                if not wanted:
                    continue
                work = Work(self._config, self._provider, self, question, wanted)
                for signal, arrays in compute(stage, work).items():
                    self._made[stage.place(question, signal)] = arrays

    def artefact(self, stage: str, question: str, signal: Signal | None = None) -> Arrays:
        """One artefact."""
        return self._made[PIPELINE[stage].place(question, signal)]

    def every(self, stage: str) -> Iterator[Arrays]:
        """A stage's artefacts of all questions, in their order."""
        return (self.artefact(stage, question) for question in self.questions)

    def seed(self, purpose: str, stage: str, question: str) -> int:
        """64-bit seed of a random stream."""
        return self._seed(purpose, stage, question)
