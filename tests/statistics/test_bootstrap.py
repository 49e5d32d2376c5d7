"""Bootstrap intervals: undefined for few units, never shorter than Student's t, and blind to units of measure."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t

from tasks.statistics.bootstrap import LEAST_UNITS, bootstrap_interval, critical_value, resample, resampled

LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@pytest.mark.parametrize("units", range(LEAST_UNITS))
def test_few_units_have_no_interval(units: int) -> None:
    assert np.isnan(bootstrap_interval(np.linspace(0, 1, 100), units, 0.95)).all()


@pytest.mark.parametrize("values", [[], [np.nan], [np.nan, np.inf, -np.inf]])
def test_replicates_that_are_all_undefined_have_no_interval(values: list[float]) -> None:
    assert np.isnan(bootstrap_interval(np.array(values), 50, 0.95)).all()


@given(st.integers(0, 2**32), st.integers(LEAST_UNITS, 100), LEVELS)
@settings(deadline=None)
def test_undefined_replicates_are_left_out(seed: int, units: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(50)
    mixed = np.concatenate([values, [np.nan, np.inf, -np.inf, np.nan]])[rng.permutation(54)]
    assert bootstrap_interval(mixed, units, level) == bootstrap_interval(values, units, level)


@given(st.integers(0, 2**32), st.integers(LEAST_UNITS, 100), LEVELS, st.floats(0.01, 100), st.floats(-10, 10))
@settings(deadline=None)
def test_scale_and_place_of_a_score_are_those_of_its_interval(
    seed: int, units: int, level: float, scale: float, place: float
) -> None:
    values = np.random.default_rng(seed).gamma(2.0, size=80)
    low, high = bootstrap_interval(values, units, level)
    assert bootstrap_interval(scale * values + place, units, level) == pytest.approx(
        (scale * low + place, scale * high + place), rel=1e-6, abs=1e-6
    )
    assert bootstrap_interval(-values, units, level) == pytest.approx((-high, -low), rel=1e-9)


@given(st.integers(0, 2**32), st.integers(LEAST_UNITS, 100))
@settings(deadline=None)
def test_a_higher_level_is_never_a_shorter_interval_nor_are_fewer_units(seed: int, units: int) -> None:
    values = np.random.default_rng(seed).standard_normal(200)
    ends = [bootstrap_interval(values, units, level) for level in (0.6, 0.8, 0.9, 0.95, 0.99)]
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in pairwise(ends))
    fewer = bootstrap_interval(values, max(LEAST_UNITS, units - 3), 0.95)
    assert fewer[0] <= ends[3][0] and fewer[1] >= ends[3][1]


def test_one_value_is_an_interval_of_no_width() -> None:
    assert bootstrap_interval(np.full(30, 0.25), 10, 0.95) == (0.25, 0.25)


@given(st.integers(2, 200), LEVELS)
def test_the_critical_value_widens_student_t_by_the_bias_of_the_replicates_spread(units: int, level: float) -> None:
    expected = student_t.ppf((1 + level) / 2, units - 1) * (units / (units - 1)) ** 0.5
    assert critical_value(units, level) == pytest.approx(expected)
    assert critical_value(units, level) > critical_value(units + 1, level)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_every_replicate_holds_as_many_units_as_there_are(units: int, replicates: int, seed: int) -> None:
    counts = resample(units, replicates, seed)
    assert counts.shape == (replicates, units) and (counts.sum(axis=1) == units).all()
    assert (counts >= 0).all() and (counts == np.round(counts)).all()
    assert np.array_equal(counts, resample(units, replicates, seed))


def test_other_seeds_are_other_replicates() -> None:
    assert not np.array_equal(resample(20, 50, 0), resample(20, 50, 1))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([(), (2,), (2, 3)]))
def test_sums_of_replicates_are_those_of_a_loop(units: int, replicates: int, seed: int, shape: tuple[int, ...]) -> None:
    counts = resample(units, replicates, seed)
    sums = np.random.default_rng(seed).standard_normal((units, *shape))
    expected = [sum(n * one for n, one in zip(row, sums, strict=True)) for row in counts]
    assert np.allclose(resampled(counts, sums), np.array(expected))


def test_intervals_of_means_cover_as_often_as_they_say() -> None:
    rng, covered, runs = np.random.default_rng(0), 0, 400
    for run in range(runs):
        sample = rng.standard_normal(8)
        means = resampled(resample(8, 400, run), sample) / 8
        low, high = bootstrap_interval(means, 8, 0.9)
        covered += low <= 0 <= high
    assert 0.9 - 3 * (0.09 / runs) ** 0.5 <= covered / runs
