"""Values along rollouts: how often the student succeeds from the ends of their segments, for rankings."""

from itertools import pairwise

import numpy as np

from schemas.arrays import AnyArray
from tasks.engines.protocol import Draw
from tasks.inputs.questions import Question
from tasks.run.session import Job
from tasks.stages.rollouts import outcomes, trunks
from tasks.statistics.csr import Ints
from tasks.statistics.streams import stream_seed
from tasks.store.checkpoints import Unit, decoded_round, equal_units
from tasks.store.store import Artefact

VALUE_DRAWS = "draws of values"
"""What progress calls them."""


def boundaries(offsets: Ints, segments: int) -> Ints:
    """Ends of the segments of all rollouts but the last ones: equal parts, never empty."""
    out = []
    for start, end in pairwise(offsets.tolist()):
        cuts = {start + round((end - start) * i / segments) for i in range(1, segments)}
        out += sorted(cuts - {start, end})
    return np.array(out, dtype=np.int64)


def make_values(job: Job, question: Question, rollouts: Artefact) -> dict[str, AnyArray]:
    """The values of one question's rollouts; what is committed of their draws is not decoded again."""
    settings, offsets = job.config.ranking, rollouts["offsets"]
    ends = boundaries(offsets, settings.segments)

    def decode(unit: Unit) -> dict[str, AnyArray]:
        draws, begun = [], []
        for end in ends[unit.first : unit.last].tolist():
            r = int(np.searchsorted(offsets, end, side="right")) - 1
            depth = end - int(offsets[r])
            for index in range(settings.draws):
                identity = stream_seed(job.config.seed, question.id, "value", r, depth, index)
                draws.append(Draw(r, depth, None, job.config.sampling.max_tokens - depth, identity))
                begun.append(rollouts["tokens"][offsets[r] : end].tolist())
        continued = job.sampler.continue_prefixes(trunks(rollouts), draws, job.config.sampling.temperature)
        return outcomes(job, question, begun, continued)

    units = equal_units(len(ends), max(1, job.config.execution.round_draws // settings.draws))
    made = decoded_round(job, job.values_key(question.id), 0, units, decode, shown=VALUE_DRAWS, kept=False)
    return {
        "boundary": ends,
        "draws": np.full(len(ends), settings.draws, dtype=np.int32),
        "successes": made["success"].reshape(len(ends), settings.draws).sum(axis=1).astype(np.int32),
    }
