"""One training after another in one process, whose models are loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig, optimiser_name
from tasks.engines.choice import EngineChoice, choose
from tasks.engines.counts import SCORED
from tasks.engines.identity import ModelLibrary
from tasks.engines.protocol import Draw, Trunk
from tasks.inputs.questions import Question
from tasks.run.contexts import Prompts
from tasks.run.models import LoadedModels
from tasks.statistics.streams import stream_seed
from tasks.validation.steps import Asked, gradient, sample
from tasks.validation.student import Student
from tasks.validation.trainings import Training
from tasks.verifiers.protocol import Attempt


class Keeper(Protocol):
    """Keeps the state of a training while it goes on."""

    def load(self) -> Arrays | None:
        """What was kept of it, in the layout `schemas.arrays.TRAINING_STATE`."""
        ...

    def due(self) -> bool:
        """Whether it is time to save again."""
        ...

    def save(self, arrays: Arrays) -> None:
        """Keep a state in place of the last one."""
        ...


Report = Callable[[int, int], None]
"""Is told of steps that are done, and of the tokens that were sampled for them."""


class Trainer:
    """Trains the student of a validation, and measures its success on held-out questions.

    Args:
        config: of a run; its questions are those that are trained on.
    """

    def __init__(self, config: RunConfig, questions: Sequence[Question], held_out: Sequence[Question]) -> None:
        self._config, library = config, ModelLibrary()
        self._questions, self._held_out = [q.id for q in questions], list(held_out)
        self.models = LoadedModels(config, library, EngineChoice(choose(config)[0]), {q.id: q for q in questions})
        self._asked = Asked(self.models)
        prompts = Prompts(config, library, {q.id: q for q in held_out})
        self._trunks = [Trunk(tuple(prompts.student(q.id))) for q in held_out]

    @cached_property
    def student(self) -> Student:
        """The student, with weights of its own."""
        return Student(self._config, self.models.tokenizer, self.models.ends)

    def run(self, training: Training, keeper: Keeper, report: Report) -> Arrays:
        """One training from its start, or from what was kept of it.

        Returns:
            the arrays `schemas.arrays.TRAININGS`.
        """
        settings = self._config.validation
        by_name = {optimiser_name(optimiser): optimiser for optimiser in settings.optimisers}
        self.student.start(by_name.get(training.optimiser))
        if training.signal is None:
            log = _Log(len(self._held_out), step=[0], success=[self.success()], decoded=[0], scored=[0])
            return log.arrays
        saved = keeper.load()
        log, done = (_Log(len(self._held_out)), 0) if saved is None else (_Log.of(saved), int(saved["done"][0]))
        if saved is not None:
            self.student.restore(saved["weights"])
            report(done, 0)
        for step in range(done, settings.steps):
            decoded, scored = self.student.decoded, SCORED.value
            questions = self.of_step(training.seed, step)
            rollouts = sample(self._asked, self._config, self.student, training, step, questions)
            self.student.step(gradient(self._config, self.student, training, rollouts))
            tokens = self.student.decoded - decoded
            log.count(tokens, SCORED.value - scored)
            if step + 1 in settings.logged:
                log.add(step + 1, self.success())
            report(1, tokens)
            if step + 1 < settings.steps and keeper.due():
                keeper.save(log.state | {"done": np.array([step + 1], dtype=np.int32), "weights": self.student.state()})
        return log.arrays

    def success(self) -> AnyArray:
        """Success rate of the student on every held-out question, [H]: the same draws for whatever weights."""
        config, n = self._config, self._config.validation.held_out_rollouts
        seeds = (
            (i, stream_seed(config.seed, q.id, "held out", r)) for i, q in enumerate(self._held_out) for r in range(n)
        )
        draws = [Draw(i, 0, None, config.sampling.max_tokens, seed) for i, seed in seeds]
        ends = self.student.sampler.continue_prefixes(self._trunks, draws, config.sampling.temperature)
        texts = self.models.tokenizer.batch_decode([end.tokens.tolist() for end in ends], skip_special_tokens=True)
        attempts = [
            Attempt(text, self._held_out[draw.trunk].answer, end.truncated)
            for text, draw, end in zip(texts, draws, ends, strict=True)
        ]
        verdicts = np.array(self.models.verifier.check_all(attempts), dtype=np.float64)
        return np.asarray(verdicts.reshape(-1, n).mean(axis=1), dtype=np.float32)

    def close(self) -> None:
        """Release the models."""
        self.models.close()

    def of_step(self, seed: int, step: int) -> list[str]:
        """The questions of a step: all of them in turn, in an order of its own for each seed and round."""
        n, batch = len(self._questions), self._config.validation.batch
        places = [divmod(place, n) for place in range(step * batch, (step + 1) * batch)]
        orders = {turn: self._order(seed, turn) for turn in {turn for turn, _ in places}}
        return [self._questions[orders[turn][within]] for turn, within in places]

    def _order(self, seed: int, turn: int) -> list[int]:
        rng = np.random.default_rng(stream_seed(self._config.seed, "order of training", seed, turn))
        order: list[int] = rng.permutation(len(self._questions)).tolist()
        return order


@dataclass
class _Log:
    """What is known of a training so far: at the logged steps, and of tokens since the start."""

    held_out: int
    step: list[int] = field(default_factory=list)
    success: list[AnyArray] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    decoded_now: int = 0
    scored_now: int = 0

    @classmethod
    def of(cls, state: Arrays) -> "_Log":
        """As it was saved."""
        columns = (state["step"].tolist(), list(state["success"]), state["decoded"].tolist(), state["scored"].tolist())
        return cls(state["success"].shape[1], *columns, *state["so_far"].tolist())

    def count(self, decoded: int, scored: int) -> None:
        """Add the tokens of a step."""
        self.decoded_now += decoded
        self.scored_now += scored

    def add(self, step: int, success: AnyArray) -> None:
        """Log the success after a step."""
        self.step.append(step)
        self.success.append(success)
        self.decoded.append(self.decoded_now)
        self.scored.append(self.scored_now)

    @property
    def arrays(self) -> dict[str, AnyArray]:
        """In the layout `schemas.arrays.TRAININGS`."""
        return {
            "step": np.array(self.step, dtype=np.int32),
            "success": np.array(self.success, dtype=np.float32).reshape(len(self.step), self.held_out),
            "decoded": np.array(self.decoded, dtype=np.int64),
            "scored": np.array(self.scored, dtype=np.int64),
        }

    @property
    def state(self) -> dict[str, AnyArray]:
        """The same, and the tokens so far."""
        return {**self.arrays, "so_far": np.array([self.decoded_now, self.scored_now], dtype=np.int64)}
