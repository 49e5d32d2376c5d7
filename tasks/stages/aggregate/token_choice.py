"""Which teacher and context to learn from, for each question or token, where that is clear from what needs no draws."""

from collections.abc import Sequence

import numpy as np

from tasks.stages.aggregate.token_rule_fit import Moments, fit
from tasks.statistics.bootstrap import resample, resampled
from tasks.statistics.csr import Floats, Ints

REPLICATES = 200
"""Bootstrap replicates of the rules that choices are made by."""
CHOICES = ("run", "question", "token")
"""One signal for the whole run; or teacher and context by question, or by token."""


def replicates(moments: Sequence[Moments], seed: int) -> Floats:
    """Coefficients of every signal in bootstrap replicates, paired by question, [b, K, F].

    Args:
        moments: of each question, for all signals: [K, F, F] and [K, F].
    """
    counts = resample(len(moments), REPLICATES, seed)
    norm, inner = np.stack([m.norm for m in moments]), np.stack([m.inner for m in moments])
    return fit(Moments(resampled(counts, norm), resampled(counts, inner)))


def by_question(moments: Moments, coefficients: Floats, resampled: Floats, level: float) -> int:
    """The signal with the largest expected gain on one question; 0 unless another is clearly better.

    Args:
        moments: of the question, for all signals.
        coefficients: of the signals' rules, [K, F]; resampled: replicates of them, [b, K, F].
    """
    root = np.sqrt(moments.length_sq)
    usable = root > 0
    of_features = np.where(usable[:, None], moments.norm[:, 0] / np.where(usable, root, 1.0)[:, None], 0.0)
    expected = (of_features * coefficients).sum(axis=-1)
    drawn = (of_features * resampled).sum(axis=-1)
    return int(_clearly_best(expected[:, None], drawn[:, :, None], level)[0])


def by_token(x: Floats, d_sq: Floats, coefficients: Floats, resampled: Floats, level: float) -> Ints:
    """The signal with the largest expected <g, d> / |d| at each position, [T]; 0 unless another is clearly better.

    Args:
        x: features under every signal, [K, T, F]; d_sq: |d|^2, [K, T].
        coefficients, resampled: as in `by_question`.
    """
    scaled = np.nan_to_num(x) * np.where(np.isfinite(x).all(axis=-1), np.sqrt(d_sq), 0.0)[..., None]
    expected = np.einsum("ktf,kf->kt", scaled, coefficients)
    return _clearly_best(expected, np.einsum("ktf,bkf->bkt", scaled, resampled), level)


def _clearly_best(expected: Floats, drawn: Floats, level: float) -> Ints:
    """The largest of those whose difference to the first is above 0 in the share `level` of the replicates; else 0.

    The share is raised for the number of signals compared (Bonferroni).
    """
    others = max(1, len(expected) - 1)
    low = np.quantile(drawn - drawn[:, :1], (1 - level) / others, axis=0)
    candidates = np.where(low > 0, expected, -np.inf)
    candidates[0] = expected[0]
    return np.asarray(np.argmax(candidates, axis=0), dtype=np.int64)
