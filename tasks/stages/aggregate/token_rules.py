"""Which tokens of some rollouts a training learns from, by rules that need no draws.

Rules of the literature: the largest entropies of the student (Wang et al. 2025), the largest divergences, and both
(token importance in on-policy distillation: tokens of high entropy, and confident ones that the teacher contradicts).
"""

from typing import NamedTuple

import numpy as np

from schemas.config import Selection
from tasks.statistics.csr import Floats, Ints, owners


class Tokens(NamedTuple):
    """What is known of the tokens of some rollouts, one after another.

    Attributes:
        offsets: where each rollout starts, [R+1].
        correct: the verdict on each rollout, [R]; NaN where there is none.
        entropy: of the student's distribution, [T], nat.
        divergence: KL(P || T), [T], nat.
    """

    offsets: Ints
    correct: Floats
    entropy: Floats
    divergence: Floats


NEED_DISTRIBUTIONS = ("entropy", "divergence", "tip")
"""Kinds that look at the distributions of student and teacher."""
NEED_VERDICTS = ("correct", "incorrect")
"""Kinds that look at whether a rollout is right."""


def selected(selection: Selection, tokens: Tokens) -> Floats:
    """1 for the tokens that are learned from, 0 for others, [T]."""
    owner = owners(tokens.offsets)
    if selection.kind in NEED_VERDICTS:
        return np.asarray(tokens.correct[owner] == (selection.kind == "correct"), dtype=np.float64)
    if selection.kind == "first":
        place = np.arange(len(owner)) - tokens.offsets[owner]
        return np.asarray(place < selection.share * np.diff(tokens.offsets)[owner], dtype=np.float64)
    if selection.kind == "entropy":
        return _largest(tokens.entropy, selection.share)
    if selection.kind == "divergence":
        return _largest(tokens.divergence, selection.share)
    uncertain = _largest(tokens.entropy, selection.share)
    confident = np.where(uncertain > 0, -np.inf, tokens.divergence)
    return np.maximum(uncertain, _largest(confident, selection.share))


def _largest(values: Floats, share: float) -> Floats:
    """1 for a share of the values, the largest, at least one."""
    out = np.zeros(len(values))
    out[np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]] = 1.0
    return out
