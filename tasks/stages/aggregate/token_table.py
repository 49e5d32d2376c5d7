"""The table of token weights: estimates of every token of a question, from its draws or by the rule."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.special import ndtri

from schemas.token_weights import WEIGHTS
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.token_evidence import Evidence, Setting, posterior
from tasks.stages.aggregate.token_rule_fit import Moments, Rule, design, known, weights
from tasks.stages.aggregate.token_weights import Fit, Wanted, features_of, plan
from tasks.statistics.csr import Floats, Ints
from tasks.statistics.streams import stream_seed


class Estimated(NamedTuple):
    """One question: its rows, and what weights do to the length of the signal.

    Attributes:
        rows: columns of `schemas.token_weights.WEIGHTS`.
        lengths_sq: sum w^2 |d|^2 of each rule's weights; length_sq: sum |d|^2 of the first signal.
    """

    rows: pl.DataFrame
    lengths_sq: dict[str, float]
    length_sq: float


def estimated(
    q: QuestionScores,
    moments: Moments,
    fitted: Fit,
    wanted: Wanted,
    setting: Setting,
    spread: Sequence[float],
    level: float,
    seed: int,
) -> Estimated:
    """Estimates of one question's tokens, by a fit to all questions.

    Args:
        spread: of each signal, of single tokens' <g, d> / |d|^2 around the rule, without scale.
    """
    evidence, x = Evidence.of(q, wanted.signals), features_of(q, wanted.signals)
    how = plan(x, evidence.d_sq, moments, fitted, wanted, level)
    half = np.array(spread)[how.chosen] * how.scale * float(ndtri((1 + level) / 2))
    estimate, low, high = how.estimate.copy(), how.estimate - half, how.estimate + half
    p_positive = np.full(len(estimate), np.nan)
    drawn = posterior(q, q.tree, wanted.signals, setting, stream_seed("export", seed, q.question_id))
    simulated = drawn.of(how.chosen) * how.scale
    if len(drawn.node):
        estimate[drawn.node] = simulated.mean(axis=0)
        low[drawn.node], high[drawn.node] = np.quantile(simulated, [(1 - level) / 2, (1 + level) / 2], axis=0)
        p_positive[drawn.node] = ((simulated > 0) + 0.5 * (simulated == 0)).mean(axis=0)
    d_sq = np.take_along_axis(evidence.d_sq, how.chosen[None], axis=0)[0]
    nothing = ~(d_sq > 0) | np.isnan(estimate)
    source = np.where(nothing, "none", np.where(np.isnan(p_positive), "predicted", "drawn"))
    for column in (estimate, low, high, p_positive):
        column[nothing] = np.nan
    rows = _rows(q, wanted, how.chosen, {"estimate": estimate, "estimate_low": low, "estimate_high": high})
    rows = rows.with_columns(
        pl.Series("weight", weights(estimate, wanted.mask)).fill_nan(None),
        pl.Series("source", source),
        pl.Series("p_positive", p_positive).fill_nan(None),
        pl.Series("d_sq", d_sq),
    ).select(list(WEIGHTS))
    values, of_first = known(q, wanted.signals[0]), evidence.d_sq[0]
    lengths_sq = {name: _length_sq(rule, values, of_first, wanted.mask) for name, rule in fitted.rules.items()}
    return Estimated(rows, lengths_sq, float(of_first.sum()))


def _length_sq(rule: Rule, values: dict[str, Floats], d_sq: Floats, mask: bool) -> float:
    w = np.nan_to_num(weights(rule.estimate(design(values, rule.features)), mask))
    return float((w**2 * d_sq).sum())


def _rows(q: QuestionScores, wanted: Wanted, chosen: Ints, estimates: dict[str, Floats]) -> pl.DataFrame:
    rollout = q.rollout_of_position
    every = [known(q, signal) for signal in wanted.signals]
    of_token = {name: np.stack([v[name] for v in every])[chosen, np.arange(len(rollout))] for name in every[0]}
    names = [signal._asdict() for signal in wanted.signals]
    columns: dict[str, Any] = {
        "question_id": [q.question_id] * len(rollout),
        "rollout_id": rollout,
        "position": q.place,
        "token_id": np.asarray(q.rollouts["tokens"]),
        "correct": np.asarray(q.rollouts["correct"])[rollout],
        **estimates,
        **{name: [names[k][name] for k in chosen] for name in names[0]},
        "student_prob": of_token["probability"],
        **{name: of_token[name] for name in ("entropy", "log_ratio", "divergence")},
    }
    schema = pl.Schema({name: getattr(pl, WEIGHTS[name].dtype) for name in columns})
    return pl.DataFrame(columns, strict=False).cast(schema).with_columns(pl.col(pl.Float64).fill_nan(None))


def table_length(table: pl.DataFrame) -> float:
    """How long a table's weights make the signal, over its length with equal weights."""
    d_sq, w = table["d_sq"].to_numpy(), table["weight"].fill_null(0.0).to_numpy()
    return float(np.sqrt((w**2 * d_sq).sum() / d_sq.sum()))


def rule_lengths(questions: Sequence[Estimated]) -> dict[str, float]:
    """How long each rule's weights make the signal on the run's tokens, over its length with equal weights."""
    every = sum(q.length_sq for q in questions)
    return {
        name: float(np.sqrt(sum(q.lengths_sq[name] for q in questions) / every)) for name in questions[0].lengths_sq
    }
