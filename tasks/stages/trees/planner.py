"""The one loop that grows a tree, whoever plans its rounds and whoever draws them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from schemas.arrays import AnyArray, Arrays
from tasks.stages.protocol import Unit
from tasks.stages.trees.frame import SamplingFrame
from tasks.statistics.csr import Ints


class Launches(NamedTuple):
    """Where the draws of a round start: after the first `depth` tokens of a rollout and, where it is not -1, `token`.

    Arrays [L] each, `draws` made from each.
    """

    rollout: Ints
    depth: Ints
    token: Ints
    draws: Ints

    @property
    def owner(self) -> Ints:
        """The launch of each draw, [D]."""
        return np.repeat(np.arange(len(self.draws)), self.draws)


class Design(Protocol):
    """Everything of a round but its outcomes."""

    def launches(self, offsets: Ints) -> Launches:
        """Where its draws start; `offsets` are the rollouts'."""
        ...

    def units(self, offsets: Ints, most: int) -> list[Unit]:
        """Its launches cut into units of at most `most` draws."""
        ...


D = TypeVar("D", bound=Design)


@dataclass(frozen=True)
class CompletedRound(Generic[D]):
    """A round with its outcomes.

    Attributes:
        outcome: of every draw, in order of launch and draw, as the planner's layout has it.
        launches: of its design.
    """

    design: D
    launches: Launches
    outcome: Arrays

    @cached_property
    def successes(self) -> Ints:
        """Draws of each launch that the verifier accepts, [L]."""
        return self._count("success")

    @cached_property
    def truncations(self) -> Ints:
        """Draws of each launch that the length limit stopped, [L]."""
        return self._count("truncated")

    @property
    def draws(self) -> int:
        """All its draws."""
        return int(self.launches.draws.sum())

    @property
    def tokens(self) -> int:
        """Tokens that were decoded for it."""
        return int(self.outcome["length"].sum()) if "length" in self.outcome else len(self.outcome["tokens"])

    def _count(self, name: str) -> Ints:
        counts = np.bincount(self.launches.owner, self.outcome[name], len(self.launches.draws))
        return np.asarray(counts, dtype=np.int64)


class Planner(Protocol[D]):
    """Says where a question's draws go, round by round, and makes a tree of what they showed.

    Attributes:
        layout: what is kept of each draw: "rounds", or "continuations" where its tokens are needed too.
    """

    layout: str

    def next_round(self, frame: SamplingFrame, completed: Sequence[CompletedRound[D]], seconds: float) -> D | None:
        """The design of the next round; None where the tree is finished.

        Args:
            completed: the rounds so far.
            seconds: that they took.
        """
        ...

    def tree(self, frame: SamplingFrame, completed: Sequence[CompletedRound[D]]) -> dict[str, AnyArray]:
        """The arrays of `schemas.arrays.TREES`."""
        ...


Draw = Callable[[int, D, Launches], Arrays]
"""Draws a round, given its number: outcomes as the planner's layout has them."""


def grow_tree(
    planner: Planner[D], frame: SamplingFrame, draw: Draw[D], clock: Callable[[], float] = time.monotonic
) -> dict[str, AnyArray]:
    """The arrays of one question's tree."""
    completed: list[CompletedRound[D]] = []
    began = clock()
    while (design := planner.next_round(frame, completed, clock() - began)) is not None:
        launches = design.launches(frame.offsets)
        completed.append(CompletedRound(design, launches, draw(len(completed), design, launches)))
    return planner.tree(frame, completed)
