"""Stage 4: distillation gradients, and the part of them that a ranking needs."""

import numpy as np

from schemas.arrays import RANKING, AnyArray, Arrays
from schemas.config import GRPO, DrGRPO, Settings
from schemas.signals import REWARDED, Source, losses, written_sources
from tasks.stages.distillation.returns import reward_gradients
from tasks.stages.protocol import Made, Work

NO_NODES: dict[str, AnyArray] = {
    "node": np.empty(0, dtype=np.int64),
    "branch_offsets": np.zeros(1, dtype=np.int64),
    "branch_token": np.empty(0, dtype=np.int32),
    "branch_tail": np.empty(0, dtype=bool),
}


def make(work: Work) -> Made:
    """The gradients at the rollouts' positions and the tree's branches, by signal."""
    tree, of_run = work.read("trees"), losses(work.config)
    made = dict(_made(work, tree))
    for signal in work.signals:
        loss = of_run[signal.loss]
        if isinstance(loss, DrGRPO | GRPO):
            made[signal] = reward_gradients(loss, work.read("rollouts"), tree)
    return made


def make_ranking(work: Work) -> Made:
    """Input of a ranking: the gradients at the sampled tokens only, without a tree."""
    made = _made(work, NO_NODES)
    return {signal: {name: arrays[name] for name in RANKING} for signal, arrays in made.items()}


def _made(work: Work, tree: Arrays) -> Made:
    of_run = losses(work.config)
    wanted: dict[Source, dict[str, Settings]] = {}
    for signal in (s for s in work.signals if s.source != REWARDED):
        wanted.setdefault(signal.source, {})[signal.loss] = of_run[signal.loss]
    if not wanted:
        return {}
    written = [source for source in written_sources(work.config) if source in wanted]
    texts = {source: work.read("texts", source.every_loss) for source in written}
    made = work.provider.distillation(work.question, wanted, work.read("rollouts"), tree, texts)
    return {signal: arrays for signal, arrays in made.items()}  # noqa: C416 - a mapping's type of keys is invariant
