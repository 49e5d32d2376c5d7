"""What a source of evidence gives that has no models behind it."""

from collections.abc import Mapping, Sequence

from schemas.arrays import Arrays
from schemas.config import Settings
from schemas.signals import Signal, Source


class WithoutModels:
    """The part of `tasks.stages.protocol.Provider` that needs models: there is nothing to write, answer or update."""

    def write(self, question: str, sources: Sequence[Source], rollouts: Arrays) -> Mapping[Source, Arrays]:
        """Nothing."""
        return {}

    def answers(
        self, question: str, sources: Sequence[Source], rollouts: Arrays, texts: Mapping[Source, Arrays]
    ) -> Mapping[Source, Arrays]:
        """Nothing."""
        return {}

    def handover(self, question: str, rollouts: Arrays, answers: Mapping[Source, Arrays]) -> Mapping[Source, Arrays]:
        """Nothing."""
        return {}

    def updates(
        self,
        question: str,
        wanted: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Nothing."""
        return {}

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        """All of them."""
        return [list(sources)]
