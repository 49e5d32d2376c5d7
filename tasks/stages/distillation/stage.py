"""Stage 4: distillation gradients of one teacher with one context, and the part that a ranking needs."""

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.signals import Signal, losses
from tasks.stages.protocol import Made, Work

NO_NODES: dict[str, AnyArray] = {
    "node": np.empty(0, dtype=np.int64),
    "branch_offsets": np.zeros(1, dtype=np.int64),
    "branch_token": np.empty(0, dtype=np.int32),
    "branch_tail": np.empty(0, dtype=bool),
}


def make(work: Work) -> Made:
    """The gradients at the rollouts' positions and the tree's branches, by signal."""
    return _made(work, work.read("trees"))


def make_ranking(work: Work) -> Made:
    """Input of a ranking: the gradients at the sampled tokens only, without a tree."""
    made = _made(work, NO_NODES)
    return {signal: {name: arrays[name] for name in ("d_sq", "d_token")} for signal, arrays in made.items()}


def _made(work: Work, tree: Arrays) -> Made:
    if work.source is None:
        raise ValueError("distillation gradients need one teacher with one context")
    wanted = {signal.loss for signal in work.signals}
    of_run = {name: loss for name, loss in losses(work.config).items() if name in wanted}
    made = work.provider.distillation(work.question, work.source, of_run, work.read("rollouts"), tree)
    return {Signal(*work.source, name): arrays for name, arrays in made.items()}
