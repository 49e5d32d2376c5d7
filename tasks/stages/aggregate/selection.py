"""The gain of training on selected tokens only, scored on draws that were not used to select them.

A token selected because its own noisy estimate is positive looks better than it is. So the draws of every branch are
split at random; the posterior of one half selects, the other half scores, and vice versa. Where cheap predictors select
without any draws, their weights are fitted on other questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.arrays import AnyArray
from schemas.config import TOKEN_RULES, Scores, Selection
from schemas.signals import Signal
from tasks.stages.aggregate.pooling import gain
from tasks.stages.aggregate.predictors import AtNodes, joined
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.token_rules import Tokens, selected
from tasks.stages.alignment import node_scores, simulate
from tasks.statistics.bootstrap import bootstrap_interval, resample, resampled
from tasks.statistics.csr import Floats
from tasks.statistics.estimators import Outcomes, pool_rounds
from tasks.statistics.prior import Prior
from tasks.statistics.quantiles import average_ranks

RULES = {rule.label: rule for rule in (Selection(kind=kind) for kind in TOKEN_RULES)}
"""Rules that trainers use, by name, with their default share; of the tokens of one question."""
CHOICES = ("all", "likely_positive", "resolved_positive", "predicted_positive", *RULES)
"""All; likelier positive than not, or resolved as positive, by the posterior; predicted positive without draws."""
FOLDS = 5
_SUMS = ("inner", "d_sq", "weight", "open", "rollouts")
"""The quantities summed over both halves; `open` counts nodes with differing outcomes."""


def split(tree: Mapping[str, AnyArray], rng: np.random.Generator) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
    """A tree split in two, each with a random half of the draws of every branch (successes are hypergeometric)."""
    n, s = np.asarray(tree["draws"], dtype=np.int64), np.asarray(tree["successes"], dtype=np.int64)
    half = n // 2 + np.where(n % 2 == 1, rng.integers(0, 2, size=len(n)), 0)
    won = rng.hypergeometric(s, n - s, half) if len(n) else s
    return {**tree, "draws": half, "successes": won}, {**tree, "draws": n - half, "successes": s - won}


def sum_choices(
    q: QuestionScores,
    signals: Sequence[Signal],
    prior: Prior,
    scores: Scores,
    temperature: float,
    tail_limit: float,
    seed: int,
) -> Floats:
    """Sums over one question's nodes, by signal and choice: [signals, choices, len(_SUMS)]; 0 for predicted ones."""
    rng = np.random.default_rng(seed)
    halves = split(q.tree, rng)
    out = np.zeros((len(signals), len(CHOICES), len(_SUMS)))
    for selecting, scoring in (halves, halves[::-1]):
        nodes, rows = pool_rounds(selecting), Outcomes.of(scoring)
        posterior = simulate(nodes.outcomes, prior, temperature, scores.posterior, int(rng.integers(2**63)))
        for i, signal in enumerate(signals):
            if q.needs_draws(signal):  # both halves of the draws would be in its direction
                continue
            d = q.distillation[signal]
            d_sq = np.asarray(d["d_sq"])[q.tree["node"]]
            with np.errstate(divide="ignore", invalid="ignore"):  # one draw per branch has no spread, and needs none
                a = node_scores(rows, nodes, d, d_sq, posterior, temperature, scores.level, tail_limit)
            positive = np.nan_to_num(a["p_positive"], nan=0.0) > 0.5
            kept = (np.ones(len(d_sq), dtype=bool), positive, positive & (a["lfsr"] < 1 - scores.level))
            terms = _terms(q.weight, a["inner"], d_sq, q.open)
            out[i, :3] += [terms[k].sum(axis=0) for k in kept]
    for i, signal in enumerate(signals):
        if not q.needs_draws(signal):
            out[i, CHOICES.index("predicted_positive") + 1 :] = _by_rules(q, signal)
    out[..., _SUMS.index("rollouts")] = 2 * len(q.rollouts["correct"])
    return out


def _by_rules(q: QuestionScores, signal: Signal) -> Floats:
    """Sums over the nodes that each rule selects, counted twice: rules look at no draw, which may all score."""
    d, node = q.distillation[signal], q.tree["node"]
    known = Tokens(
        np.asarray(q.rollouts["offsets"], dtype=np.int64),
        np.asarray(q.rollouts["correct"], dtype=np.float64),
        np.asarray(q.tree["entropy"], dtype=np.float64),
        np.nan_to_num(np.asarray(d["kl"], dtype=np.float64), nan=-np.inf),
    )
    terms = _terms(q.weight, q.alignment[signal]["inner"], np.asarray(d["d_sq"])[node], q.open)
    return np.stack([2 * (terms * selected(rule, known)[node][:, None]).sum(axis=0) for rule in RULES.values()])


def _terms(weight: Floats, inner: AnyArray, d_sq: AnyArray, open_: AnyArray) -> Floats:
    return np.stack([weight * inner, weight * d_sq, weight, (weight > 0) & open_, np.zeros(len(weight))], axis=1)


def sum_predicted(questions: Sequence[AtNodes]) -> Floats:
    """Sums over the nodes of each question that cheap predictors expect to be positive, [Q, len(_SUMS)], counted twice.

    A linear model of <g, d> / |d| on the predictors' ranks, fitted for each fold of questions on the others.
    """
    owner = np.repeat(np.arange(len(questions)), [len(q.weight) for q in questions])
    x, weight, inner, _, d_sq, open_, _ = joined(questions)
    known = d_sq > 0
    ranks = np.apply_along_axis(average_ranks, 1, x) / max(1, x.shape[1]) - 0.5
    features = np.concatenate([np.ones((1, x.shape[1])), np.nan_to_num(ranks)]).T
    target = np.divide(inner, np.sqrt(d_sq), out=np.zeros(len(inner)), where=known)
    root = np.sqrt(np.maximum(weight, 0.0) * known)
    terms = _terms(weight, inner, d_sq, open_)
    out = np.zeros((len(questions), len(_SUMS)))
    for fold in range(min(FOLDS, len(questions))):
        held_out = owner % FOLDS == fold
        rest = root * ~held_out
        solution = np.linalg.lstsq(features * rest[:, None], target * rest, rcond=None)[0]
        kept = held_out & known & (features @ solution > 0)
        np.add.at(out, owner[kept], 2 * terms[kept])
    return out


def selection_rows(sums: Floats, signals: Sequence[Signal], scores: Scores, seed: int) -> list[dict[str, Any]]:
    """Rows of `schemas.tables.SELECTION` from the sums of all questions, [Q, signals, choices, len(_SUMS)]."""
    counts = resample(len(sums), scores.bootstrap, seed)
    point, replicates = _gains(sums.sum(axis=0)), _gains(resampled(counts, sums))
    weight = sums.sum(axis=0)[..., _SUMS.index("weight")]
    carrying = (sums[..., _SUMS.index("open")] > 0).sum(axis=0)
    rows = []
    for i, signal in enumerate(signals):
        for c, tokens in enumerate(CHOICES):
            units, known = int(carrying[i, c]), np.isfinite(point[i, c])
            low, high = bootstrap_interval(replicates[:, i, c], units, scores.level)
            more = bootstrap_interval(replicates[:, i, c] - replicates[:, i, 0], units, scores.level)
            rows.append(
                {
                    "tokens": tokens,
                    **signal._asdict(),
                    "share": weight[i, c] / weight[i, 0] if weight[i, 0] > 0 else np.nan,
                    "gain": point[i, c],
                    "gain_low": low if known else np.nan,
                    "gain_high": high if known else np.nan,
                    "additional_gain": point[i, c] - point[i, 0] if c else np.nan,
                    "additional_gain_low": more[0] if known and c else np.nan,
                    "additional_gain_high": more[1] if known and c else np.nan,
                }
            )
    return rows


def _gains(sums: Floats) -> Floats:
    """Gain of a unit step, [..., choices, len(_SUMS)] -> [..., choices]; NaN if nothing is selected or known.

    Both halves score every token, so all sums are doubled; rollouts are those of all tokens, whatever is selected.
    """
    inner, d_sq, open_, rollouts = (sums[..., _SUMS.index(name)] for name in ("inner", "d_sq", "open", "rollouts"))
    return np.where(open_ > 0, gain(inner, d_sq, rollouts[..., :1]), np.nan)
