"""Evidence from tables recorded by another system: nothing is sampled, and no model is used."""

from collections.abc import Iterable, Mapping, Sequence

from schemas.arrays import Arrays
from schemas.config import RunConfig, Settings
from schemas.pipeline import Stage
from schemas.signals import Signal, Source
from tasks.inputs.recorded import RecordedQuestion
from tasks.stages.distillation.branches import distill_branches
from tasks.stages.without_models import WithoutModels


class RecordedProvider(WithoutModels):
    """A `tasks.stages.protocol.Provider` that reads recorded tables, and their `tasks.run.keys.Identities`."""

    decoded = 0

    def __init__(self, config: RunConfig, questions: Mapping[str, RecordedQuestion]) -> None:
        self._config, self._questions = config, questions
        self._texts = {token: text for q in questions.values() for token, text in q.texts.items()}

    @property
    def questions(self) -> list[str]:
        """Question ids, in order of their first row."""
        return list(self._questions)

    def settings(self, stage: Stage) -> dict[str, object]:
        """Recorded rollouts depend only on their rows; the temperature enters the keys of ideal gradients instead."""
        if stage.name == "rollouts":
            return {}
        if stage.name == "ideal":
            return {"temperature": self._config.sampling.temperature}
        return stage.settings(self._config)

    def of_question(self, question: str) -> dict[str, str]:
        """Digest of the question's rows."""
        return {"rows": self._questions[question].digest}

    def of_teacher(self, source: Source, question: str) -> dict[str, object]:
        """Digest of the teacher's rows."""
        return {"rows": self._questions[question].teachers[source.teacher].digest}

    def rollouts(self, question: str) -> Arrays:
        """Stage 1."""
        return self._questions[question].rollouts

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        """Stage 2."""
        return self._questions[question].tree

    def distillation(
        self,
        question: str,
        losses: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        tree: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Stage 4."""
        teachers = self._questions[question].teachers
        return {
            Signal(*source, name): arrays
            for source, of_source in losses.items()
            for name, arrays in distill_branches(
                rollouts["tokens"], tree, teachers[source.teacher].prob, of_source
            ).items()
        }

    def of_writer(self, source: Source, question: str) -> dict[str, object]:
        """Not available: a recorded teacher has no context.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("recorded teachers have no contexts")

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        """Not available: nothing can be sampled.

        Raises:
            NotImplementedError: always; `flows.command.configuration.check_ranked` refuses such a run beforehand.
        """
        raise NotImplementedError("recorded outcomes have no values along rollouts")

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Texts of token ids, from the table."""
        return {token: self._texts.get(token, "" if token < 0 else f"#{token}") for token in sorted(set(ids))}

    def decode(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """Texts of runs of tokens: those of the tokens, one after another."""
        return ["".join(self.texts([token])[token] for token in run) for run in runs]

    def close(self) -> None:
        """Nothing to close."""
