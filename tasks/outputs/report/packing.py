"""Arrays and text inside a page: packed small, read on demand by `app/decode.js`."""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from schemas.arrays import AnyArray

Kind = Literal["int", "unit", "real"]
"""How numbers are kept: `int` as 32 bits; `unit`, numbers within [-1, 1], in steps of 1 / UNIT; `real` as bfloat16,
whose relative error is at most 1/256. NaN stays NaN in the last two."""

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
        bits = values.astype("<f4").view("<u4")
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        numbers = np.where(np.isnan(values.astype("<f4")), 0x7FC0, rounded >> 16).astype("<u2")
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T).tobytes()
