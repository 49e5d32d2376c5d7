"""Sums over CSR rows."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def owners(offsets: Ints) -> Ints:
    """The row of each value: offsets [N+1] -> [B]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def offsets_of(sizes: Ints) -> Ints:
    """Where rows of these sizes start: [N] -> [N+1]."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def rows_of(offsets: Ints, rows: Ints) -> Ints:
    """Places of the values of some rows, row after row: offsets [N+1], [n] -> [their values]."""
    sizes = np.diff(offsets)[rows]
    starts = offsets_of(sizes)
    return np.asarray(np.repeat(offsets[rows] - starts[:-1], sizes) + np.arange(int(starts[-1])), dtype=np.int64)


def row_sums(values: Floats, offsets: Ints) -> Floats:
    """Sums of the values of each row along the last axis: [..., B] -> [..., N]; no row may be empty."""
    if len(offsets) == 1:
        return np.zeros((*values.shape[:-1], 0))
    return np.asarray(np.add.reduceat(values, offsets[:-1], axis=-1), dtype=np.float64)
