"""Ranks and bins of numbers, and one-pass quantiles of any amount of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from tasks.statistics.csr import Floats, Ints


def average_ranks(values: Floats) -> Floats:
    """Rank of each number from 1 up, with ties averaged, [n] -> [n]; NaN stays NaN and is not counted."""
    return np.asarray(pl.Series(values, dtype=pl.Float64).fill_nan(None).rank().to_numpy(), dtype=np.float64)


@dataclass(frozen=True)
class Bins:
    """Bins of one grouping: edges [n-1] inside the range, and labels [n]."""

    group: str
    edges: Floats
    labels: list[str]

    def of(self, values: Floats) -> Ints:
        """Index of the bin of each value."""
        return np.searchsorted(self.edges, values, side="right")

    def places(self) -> list[tuple[str, str, float, float]]:
        """Group, label, lower and upper edge of each bin."""
        ends = [np.nan, *self.edges.tolist(), np.nan] if self.group != "outcome" else [np.nan] * 3
        return [(self.group, label, ends[i], ends[i + 1]) for i, label in enumerate(self.labels)]


def even_bins(group: str, n: int) -> Bins:
    """Bins of equal width from 0 to 1."""
    return Bins(group, np.arange(1, n) / n, percent_labels([k / n for k in range(n + 1)]))


def percent_labels(ends: Sequence[float]) -> list[str]:
    """Labels of the bins between consecutive ends, which are shares of the whole."""
    texts = [f"{100 * end:.0f}" for end in ends]
    return [f"{a}-{b} %" for a, b in pairwise(texts)]


class Histogram:
    """Counts of non-negative numbers, each truncated to 14 leading bits: one-pass quantiles of any amount of them."""

    _DROPPED = 10  # of the 23 bits of a float32's fraction

    def __init__(self) -> None:
        """Start empty."""
        self._counts = np.zeros(1 << (31 - self._DROPPED), dtype=np.int64)

    def add(self, values: Floats) -> None:
        """Count the finite values."""
        known = np.maximum(values[np.isfinite(values)], 0.0).astype(np.float32) + np.float32(0)  # no -0
        self._counts += np.bincount(known.view(np.uint32) >> self._DROPPED, minlength=len(self._counts))

    def bins(self, group: str, n: int) -> Bins:
        """Bins of equal counts, labelled by their percentiles; fewer where values tie or none is known."""
        cumulative = np.cumsum(self._counts)
        if cumulative[-1] == 0:
            return Bins(group, np.empty(0), percent_labels([0, 1]))
        ranks = np.arange(1, n)
        cells = np.searchsorted(cumulative, -(-cumulative[-1] * ranks // n), side="left")
        cells, first = np.unique(cells, return_index=True)  # of tied edges, the lowest percentile
        above = cells > np.flatnonzero(self._counts)[0]
        edges = (cells[above].astype(np.uint32) << self._DROPPED).view(np.float32).astype(np.float64)
        return Bins(group, edges, percent_labels([0, *(ranks[first][above] / n), 1]))
