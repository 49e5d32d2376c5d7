"""Values along rollouts: success rates of the student from the ends of their segments, for rankings."""

from itertools import pairwise

import numpy as np

from schemas.arrays import AnyArray, Arrays
from schemas.config import RunConfig
from tasks.engines.protocol import Draw
from tasks.stages.draws import outcomes, trunks
from tasks.stages.protocol import Checkpoints, Made, Models, Unit, Work, equal_units
from tasks.statistics.csr import Ints
from tasks.statistics.streams import stream_seed


def make(work: Work) -> Made:
    """The values of one question's rollouts."""
    return {None: work.provider.values(work.question, work.read("rollouts"))}


def boundaries(offsets: Ints, segments: int) -> Ints:
    """Inner segment boundaries of all rollouts: equal parts, never empty."""
    out = []
    for start, end in pairwise(offsets.tolist()):
        inner = {start + round((end - start) * i / segments) for i in range(1, segments)}
        out += sorted(inner - {start, end})
    return np.array(out, dtype=np.int64)


def make_values(
    models: Models, config: RunConfig, question: str, rollouts: Arrays, checkpoints: Checkpoints
) -> dict[str, AnyArray]:
    """The values of one question's rollouts; saved draws are not decoded again."""
    settings, offsets = config.ranking, rollouts["offsets"]
    ends = boundaries(offsets, settings.segments)

    def decode(unit: Unit) -> dict[str, AnyArray]:
        draws, prefixes = [], []
        for end in ends[unit.first : unit.last].tolist():
            r = int(np.searchsorted(offsets, end, side="right")) - 1
            depth = end - int(offsets[r])
            for index in range(settings.draws):
                identity = stream_seed(config.seed, question, "value", r, depth, index)
                draws.append(Draw(r, depth, None, config.sampling.max_tokens - depth, identity))
                prefixes.append(rollouts["tokens"][offsets[r] : end].tolist())
        continued = models.sampler.continue_prefixes(trunks(rollouts), draws, config.sampling.temperature)
        return outcomes(models, question, prefixes, continued)

    units = equal_units(len(ends), max(1, checkpoints.most_draws // settings.draws))
    made = checkpoints.decode_round("values", question, 0, units, decode)
    return {
        "boundary": ends,
        "draws": np.full(len(ends), settings.draws, dtype=np.int32),
        "successes": made["success"].reshape(len(ends), settings.draws).sum(axis=1).astype(np.int32),
    }
