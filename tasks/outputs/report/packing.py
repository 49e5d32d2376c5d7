"""Arrays and text inside a page: packed small, read on demand by `app/decode.js`."""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from schemas.arrays import AnyArray

Kind = Literal["int", "unit", "real", "rough"]
"""How numbers are kept: `int` as 32 bits; `unit`, numbers within [-1, 1], in steps of 1 / UNIT; `real` as the first 24
bits of a float32, whose relative error is at most 2^-16, and `rough` as its first 16, at most 2^-8. NaN stays NaN, but
for `int`, which has none."""

UNIT = 20_000
_UNDEFINED = -32_768


class Column(NamedTuple):
    """Numbers to keep, of any shape, and how."""

    kind: Kind
    values: AnyArray


def packed(columns: Mapping[str, Column], meta: Mapping[str, Any]) -> str:
    """Base64 of a gzip file: the header's length (32 bits), the header (JSON), and the bytes of every column.

    Bytes of equal significance lie together, as that compresses best.

    Args:
        meta: what the header says besides, as JSON.
    """
    places, parts, size = {}, [], 0
    for name, column in columns.items():
        data = _planes(column)
        places[name] = [column.kind, int(np.size(column.values)), size]
        parts.append(data)
        size += len(data)
    header = json.dumps({"meta": meta, "columns": places}, separators=(",", ":")).encode()
    data = len(header).to_bytes(4, "little") + header + b"".join(parts)
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _planes(column: Column) -> bytes:
    values = np.asarray(column.values).reshape(-1)
    if column.kind == "int":
        numbers = values.astype("<i4")
    elif column.kind == "unit":
        scaled = np.rint(np.clip(np.nan_to_num(values.astype(np.float64)), -1.0, 1.0) * UNIT)
        numbers = np.where(np.isnan(values.astype(np.float64)), _UNDEFINED, scaled).astype("<i2")
    else:
        dropped = 8 if column.kind == "real" else 16
        bits = values.astype("<f4").view("<u4")
        rounded = bits + (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)  # to even
        numbers = np.where(np.isnan(values.astype("<f4")), 0x7FC00000, rounded).astype("<u4") >> dropped
        return _by_significance(numbers.astype("<u4"), 4 - dropped // 8)
    return _by_significance(numbers, numbers.itemsize)


def _by_significance(numbers: AnyArray, width: int) -> bytes:
    """The low bytes of all numbers, then the next ones, up to a width."""
    parts = numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize)[:, :width]
    return np.ascontiguousarray(parts.T).tobytes()
