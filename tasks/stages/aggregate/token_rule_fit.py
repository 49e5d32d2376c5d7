"""Rules for the weights of tokens, from what a trainer knows of fresh rollouts, fitted on a diagnosis.

With weights w on the tokens, a unit step along a signal gains sum w <g, d> / sqrt(R sum w^2 |d|^2) to first order, most
where w is <g, d> / |d|^2. A rule is the least-squares fit of that ratio, every position counting by its
|d|^2, to features that are known without draws: its normal equations hold sum <g, d> x, of which the nodes give an
estimate without bias, and sum |d|^2 x x', which is known exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.arrays import AnyArray
from schemas.signals import Signal
from tasks.stages.aggregate.questions import QuestionScores
from tasks.statistics.csr import Floats

RIDGE = 0.01
"""Penalty of every coefficient but the constant, in units of the mean second moment of the features."""
MOST_WEIGHT = 10.0
"""Largest weight of a token, in units in which estimates, as weights, do not change the length of the signal."""
FOLDS = 5
"""Groups of questions; a rule is judged on each after a fit to the others."""


class Feature(NamedTuple):
    """What a rule looks at: its formula, what stands in it, and its unit before the formula."""

    formula: str
    meaning: str
    unit: str


FEATURES: dict[str, Feature] = {
    "entropy": Feature(
        "x / (1 + |x|)", "entropy of the student's next-token distribution at the sampling temperature", "nat"
    ),
    "log_ratio": Feature(
        "x / (1 + |x|)", "log T at temperature 1 - log P at the sampling temperature, of the sampled token", "nat"
    ),
    "divergence": Feature("x / (1 + |x|)", "KL(P || T) of the next-token distributions, both at temperature 1", "nat"),
    "position": Feature("x", "tokens of the completion before this one, over its length", "1"),
    "probability": Feature("x", "student's probability of the sampled token at the sampling temperature", "1"),
}
"""Features by name. All of them are bounded, so no outlier makes a weight explode."""
RULES: dict[str, tuple[str, ...]] = {
    "full": tuple(FEATURES),
    "sampled": ("log_ratio", "position", "probability"),
    "student": ("entropy", "position", "probability"),
}
"""Rules by name: all features, those of the sampled token's probabilities, and those that need no teacher."""


def known(q: QuestionScores, signal: Signal) -> dict[str, Floats]:
    """The quantities in the formulas at every position of a question, [T] each; NaN where there is none."""
    d, offsets = q.distillation[signal], np.asarray(q.rollouts["offsets"], dtype=np.int64)
    least = np.finfo(np.float64).tiny
    p = np.asarray(q.tree["token_prob"], dtype=np.float64)
    teacher = np.asarray(d["teacher_token_prob"], dtype=np.float64)
    return {
        "entropy": np.asarray(q.tree["entropy"], dtype=np.float64),
        "log_ratio": np.log(np.maximum(teacher, least)) - np.log(np.maximum(p, least)),
        "divergence": np.asarray(d["kl"], dtype=np.float64),
        "position": q.place / np.diff(offsets)[q.rollout_of_position],
        "probability": p,
    }


def design(values: Mapping[str, Floats], features: Sequence[str]) -> Floats:
    """A constant and the features, [T, 1 + features]; NaN where a quantity is not known."""
    columns = [np.ones(len(values["position"]))]
    for name in features:
        x = values[name]
        columns.append(x if FEATURES[name].formula == "x" else x / (1 + np.abs(x)))
    return np.stack(columns, axis=-1)


class Moments(NamedTuple):
    """What a fit needs of some positions.

    Attributes:
        norm: sum |d|^2 x x', [..., F, F].
        inner: estimate of sum <g, d> x, [..., F].
    """

    norm: Floats
    inner: Floats

    @classmethod
    def of(cls, x: Floats, d_sq: Floats, node: AnyArray, weighted: Floats) -> "Moments":
        """Of one question.

        Args:
            x: features of all positions, [T, F]; positions with a NaN do not count.
            d_sq: |d|^2 of all positions, [T].
            node: positions of the nodes, [N].
            weighted: <g, d> of each node over its inclusion probability, [N].
        """
        usable = np.isfinite(x).all(axis=1) & (d_sq > 0)
        x = np.where(usable[:, None], x, 0.0)
        return cls((x * np.where(usable, d_sq, 0.0)[:, None]).T @ x, x[node].T @ weighted)

    @property
    def length_sq(self) -> Floats:
        """sum |d|^2, [...]: the constant is the first feature."""
        return self.norm[..., 0, 0]


def total(moments: Sequence[Moments]) -> Moments:
    """Sums over questions."""
    return Moments(np.sum([m.norm for m in moments], axis=0), np.sum([m.inner for m in moments], axis=0))


def fit(moments: Moments) -> Floats:
    """Coefficients of <g, d> / |d|^2 on the features, [..., F], with a ridge penalty; 0 without any |d|^2."""
    norm = moments.norm
    size = norm.shape[-1]
    others = np.arange(size) > 0
    scale = np.trace(norm, axis1=-2, axis2=-1) - norm[..., 0, 0]
    scale = np.where(scale > 0, scale, 1.0) / max(1, size - 1)
    penalised = norm + (RIDGE * scale)[..., None, None] * np.diag(others.astype(np.float64))
    empty = moments.length_sq <= 0
    penalised = np.where(empty[..., None, None], np.eye(size), penalised)
    solution = np.linalg.solve(penalised, np.where(empty[..., None], 0.0, moments.inner)[..., None])[..., 0]
    return np.asarray(solution, dtype=np.float64)


def length(moments: Moments, coefficients: Floats) -> float:
    """How much longer the fitted values make the signal than weights of 1, if none is clipped; 1 where all are 0."""
    longer = float(coefficients @ moments.norm @ coefficients)
    return float(np.sqrt(longer / moments.length_sq)) if longer > 0 else 1.0


class Rule(NamedTuple):
    """A fitted rule: weight = min(most, max(0, constant + sum of coefficients * features)).

    Attributes:
        scale: what the fitted <g, d> / |d|^2 were multiplied by, 1 / `length`; in the coefficients already.
    """

    features: tuple[str, ...]
    constant: float
    coefficients: tuple[float, ...]
    scale: float

    @classmethod
    def of(cls, features: Sequence[str], moments: Moments) -> "Rule":
        """Fitted, and scaled so that the estimates, as weights, do not change the length of the signal (`length`)."""
        beta = fit(moments)
        scale = 1 / length(moments, beta)
        return cls(tuple(features), float(beta[0] * scale), tuple(float(b * scale) for b in beta[1:]), scale)

    def estimate(self, x: Floats) -> Floats:
        """The fitted <g, d> / |d|^2, scaled, at features [T, F]: what is clipped to make a weight."""
        return np.asarray(x @ np.array([self.constant, *self.coefficients]), dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        coefficients = dict(zip(self.features, self.coefficients, strict=True))
        return {"constant": self.constant, "coefficients": coefficients, "scale": self.scale}


def weights(estimate: Floats, mask: bool) -> Floats:
    """Weights from estimates: at least 0 and at most `MOST_WEIGHT`, or 1 where positive; NaN where not known."""
    if mask:
        return np.where(np.isnan(estimate), np.nan, np.asarray(estimate > 0, dtype=np.float64))
    return np.clip(estimate, 0.0, MOST_WEIGHT)
