"""Bootstrap intervals that remain valid with few units (statistics of section 7)."""

import numpy as np
from scipy.special import ndtr, stdtrit

from tasks.statistics.csr import Floats

LEAST_UNITS = 5
"""Units with signal that an interval needs: fewer cannot estimate their own spread. With fewer such questions, the
bootstrap resamples rollouts."""


def resample(units: int, replicates: int, seed: int) -> Floats:
    """How often each unit occurs in each bootstrap replicate, [replicates, units]."""
    rng = np.random.default_rng([seed, 6])
    return rng.multinomial(units, np.full(units, 1 / units), size=replicates).astype(np.float64)


def resampled(counts: Floats, sums: Floats) -> Floats:
    """Sums over the units of each replicate: [b, units] x [units, ...] -> [b, ...]."""
    return np.asarray(np.tensordot(counts, sums, axes=1), dtype=np.float64)


def bootstrap_interval(values: Floats, units: int, level: float) -> tuple[float, float]:
    """Bootstrap interval of a score: percentiles, widened for few units according to Student's t and n/(n-1).

    Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 5.3. The replicates of few units have
    shorter tails than Student's t, so each end is at least as far from their median as t puts it, with the standard
    deviation on that side taken from quantiles. Undefined replicates are left out.

    Args:
        values: replicates.
        units: number of resampled units that carry signal; the others only dilute it. NaN below `LEAST_UNITS`.
    """
    finite = values[np.isfinite(values)]
    if units < LEAST_UNITS or not len(finite):
        return np.nan, np.nan
    c = critical_value(units, level)
    shares = ndtr([-c, -1, 0, 1, c])
    low, below, middle, above, high = (float(q) for q in np.quantile(finite, shares))
    return min(low, middle - c * (middle - below)), max(high, middle + c * (above - middle))


def critical_value(units: int, level: float) -> float:
    """Distance from the median of the replicates to either end of an interval, in standard deviations."""
    return float(np.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 + level) / 2))
