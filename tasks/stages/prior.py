"""The prior of all nodes, fitted jointly to the trees of a run's questions."""

from tasks.stages.protocol import Made, Work
from tasks.statistics.estimators import pool_rounds
from tasks.statistics.prior import fit


def make(work: Work) -> Made:
    """The prior for inference on single nodes."""
    return {None: fit([pool_rounds(tree).outcomes for tree in work.reads.every("trees")])._asdict()}
