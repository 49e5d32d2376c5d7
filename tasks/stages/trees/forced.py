"""The forced plan: one round, of chosen nodes with a fixed number of draws each."""

import numpy as np

from schemas.config import ForcedTree
from tasks.stages.trees.rounds import Ground, Plan, plan_round
from tasks.statistics.design import inclusion_probabilities, systematic_sample


def forced_plan(tree: ForcedTree, ground: Ground) -> Plan:
    """The only round."""
    sizes = ground.leverage if tree.node_choice == "leverage" else np.ones(len(ground.leverage))
    inclusion = inclusion_probabilities(sizes, tree.nodes)
    nodes = systematic_sample(inclusion, ground.start(0))
    return plan_round(ground, nodes, inclusion[nodes], tree, tree.draws)
