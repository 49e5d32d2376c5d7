"""The forced plan: one round with a fixed number of nodes, sampled by leverage or uniformly."""

from collections.abc import Sequence

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import ForcedTree
from tasks.stages.trees.design import Completed, RoundDesign, design_round, tree_of
from tasks.stages.trees.frame import SamplingFrame
from tasks.statistics.design import inclusion_probabilities, systematic_sample


class ForcedPlanner:
    """Plans the one round of a forced tree."""

    def __init__(self, tree: ForcedTree) -> None:
        self._tree = tree

    def next_round(self, frame: SamplingFrame, completed: Sequence[Completed], seconds: float) -> RoundDesign | None:
        """The first round, then None."""
        if completed:
            return None
        tree = self._tree
        sizes = frame.leverage if tree.node_choice == "leverage" else np.ones(len(frame.leverage))
        inclusion = inclusion_probabilities(sizes, tree.nodes)
        nodes = systematic_sample(inclusion, frame.start(0))
        return design_round(frame, nodes, inclusion[nodes], tree, tree.draws)

    def tree(self, frame: SamplingFrame, completed: Sequence[Completed]) -> dict[str, AnyArray]:
        """The tree of the round."""
        return tree_of(frame, completed)
