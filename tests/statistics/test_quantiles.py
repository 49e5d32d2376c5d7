"""Bins: every value lies in one, labels tell where, and one pass gives what sorting would."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from tasks.statistics.quantiles import Bins, Histogram, average_ranks, even_bins, percent_labels

NUMBERS = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=60)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, 2.0, np.inf, np.nan]) | st.floats(width=16), max_size=40))
def test_ranks_are_those_of_scipy(values: list[float]) -> None:
    numbers = np.array(values, dtype=np.float64)
    assert np.array_equal(average_ranks(numbers), rankdata(numbers, nan_policy="omit"), equal_nan=True)


@given(st.integers(2, 50), st.floats(0, 1, exclude_max=True))
def test_even_bins_share_0_to_1(n: int, value: float) -> None:
    bins = even_bins("position", n)
    found = int(bins.of(np.array([value]))[0])
    assert len(bins.labels) == n == len(set(bins.labels)) and found in (int(value * n), round(value * n))
    _, label, low, high = bins.places()[found]
    assert label == bins.labels[found] and not value < low and not value >= high


def test_edges_belong_to_the_bin_above() -> None:
    assert even_bins("position", 4).of(np.array([0.0, 0.25, 0.5, 0.75, 0.2499])).tolist() == [0, 1, 2, 3, 0]


def test_ends_are_open_and_outcomes_have_no_edges_to_tell() -> None:
    places = even_bins("position", 2).places()
    assert [label for _, label, _, _ in places] == ["0-50 %", "50-100 %"]
    assert np.isnan(places[0][2]) and places[0][3] == places[1][2] == 0.5 and np.isnan(places[1][3])
    outcome = Bins("outcome", np.array([0.5]), ["incorrect", "correct"])
    assert outcome.of(np.array([0.0, 1.0])).tolist() == [0, 1]
    assert all(np.isnan(low) and np.isnan(high) for _, _, low, high in outcome.places())


def test_labels_are_rounded_shares() -> None:
    assert percent_labels([0, 1 / 3, 2 / 3, 1]) == ["0-33 %", "33-67 %", "67-100 %"]
    assert percent_labels([0]) == []


@given(NUMBERS, st.integers(2, 6), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_one_pass_in_any_parts_is_one_pass(values: list[float], n: int, parts: int) -> None:
    whole, cut = Histogram(), Histogram()
    whole.add(np.array(values))
    for part in np.array_split(np.array(values[::-1]), parts):
        cut.add(part)
    one, other = whole.bins("entropy", n), cut.bins("entropy", n)
    assert one.labels == other.labels and np.array_equal(one.edges, other.edges)


@given(NUMBERS, st.integers(2, 6))
@settings(deadline=None, max_examples=60)
def test_no_bin_is_empty_and_every_edge_splits(values: list[float], n: int) -> None:
    histogram = Histogram()
    histogram.add(np.array(values))
    bins = histogram.bins("entropy", n)
    counts = np.bincount(bins.of(np.array(values)), minlength=len(bins.labels))
    assert len(bins.labels) == len(bins.edges) + 1 and (np.diff(bins.edges) > 0).all()
    assert counts.sum() == len(values) and (counts > 0).all()
    assert bins.labels[0].startswith("0-") and bins.labels[-1].endswith("-100 %")


@given(st.integers(1, 40), st.integers(2, 6))
def test_values_that_differ_are_shared_out_evenly(each: int, n: int) -> None:
    """Whole numbers below 2^14 are told apart exactly."""
    histogram = Histogram()
    values = np.random.default_rng(0).permutation(np.arange(1.0, n * each + 1))
    histogram.add(values)
    counts = np.bincount(histogram.bins("entropy", n).of(values))
    assert abs(counts - each).max() <= 1


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3.4e38])
def test_the_smallest_and_largest_numbers_have_their_place(value: float) -> None:
    histogram = Histogram()
    histogram.add(np.array([value]))
    assert histogram.bins("entropy", 3).labels == ["0-100 %"]
