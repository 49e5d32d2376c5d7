"""What a student can learn of answers that it cannot know: where a loss comes to rest between teachers that disagree.

A teacher that copies an answer from its context states it where the student, after the same words, would state another.
The student does not see which questions these are, so it learns one distribution for all of them: under forward KL the
mean of the teachers', which guesses; under reverse KL and the like nearly that of the majority.
"""

from functools import lru_cache

import numpy as np
import torch

from schemas.config import Settings
from tasks.stages.distillation.losses import distillation_direction
from tasks.statistics.csr import Floats

_TOKENS = 16
"""Possible answers."""
_DOUBT = 1e-4
"""What a teacher leaves to all other answers together."""
_POINTS = 400
_CONFIDENT = 0.95
"""Probability of its own answer with which a student begins."""


def attainable(loss: Settings, agreement: Floats) -> Floats:
    """Share of answers that are the teacher's once training on a loss has come to rest.

    Args:
        agreement: share of answers at which the teacher states what the student would have stated too, in [0, 1].
    """
    points, known = _table(loss)
    return np.interp(agreement, points, known)


@lru_cache(maxsize=256)
def _table(loss: Settings) -> tuple[Floats, Floats]:
    points = np.linspace(0, 1, 101)
    return points, np.array([_at_rest(loss, float(p)) for p in points])


def _at_rest(loss: Settings, agreement: float) -> float:
    """For one agreement: follow the direction of the loss from the student's own distribution until it turns.

    All answers but the student's own are alike, so that one probability q of it describes the student.
    """
    q = torch.linspace(1 / _TOKENS, 1 - 1e-6, _POINTS, dtype=torch.float64)
    student = torch.cat([q[:, None], ((1 - q) / (_TOKENS - 1))[:, None].expand(-1, _TOKENS - 1)], dim=1)

    def pull(answer: int) -> torch.Tensor:
        teacher = torch.full((_TOKENS,), _DOUBT / (_TOKENS - 1), dtype=torch.float64)
        teacher[answer] = 1 - _DOUBT
        return distillation_direction(loss, student.log(), teacher.log().expand_as(student), student)[:, 0]

    ahead = (agreement * pull(0) + (1 - agreement) * pull(1) > 0).numpy()
    place = int(np.searchsorted(q.numpy(), _CONFIDENT))
    step = 1 if ahead[place] else -1
    while 0 <= place + step < _POINTS and ahead[place] == (step > 0):
        place += step
    own = float(q[place])
    return agreement * own + (1 - agreement) * (1 - own) / (_TOKENS - 1)
