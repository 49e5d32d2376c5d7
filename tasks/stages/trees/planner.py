"""The loop that grows a tree, independent of how rounds are planned and drawn."""

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
    """Where the draws of a round start: after the first `depth` tokens of a rollout and, unless it is -1, `token`.

    Arrays [L] each; `draws` counts the draws from each.
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
    """A round without its outcomes."""

    def launches(self, offsets: Ints) -> Launches:
        """Where its draws start; `offsets` are those of the rollouts."""
        ...

    def units(self, offsets: Ints, most: int) -> list[Unit]:
        """Its launches split into units of at most `most` draws."""
        ...


D = TypeVar("D", bound=Design)


@dataclass(frozen=True)
class CompletedRound(Generic[D]):
    """A round with its outcomes.

    Attributes:
        launches: of its design.
        outcome: of every draw, in order of launch and draw, in the layout "continuations", or "rounds" where draws have
            no tokens, as those of the oracle.
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
        """Number of draws."""
        return int(self.launches.draws.sum())

    @property
    def tokens(self) -> int:
        """Decoded tokens."""
        return int(self.outcome["length"].sum()) if "length" in self.outcome else len(self.outcome["tokens"])

    def _count(self, name: str) -> Ints:
        counts = np.bincount(self.launches.owner, self.outcome[name], len(self.launches.draws))
        return np.asarray(counts, dtype=np.int64)


class Planner(Protocol[D]):
    """Plans where a question's draws go, round by round, and makes a tree of their outcomes."""

    def next_round(self, frame: SamplingFrame, completed: Sequence[CompletedRound[D]], seconds: float) -> D | None:
        """The design of the next round; None if the tree is finished.

        Args:
            completed: the rounds so far.
            seconds: time that they took.
        """
        ...

    def tree(self, frame: SamplingFrame, completed: Sequence[CompletedRound[D]]) -> dict[str, AnyArray]:
        """The arrays of `schemas.arrays.TREES`."""
        ...


Draw = Callable[[int, D, Launches], Arrays]
"""Draws a round, given its index: outcomes as `CompletedRound` has them."""


def grow_tree(
    planner: Planner[D], frame: SamplingFrame, draw: Draw[D], clock: Callable[[], float] = time.monotonic
) -> dict[str, AnyArray]:
    """The arrays of one question's tree."""
    completed: list[CompletedRound[D]] = []
    start = clock()
    while (design := planner.next_round(frame, completed, clock() - start)) is not None:
        launches = design.launches(frame.offsets)
        completed.append(CompletedRound(design, launches, draw(len(completed), design, launches)))
    return planner.tree(frame, completed)
