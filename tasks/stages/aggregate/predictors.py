"""How well quantities known without draws predict a token's alignment, corrected for the noise of the draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import Arrays
from schemas.config import Scores
from schemas.signals import Signal
from tasks.stages.aggregate.questions import QuestionScores
from tasks.statistics.bootstrap import bootstrap_interval, resample, resampled
from tasks.statistics.csr import Floats, Ints
from tasks.statistics.quantiles import average_ranks

Predictor = Callable[[QuestionScores, Arrays], Floats]
"""Values at the nodes of a question, [N], from its arrays and those of stage 4 under one signal."""


class AtNodes(NamedTuple):
    """Data of one question's nodes under one signal for evaluating predictors; [N] each."""

    predictors: Floats  # [predictors, N]
    weight: Floats
    inner: Floats
    inner_noise: Floats
    d_sq: Floats
    open: npt.NDArray[np.bool_]
    node: Ints

    @classmethod
    def of(cls, q: QuestionScores, signal: Signal) -> "AtNodes":
        """From a question's arrays."""
        a, needs_draws = q.alignment[signal], q.needs_draws(signal)
        predictors = [predictor(q, q.distillation[signal]) for predictor in PREDICTORS.values()]
        # |d| must be known without the draws that <g, d> is estimated from
        d_sq = np.full(len(q.tree["node"]), np.nan) if needs_draws else np.asarray(a["d_sq"])
        return cls(np.stack(predictors), q.weight, a["inner"], a["inner_noise"], d_sq, q.open, q.tree["node"])


def _at_nodes(name: str) -> Predictor:
    """A predictor that reads an array of stage 4 at the nodes."""
    return lambda q, d: np.asarray(d[name])[q.tree["node"]]


def _position(q: QuestionScores, d: Arrays) -> Floats:
    lengths = np.diff(np.asarray(q.rollouts["offsets"], dtype=np.int64))
    return np.asarray((q.place / lengths[q.rollout_of_position])[q.tree["node"]])


def _teacher_lead(q: QuestionScores, d: Arrays) -> Floats:
    node = q.tree["node"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(d["teacher_token_prob"][node]) - np.log(q.tree["token_prob"][node]))


PREDICTORS: dict[str, Predictor] = {
    "kl": _at_nodes("kl"),
    "js": _at_nodes("js"),
    "entropy": lambda q, d: np.asarray(q.tree["entropy"])[q.tree["node"]],
    "position": _position,
    "student_prob": lambda q, d: np.asarray(q.tree["token_prob"])[q.tree["node"]],
    "teacher_prob": _at_nodes("teacher_token_prob"),
    "teacher_lead": _teacher_lead,
    "signal_norm": lambda q, d: np.sqrt(d["d_sq"][q.tree["node"]]),
}
"""By name: `teacher_lead` is log T - log P of the sampled token, `position` is relative to the rollout, `signal_norm`
is |d|."""


def joined(questions: Sequence[AtNodes]) -> AtNodes:
    """The nodes of all questions, one question after the other."""
    return AtNodes(*(np.concatenate(arrays, axis=-1) for arrays in zip(*questions, strict=True)))


def predictor_rows(nodes: Mapping[Signal, Sequence[AtNodes]], scores: Scores, seed: int) -> list[dict[str, Any]]:
    """Rows of `schemas.tables.PREDICTORS`, from the nodes of every question.

    With y = <g, d> / |d| and x the predictor's rank, cov(x, y) is unbiased without correction, as noise is independent
    of x; the noise is subtracted from the variance of y.
    """
    rows = []
    for signal, questions in nodes.items():
        units = len(questions)
        counts = resample(units, scores.bootstrap, seed)
        x, w, inner, inner_noise, d_sq, _, node = joined(questions)
        carrying = sum(bool(((q.weight > 0) & q.open).any()) for q in questions)
        owner = np.repeat(np.arange(units), [len(q.weight) for q in questions])
        with np.errstate(divide="ignore", invalid="ignore"):
            y, noise = inner / np.sqrt(d_sq), inner_noise / d_sq
        for name, column in zip(PREDICTORS, x, strict=True):
            use = np.isfinite(column) & np.isfinite(y) & np.isfinite(noise) & (w > 0)
            sums = np.zeros((units, 7))
            if use.any():
                r = average_ranks(column[use]) / use.sum() - 0.5
                v, t, e = w[use], y[use], noise[use]
                np.add.at(sums, owner[use], np.stack([v, v * r, v * r**2, v * t, v * t**2, v * e, v * r * t], axis=1))
            corrected, plain = (float(v) for v in correlations(sums.sum(axis=0)))
            replicates = correlations(resampled(counts, sums))[0]
            lost = not np.isfinite(corrected) or np.isnan(replicates).mean() > (1 - scores.level) / 2
            low, high = (np.nan, np.nan) if lost else bootstrap_interval(replicates, carrying, scores.level)
            rows.append(
                {
                    "predictor": name,
                    **signal._asdict(),
                    "correlation": np.nan if lost else corrected,
                    "correlation_low": low,
                    "correlation_high": high,
                    "correlation_plain": plain,
                    "nodes": len(np.unique(np.stack([owner, node])[:, use], axis=1).T),
                }
            )
    return rows


def correlations(sums: Floats) -> tuple[Floats, Floats]:
    """Corrected and plain correlation from weighted sums of 1, x, x^2, y, y^2, the noise in y^2, and xy, [..., 7].

    NaN where a variance is not positive.
    """
    n, x, xx, y, yy, noise, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = xy / n - x * y / n**2
        of_x, of_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        true_y = of_y - noise / n
        known = of_x > 1e-12
        corrected = np.where(known & (true_y > 0), covariance / np.sqrt(of_x * true_y), np.nan)
        plain = np.where(known & (of_y > 0), covariance / np.sqrt(of_x * of_y), np.nan)
    return corrected, plain
