"""Weights of the tokens of a run's rollouts and rules for fresh ones, with what they gain on other questions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from schemas.config import Scores
from schemas.signals import Signal
from tasks.stages.aggregate import token_choice
from tasks.stages.aggregate.pooling import gain
from tasks.stages.aggregate.predictors import correlations
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.token_evidence import Evidence, Plan, Setting, replayed
from tasks.stages.aggregate.token_rule_fit import (
    FOLDS,
    RULES,
    Moments,
    Rule,
    design,
    fit,
    known,
    total,
    weights,
)
from tasks.statistics.bootstrap import bootstrap_interval, resample, resampled
from tasks.statistics.csr import Floats, Ints
from tasks.statistics.streams import stream_seed

FULL = "full"
WEIGHTINGS = ("all", "chosen", *RULES, "replay")
"""Equal weights on the run's signal, or on those chosen; each rule, as on fresh rollouts; draws, else the full rule."""


class Wanted(NamedTuple):
    """What is exported.

    Attributes:
        signals: that compete for questions or tokens; the first is the run's.
        choose: one of `token_choice.CHOICES`.
        mask: weights of 0 and 1.
    """

    signals: Sequence[Signal]
    choose: str
    mask: bool


class Fit(NamedTuple):
    """Fits to some questions.

    Attributes:
        full: coefficients of <g, d> / |d|^2 on all features, [K, F].
        scale: what makes weights of them, that of the first signal's full rule.
        rules: of the first signal, by name.
        replicates: of `full`, [b, K, F]; empty unless there is a choice.
    """

    full: Floats
    scale: float
    rules: dict[str, Rule]
    replicates: Floats


def features_of(q: QuestionScores, signals: Sequence[Signal]) -> Floats:
    """All features under every signal, [K, T, F]."""
    return np.stack([design(known(q, signal), RULES[FULL]) for signal in signals])


class Gathered:
    """Moments of the questions, from which rules are fitted to any of them."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.full: list[Moments] = []
        self._others: dict[str, list[Moments]] = {name: [] for name in RULES}

    def add(self, q: QuestionScores) -> None:
        """Add a question."""
        evidence = Evidence.of(q, self._wanted.signals)
        x = features_of(q, self._wanted.signals)
        weighted = evidence.weight * evidence.inner
        each = [
            Moments.of(x[k], evidence.d_sq[k], evidence.node, weighted[k]) for k in range(len(self._wanted.signals))
        ]
        self.full.append(Moments(np.stack([m.norm for m in each]), np.stack([m.inner for m in each])))
        values = known(q, self._wanted.signals[0])
        for name, features in RULES.items():
            x_of = design(values, features)
            self._others[name].append(Moments.of(x_of, evidence.d_sq[0], evidence.node, weighted[0]))

    def fit(self, questions: Sequence[int], seed: int) -> Fit:
        """Fits to some of the questions."""
        moments = [self.full[i] for i in questions]
        pooled = total(moments)
        full = fit(pooled)
        rules = {name: Rule.of(RULES[name], total([of[i] for i in questions])) for name, of in self._others.items()}
        choosing = self._wanted.choose != "run" and len(self._wanted.signals) > 1
        drawn = token_choice.replicates(moments, seed) if choosing else np.empty((0, *full.shape))
        return Fit(full, rules[FULL].scale, rules, drawn)


def plan(x: Floats, d_sq: Floats, moments: Moments, fitted: Fit, wanted: Wanted, level: float) -> Plan:
    """How one question's positions are weighted, by fits that may leave it out.

    Args:
        x: features, [K, T, F]; d_sq: |d|^2, [K, T]; moments: of the question.
    """
    tokens = x.shape[1]
    chosen = np.zeros(tokens, dtype=np.int64)
    if len(fitted.replicates) and wanted.choose == "question":
        chosen[:] = token_choice.by_question(moments, fitted.full, fitted.replicates, level)
    elif len(fitted.replicates):
        chosen = token_choice.by_token(x, d_sq, fitted.full, fitted.replicates, level)
    of_chosen = np.take_along_axis(x, chosen[None, :, None], axis=0)[0]
    estimate = (of_chosen * fitted.full[chosen]).sum(axis=1) * fitted.scale
    return Plan(chosen, estimate, fitted.scale, wanted.mask)


@dataclass(frozen=True)
class Judged:
    """What weights and rules are worth on questions that they were not fitted to.

    Attributes:
        gains: a row for each of `WEIGHTINGS`: share of tokens kept, gain, and what it adds to that of equal weights.
        correlations: of each rule's estimate with <g, d> / |d|^2, with interval.
        spread: of each signal, standard deviation of its <g, d> / |d|^2 around its full rule's estimate, without scale.
    """

    gains: list[dict[str, Any]]
    correlations: dict[str, dict[str, float]]
    spread: list[float]


class Judging:
    """Sums over questions, each under fits to the others."""

    def __init__(self, wanted: Wanted, setting: Setting, scores: Scores, seed: int) -> None:
        self._wanted, self._setting, self._scores, self._seed = wanted, setting, scores, seed
        self._sums: list[Floats] = []  # [weightings, (inner, d_sq, kept, tokens, rollouts)]
        self._fitted: list[Floats] = []  # [rules, 7], as `correlations` takes them
        self._full: list[Floats] = []  # [signals, 7], likewise, of the full rules without scale
        self._carrying: list[bool] = []

    def add(self, q: QuestionScores, moments: Moments, fitted: Fit) -> None:
        """Add a question.

        Args:
            fitted: to other questions.
        """
        signals = self._wanted.signals
        evidence, x = Evidence.of(q, signals), features_of(q, signals)
        how = plan(x, evidence.d_sq, moments, fitted, self._wanted, self._scores.level)
        tokens = x.shape[1]
        first, ones = np.zeros(tokens, dtype=np.int64), np.ones(tokens)
        values = known(q, signals[0])
        estimates = {name: rule.estimate(design(values, rule.features)) for name, rule in fitted.rules.items()}
        rows = [self._row(evidence, first, ones), self._row(evidence, how.chosen, ones)]
        for estimate in estimates.values():
            rows.append(self._row(evidence, first, np.nan_to_num(weights(estimate, self._wanted.mask))))
        seed = stream_seed("replay", self._seed, q.question_id)
        sums, kept = replayed(q, signals, evidence, how, self._setting, seed)
        rows.append(np.array([*sums, kept, tokens, evidence.rollouts]))
        self._sums.append(np.stack(rows))
        self._fitted.append(
            np.stack([_correlation_sums(evidence, 0, estimates[name], fitted.rules[name].scale) for name in RULES])
        )
        by_signal = [_correlation_sums(evidence, k, x[k] @ fitted.full[k], 1.0) for k in range(len(signals))]
        self._full.append(np.stack(by_signal))
        self._carrying.append(evidence.carries)

    @staticmethod
    def _row(evidence: Evidence, chosen: Ints, w: Floats) -> Floats:
        return np.array([*evidence.sums(chosen, w), (w > 0).sum(), len(w), evidence.rollouts])

    def judged(self) -> Judged:
        """The figures of all questions added."""
        level, units = self._scores.level, int(np.sum(self._carrying))
        sums, fitted = np.stack(self._sums), np.stack(self._fitted)
        counts = resample(len(sums), self._scores.bootstrap, self._seed)
        point, drawn = _gains(sums.sum(axis=0)), _gains(resampled(counts, sums))
        kept = sums.sum(axis=0)
        rows = []
        for i, name in enumerate(WEIGHTINGS):
            low, high = bootstrap_interval(drawn[:, i], units, level)
            more = bootstrap_interval(drawn[:, i] - drawn[:, 0], units, level)
            known_ = bool(np.isfinite(point[i])) and units > 0
            row = {"gain": point[i], "gain_low": low, "gain_high": high}
            added = {"additional_gain": point[i] - point[0]}
            added |= {"additional_gain_low": more[0], "additional_gain_high": more[1]}
            figures = {**row, **added} if i else {**row, **dict.fromkeys(added, np.nan)}
            rows.append({"tokens": name, "share": float(kept[i, 2] / kept[i, 3]), **_defined(figures, known_)})
        pooled, replicated = fitted.sum(axis=0), resampled(counts, fitted)
        found = {}
        for i, name in enumerate(RULES):
            value = float(correlations(pooled[i])[0])
            low, high = bootstrap_interval(correlations(replicated[:, i])[0], units, level)
            figures = {"correlation": value, "correlation_low": low, "correlation_high": high}
            found[name] = _defined(figures, bool(np.isfinite(value)))
        return Judged(rows, found, [_spread(sums) for sums in np.sum(self._full, axis=0)])


def _defined(figures: Mapping[str, float], defined: bool) -> dict[str, float]:
    return {name: float(value) if defined else np.nan for name, value in figures.items()}


def _gains(sums: Floats) -> Floats:
    """Gains from sums [..., weightings, 5]."""
    return gain(sums[..., 0], sums[..., 1], sums[..., 4])


def _correlation_sums(evidence: Evidence, k: int, estimate: Floats, scale: float) -> Floats:
    """Sums for `correlations` of estimates with <g, d> / |d|^2 of signal k, nodes counting by |d|^2, [7].

    Args:
        scale: what the ratio is multiplied by, so that it has the unit of the estimates.
    """
    x, d_sq = estimate[evidence.node], evidence.d_sq[k][evidence.node]
    inner, noise = scale * evidence.inner[k], scale**2 * evidence.noise[k]
    use = np.isfinite(x) & (d_sq > 0) & np.isfinite(noise) & (evidence.weight > 0)
    x, d_sq, inner, noise, w = (values[use] for values in (x, d_sq, inner, noise, evidence.weight))
    terms = [d_sq, d_sq * x, d_sq * x**2, inner, inner**2 / d_sq, noise / d_sq, x * inner]
    return np.array([(w * term).sum() for term in terms])


def _spread(sums: Floats) -> float:
    """Standard deviation of <g, d> / |d|^2 around estimates, positions counting by |d|^2, without the noise of draws.

    Args:
        sums: as `correlations` takes them.
    """
    n, _, xx, _, yy, noise, xy = sums
    return float(np.sqrt(max(0.0, (yy - noise - 2 * xy + xx) / n))) if n > 0 else float("nan")


def folds(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Questions to judge on, and the others."""
    for fold in range(min(FOLDS, count)):
        yield [i for i in range(count) if i % FOLDS == fold], [i for i in range(count) if i % FOLDS != fold]
