"""Stage 3: outcomes of draws -> ideal gradients, without bias and with their variance (statistics of sections 2, 6)."""

import numpy as np

from schemas.arrays import AnyArray
from tasks.statistics.csr import owners
from tasks.statistics.estimators import Outcomes, squared_norm, value


def ideal_gradients(outcomes: Outcomes, temperature: float) -> dict[str, AnyArray]:
    """The arrays of stage 3."""
    V = value(outcomes)
    unbiased, plain = (norm / temperature**2 for norm in squared_norm(outcomes))
    with np.errstate(divide="ignore", invalid="ignore"):
        reliability = np.where(plain > 1e-12, unbiased / plain, np.nan)
    return {
        "value": V,
        "g_sq": unbiased,
        "g_sq_plain": plain,
        "reliability": reliability,
        "gradient": outcomes.prob * (outcomes.rate - V[owners(outcomes.offsets)]) / temperature,
    }
