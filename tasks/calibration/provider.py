"""Evidence from the exact oracle: chains instead of models, sampled from their tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig, Settings
from schemas.signals import Signal, Source
from tasks.calibration.chain import Chain
from tasks.calibration.simulate import OracleTeaching, Rolled, continue_freely, draw, roll
from tasks.stages.trees.planner import Design, Launches, grow_tree
from tasks.stages.trees.stage import planner_of
from tasks.stages.without_models import WithoutModels


class Chains(NamedTuple):
    """The chains of a question's student and teachers."""

    student: Chain
    teachers: Mapping[str, Chain]


class OracleProvider(WithoutModels):
    """A `tasks.stages.protocol.Provider` of chains, by question; all randomness comes from one generator."""

    def __init__(self, config: RunConfig, chains: Mapping[str, Chains], rng: np.random.Generator) -> None:
        self.decoded = 0
        self.rolled: dict[str, Rolled] = {}
        self._config, self._chains, self._rng = config, chains, rng

    def rollouts(self, question: str) -> Arrays:
        """Stage 1."""
        config, chain = self._config, self._chains[question].student
        self.rolled[question] = rolled = roll(chain, question, config.sampling.rollouts, config.seed, self._rng)
        self.decoded += config.sampling.rollouts * (chain.length + 1)  # the outcome included
        return rolled.arrays

    def tree(self, question: str, rollouts: Arrays) -> Arrays:
        """Stage 2."""
        planner, rolled = planner_of(self._config.tree), self.rolled[question]

        def draw_round(index: int, design: Design, launches: Launches) -> dict[str, AnyArray]:
            sample = continue_freely if (launches.token < 0).any() else draw
            outcome = sample(rolled, launches, self._rng)
            self.decoded += int(outcome["length"].sum()) if "length" in outcome else len(outcome["tokens"])
            return outcome

        return grow_tree(planner, rolled.frame, draw_round)

    def distillation(
        self,
        question: str,
        losses: Mapping[Source, Mapping[str, Settings]],
        rollouts: Arrays,
        tree: Arrays,
        texts: Mapping[Source, Arrays],
    ) -> Mapping[Signal, Arrays]:
        """Stage 4."""
        rolled, teachers = self.rolled[question], self._chains[question].teachers
        return {
            Signal(*source, name): OracleTeaching(rolled, teachers[source.teacher], loss).distillation(tree)
            for source, of_source in losses.items()
            for name, loss in of_source.items()
        }

    def values(self, question: str, rollouts: Arrays) -> Arrays:
        """Not available: oracle rankings assign one advantage to each whole rollout.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("the oracle does not estimate values along rollouts")

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """Placeholders: tokens of chains have no text."""
        return {token: f"#{token}" for token in ids}

    def decode(self, runs: Sequence[Sequence[int]]) -> list[str]:
        """Placeholders, one after another."""
        return ["".join(f"#{token}" for token in run) for run in runs]

    def close(self) -> None:
        """Nothing to release."""
