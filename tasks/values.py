"""Values along rollouts: how often the student succeeds from the ends of their segments, for rankings."""

from itertools import pairwise

import numpy as np

from schemas.arrays import AnyArray
from tasks.engines.protocol import Draw
from tasks.engines.streams import stream_seed
from tasks.job import Job
from tasks.questions import Question
from tasks.ragged import Ints
from tasks.rollouts import trunks, verified
from tasks.store.artefact import Artefact


def boundaries(offsets: Ints, segments: int) -> Ints:
    """Ends of the segments of all rollouts but the last ones: equal parts, never empty."""
    out = []
    for start, end in pairwise(offsets.tolist()):
        cuts = {start + round((end - start) * i / segments) for i in range(1, segments)}
        out += sorted(cuts - {start, end})
    return np.array(out, dtype=np.int64)


def make_values(job: Job, question: Question, rollouts: Artefact) -> dict[str, AnyArray]:
    """The values of one question's rollouts."""
    settings, offsets = job.config.ranking, rollouts["offsets"]
    ends = boundaries(offsets, settings.segments)
    draws, begun = [], []
    for end in ends.tolist():
        r = int(np.searchsorted(offsets, end, side="right")) - 1
        depth = end - int(offsets[r])
        for index in range(settings.draws):
            identity = stream_seed(job.config.seed, question.id, "value", r, depth, index)
            draws.append(Draw(r, depth, None, job.config.sampling.max_tokens - depth, identity))
            begun.append(rollouts["tokens"][offsets[r] : end].tolist())
    continued = job.sampler.continue_prefixes(trunks(rollouts), draws, job.config.sampling.temperature)
    success = verified(job, question, begun, continued)
    return {
        "boundary": ends,
        "draws": np.full(len(ends), settings.draws, dtype=np.int32),
        "successes": success.reshape(len(ends), settings.draws).sum(axis=1).astype(np.int32),
    }
