"""Stage 3: outcomes of draws -> unbiased ideal gradients with their variance (statistics of sections 2, 6)."""

from schemas.arrays import AnyArray
from tasks.stages.protocol import Made, Work
from tasks.statistics.csr import owners
from tasks.statistics.estimators import Outcomes, estimate_squared_norm, estimate_value, reliability


def make(work: Work) -> Made:
    """The ideal gradients of one question's tree."""
    return {None: ideal_gradients(Outcomes.of(work.read("trees")), work.config.sampling.temperature)}


def ideal_gradients(outcomes: Outcomes, temperature: float) -> dict[str, AnyArray]:
    """The arrays of stage 3."""
    V = estimate_value(outcomes)
    unbiased, plain = (norm / temperature**2 for norm in estimate_squared_norm(outcomes))
    return {
        "value": V,
        "g_sq": unbiased,
        "g_sq_plain": plain,
        "reliability": reliability(unbiased, plain),
        "gradient": outcomes.prob * (outcomes.rate - V[owners(outcomes.offsets)]) / temperature,
    }
