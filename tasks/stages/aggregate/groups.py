"""Groups of positions: the values and bins of each grouping."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from schemas.config import Grouping
from schemas.signals import Signal
from tasks.stages.aggregate.questions import QuestionScores
from tasks.statistics.csr import Floats
from tasks.statistics.quantiles import Bins, Histogram, even_bins


@dataclass(frozen=True)
class GroupedBy:
    """One way to group positions.

    Attributes:
        values: the binned value of each position of a question, [T].
        bins: makes the given number of bins; None: quantiles of the values at all the student's positions.
        of_source: the values depend on a teacher with its context.
    """

    values: Callable[[QuestionScores, Signal], Floats]
    bins: Callable[[int], Bins] | None = None
    of_source: bool = False


def _outcome(q: QuestionScores, signal: Signal) -> Floats:
    return np.asarray(q.rollouts["correct"], dtype=np.float64)[q.rollout_of_position]


def _position(q: QuestionScores, signal: Signal) -> Floats:
    lengths = np.diff(np.asarray(q.rollouts["offsets"], dtype=np.int64))
    return q.place / lengths[q.rollout_of_position]


def _difficulty(q: QuestionScores, signal: Signal) -> Floats:
    correct = np.asarray(q.rollouts["correct"], dtype=np.float64)
    # the last bin includes its upper edge
    return np.full(len(q.rollout_of_position), min(float(correct.mean()), 1 - 1e-9))


def _entropy(q: QuestionScores, signal: Signal) -> Floats:
    return np.asarray(q.tree["entropy"], dtype=np.float64)


def _divergence(q: QuestionScores, signal: Signal) -> Floats:
    return np.asarray(q.distillation[signal]["kl"], dtype=np.float64)


GROUPINGS = {
    "outcome": GroupedBy(_outcome, lambda n: Bins("outcome", np.array([0.5]), ["incorrect", "correct"])),
    "position": GroupedBy(_position, partial(even_bins, "position")),
    "entropy": GroupedBy(_entropy),
    "divergence": GroupedBy(_divergence, of_source=True),
    "difficulty": GroupedBy(_difficulty, partial(even_bins, "difficulty")),
}
"""Every `schemas.config.Grouping` by name."""


def all_bins(
    groupings: Sequence[Grouping], scored: Iterable[QuestionScores], signals: Sequence[Signal]
) -> dict[Signal, list[Bins]]:
    """Bins of every grouping for every signal; questions are read only if a grouping needs quantiles."""
    one_of_source = {signal.source: signal for signal in signals}
    histograms: dict[tuple[str, object], tuple[Histogram, Signal]] = {}
    quantiles: list[str] = [grouping.by for grouping in groupings if GROUPINGS[grouping.by].bins is None]
    for by in quantiles:
        for source, signal in one_of_source.items():
            histograms.setdefault((by, source if GROUPINGS[by].of_source else None), (Histogram(), signal))
    for q in scored if histograms else ():
        for (by, _), (histogram, signal) in histograms.items():
            histogram.add(GROUPINGS[by].values(q, signal))

    def of(grouping: Grouping, signal: Signal) -> Bins:
        grouped = GROUPINGS[grouping.by]
        if grouped.bins is not None:
            return grouped.bins(grouping.bins)
        histogram, _ = histograms[grouping.by, signal.source if grouped.of_source else None]
        return histogram.bins(grouping.by, grouping.bins)

    return {signal: [of(grouping, signal) for grouping in groupings] for signal in signals}
