"""Evidence from models: student and teachers sample and score, a verifier checks."""

from collections.abc import Iterable, Mapping, Sequence

from schemas.arrays import Arrays
from schemas.config import MiniLLM, RunConfig, Settings
from schemas.signals import REWARDED, Signal, Source
from tasks.engines.scoring import Scored, View
from tasks.engines.translation import TranslatedView, decoded_after
from tasks.engines.turn import TURN
from tasks.stages.answers import make_answers, make_continuations
from tasks.stages.distillation.gradients import distill
from tasks.stages.distillation.returns import draw_log_ratios, with_returns
from tasks.stages.protocol import Checkpoints, Models
from tasks.stages.rollouts import make_rollouts
from tasks.stages.texts import make_texts
from tasks.stages.trees.stage import make_tree
from tasks.stages.updates.projection import Projection
from tasks.stages.updates.stage import updates
from tasks.stages.values import make_values


class ModelProvider:
    """A `tasks.stages.protocol.Provider` backed by models."""

    def __init__(self, models: Models, config: RunConfig, checkpoints: Checkpoints) -> None:
        self.models, self._config, self._checkpoints = models, config, checkpoints
        self._project = Projection(config.update.dimensions)

    @property
    def decoded(self) -> int:
        """Tokens sampled so far."""
        return self.models.decoded

    def rollouts(self, question: str) -> Arrays:
        """Stage 1."""
        given = self.models.given_rollouts(question)
        if given is not None:
            return given
        with TURN:
            return make_rollouts(self.models, self._config, question, self._checkpoints)

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        """Stage 2."""
        with TURN:
            return make_tree(self.models, self._config, question, rollouts, self._checkpoints)

    def write(self, question: str, sources: Sequence[Source], rollouts: Arrays) -> Mapping[Source, Arrays]:
        """Texts that contexts show."""
        with TURN:
            return {s: make_texts(self.models, self._config, s, question, rollouts) for s in sources}

    def answers(
        self, question: str, sources: Sequence[Source], rollouts: Arrays, texts: Mapping[Source, Arrays]
    ) -> Mapping[Source, Arrays]:
        """Teachers' own answers."""
        with TURN:
            return {s: make_answers(self.models, self._config, s, question, rollouts, texts.get(s)) for s in sources}

    def handover(self, question: str, rollouts: Arrays, answers: Mapping[Source, Arrays]) -> Mapping[Source, Arrays]:
        """What the student makes of parts of teachers' answers."""
        with TURN:
            return {
                source: make_continuations(self.models, self._config, source, question, rollouts, of_source)
                for source, of_source in answers.items()
            }

    def distillation(
        self,
        question: str,
        losses: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        tree: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Stage 4 for some losses of each source, from one pass over the student and each teacher.

        Another pass goes over the tree's draws for the losses that need their log-probabilities.
        """
        student = View(self.models.student, rollouts["prompt"].tolist())
        teachers = {s: teacher_view(self.models, s, question, rollouts, texts.get(s)) for s in losses}
        scoring = {"block": self._config.engine.score_rows, "group_tokens": self._config.engine.batch_tokens}
        temperature = self._config.sampling.temperature
        tokens, offsets = rollouts["tokens"], rollouts["offsets"]
        made = distill(student, teachers, tokens, offsets, tree, losses, temperature=temperature, **scoring)
        of_draws = {
            Signal(*source, name): loss
            for source, of_source in losses.items()
            for name, loss in of_source.items()
            if isinstance(loss, MiniLLM)
        }
        views = {s.source: view for s in of_draws if isinstance(view := teachers[s.source], View)}
        ratios = draw_log_ratios(student, list(views.values()), rollouts, tree, **scoring) if views else []
        by_source = dict(zip(views, ratios, strict=True))
        for signal, loss in of_draws.items():
            made[signal] = with_returns(made[signal], loss, by_source[signal.source], tree)
        return made

    def updates(
        self,
        question: str,
        wanted: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Updates of the student's parameters."""
        taught = [source for source in wanted if source != REWARDED]
        return updates(
            self.models.differentiable,
            {s: teacher_view(self.models, s, question, rollouts, texts.get(s)) for s in taught},
            wanted,
            rollouts,
            self._project,
            temperature=self._config.sampling.temperature,
            block=self._config.engine.score_rows,
            group_tokens=self._config.engine.batch_tokens,
        )

    def together(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Sources whose models fit in memory together."""
        return self.models.together(sources)

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        """Success probabilities along rollouts."""
        with TURN:
            return make_values(self.models, self._config, question, rollouts, self._checkpoints)

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Text of token ids, from the tokenizer."""
        distinct = sorted(set(ids))
        return dict(zip(distinct, self.decode([[t] for t in distinct]), strict=True))

    def decode(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """Texts of runs of tokens in the middle of a text, from the tokenizer."""
        return decoded_after(self.models.tokenizer, runs) if runs else []

    def close(self) -> None:
        """Stop worker processes and the sampler."""
        self.models.close()


def teacher_view(models: Models, source: Source, question: str, rollouts: Arrays, texts: Arrays | None) -> Scored:
    """A teacher with its prompts for a question, as a source of rows over the student's vocabulary.

    Args:
        texts: the generated texts of its context, if that has some.
    """
    prompt, by_rollout = models.teacher_prompts(source, question, rollouts, texts)
    translation, view = models.translation(source), models.served_view(source, prompt, by_rollout)
    if view is not None:
        return view
    if translation is None:
        return View(models.teacher(source), prompt, by_rollout)
    return TranslatedView(models.teacher(source), prompt, by_rollout, translation, models.student.vocabulary)
