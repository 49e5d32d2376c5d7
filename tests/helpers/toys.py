"""One of each thing that can be added: a stage, a planner, an engine, a verifier, a loss."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from schemas.arrays import AnyArray, Array
from schemas.config import Model
from schemas.config.base import Settings
from schemas.config.engines import ScoringSettings
from schemas.config.trees import Branching
from schemas.pipeline import Stage
from tasks.engines.protocol import Capacity, Continuation, Draw, Sampler, Trunk
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.stages.protocol import Made, Work
from tasks.stages.trees.design import Completed, RoundDesign, design_round, tree_of
from tasks.stages.trees.frame import SamplingFrame
from tasks.verifiers.protocol import Attempt

TOY_STAGE = Stage(
    "toy",
    1,
    {"length": Array(("R",), "int64", "tokens of each rollout", "token")},
    "tests.helpers.toys:make",
    reads=("rollouts",),
    settings=lambda config: {"seed": config.seed},
)


def make(work: Work) -> Made:
    """Lengths of rollouts."""
    return {None: {"length": np.diff(work.read("rollouts")["offsets"])}}


class ToyTree(Branching):
    """A node at the first token of every rollout."""

    kind: Literal["toy"] = "toy"
    implementation: ClassVar[str] = "tests.helpers.toys:ToyPlanner"
    draws: int = 12

    @property
    def most_draws(self) -> int:
        return 4 * self.draws


class ToyPlanner:
    """Plans its one round."""

    def __init__(self, tree: ToyTree) -> None:
        self._tree = tree

    def next_round(self, frame: SamplingFrame, completed: Sequence[Completed], seconds: float) -> RoundDesign | None:
        nodes = np.asarray(frame.offsets[:-1], dtype=np.int64)
        return None if completed else design_round(frame, nodes, np.ones(len(nodes)), self._tree, self._tree.draws)

    def tree(self, frame: SamplingFrame, completed: Sequence[Completed]) -> dict[str, AnyArray]:
        return tree_of(frame, completed)


class ToyVerifier(Settings):
    """Completions with an even number of characters are right."""

    kind: Literal["toy"] = "toy"
    implementation: ClassVar[str] = "tests.helpers.toys:Even"


class Even:
    """Its verdicts."""

    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: ToyVerifier) -> None:
        """Nothing is set."""

    def check_all(self, attempts: Sequence[Attempt]) -> list[bool]:
        return [len(attempt.completion) % 2 == 0 for attempt in attempts]

    def problem(self, answers: Sequence[str]) -> tuple[int, str] | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


class ToyEngine(ScoringSettings):
    """transformers, told apart by its name."""

    kind: Literal["toy"] = "toy"
    implementation: ClassVar[str] = "tests.helpers.toys:ToyBackend"
    needs: ClassVar[str] = "kind"
    memory: float | None = None
    rows: int | None = None


class ToySampler:
    """Counts calls."""

    calls = 0

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    @property
    def decoded(self) -> int:
        return self._sampler.decoded

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        ToySampler.calls += 1
        return self._sampler.continue_prefixes(trunks, draws, temperature)

    @property
    def capacity(self) -> Capacity:
        return self._sampler.capacity

    def release(self) -> None:
        self._sampler.release()


class ToyBackend:
    """Samples with the student itself."""

    versions, longest = "toy 1 ", None

    def __init__(self, settings: ToyEngine) -> None:
        self._settings = settings

    def sampler(self, model: Model, stop: frozenset[int], scorer: Callable[[], Any]) -> Sampler:
        settings: Any = self._settings
        return ToySampler(TransformersSampler(scorer(), stop, settings))


class ToyLoss(Settings):
    """scale times sum_j P_j (log P_j - log T_j): reverse KL, scaled."""

    kind: Literal["toy"] = "toy"
    implementation: ClassVar[str] = "tests.helpers.toys:scaled"
    scale: float = 3.0


def scaled(log_p: torch.Tensor, log_t: torch.Tensor, scale: float) -> torch.Tensor:
    """P f, f = scale (log P - log T + 1)."""
    return scale * log_p.exp() * (log_p - log_t + 1)
