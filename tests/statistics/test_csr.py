"""Rows of ragged data, against loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.statistics.csr import owners, row_sums

SIZES = st.lists(st.integers(1, 4), max_size=6)


@given(st.lists(st.integers(0, 4), max_size=6))
def test_owners_are_the_rows_that_values_lie_in_empty_rows_too(sizes: list[int]) -> None:
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    assert owners(offsets).tolist() == [row for row, size in enumerate(sizes) for _ in range(size)]


@given(SIZES, st.integers(0, 2**32), st.sampled_from([(), (3,), (2, 1)]))
def test_sums_of_rows_are_those_of_a_loop(sizes: list[int], seed: int, before: tuple[int, ...]) -> None:
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    values = np.random.default_rng(seed).standard_normal((*before, sum(sizes)))
    found = row_sums(values, offsets)
    assert found.shape == (*before, len(sizes)) and found.dtype == np.float64
    for row in range(len(sizes)):
        expected = values[..., offsets[row] : offsets[row + 1]].sum(axis=-1)
        assert np.allclose(found[..., row], expected, rtol=1e-12, atol=1e-12)


def test_what_is_undefined_in_one_row_stays_there() -> None:
    found = row_sums(np.array([1.0, np.nan, 2.0, 3.0]), np.array([0, 1, 2, 4]))
    assert np.array_equal(found, [1.0, np.nan, 5.0], equal_nan=True)
