"""The prior of all nodes, fitted to the trees of a run's questions together."""

from tasks.stages.protocol import Made, Work
from tasks.statistics.estimators import pool_rounds
from tasks.statistics.prior import fit


def make(work: Work) -> Made:
    """The prior that single nodes are read with."""
    return {None: fit([pool_rounds(tree).outcomes for tree in work.reads.every("trees")])._asdict()}
