"""Sums over CSR rows."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def owners(offsets: Ints) -> Ints:
    """The row of each value: offsets [N+1] -> [B]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def row_sums(values: Floats, offsets: Ints) -> Floats:
    """Sums of the values of each row along the last axis: [..., B] -> [..., N]; no row may be empty."""
    if len(offsets) == 1:
        return np.zeros((*values.shape[:-1], 0))
    return np.asarray(np.add.reduceat(values, offsets[:-1], axis=-1), dtype=np.float64)
