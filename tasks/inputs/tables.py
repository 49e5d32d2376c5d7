"""External tables (questions, recorded outcomes), read within limits: JSON lines, parquet, CSV."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl

from schemas.limits import MOST_CELL, MOST_NESTING, MOST_ROWS
from schemas.text import quoted, reason

Row = dict[str, Any]


def parse_table(kind: str, data: bytes, texts: Sequence[str] | None = None) -> list[Row]:
    """The rows of a table, with every cell within the limits of `schemas.limits`.

    Args:
        kind: jsonl, parquet or csv.
        texts: columns of a CSV table that are text whatever they contain; None: all columns.

    Raises:
        ValueError: not a valid table; the message is one line and names the line or row, and the column.
    """
    read: Callable[[], list[Row]] = {
        "jsonl": lambda: _json_lines(data),
        "parquet": lambda: _parquet(data),
        "csv": lambda: _csv(data, texts),
    }[kind]
    try:
        rows = read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(reason(error)) from error
    if kind != "jsonl":
        _check_rows("row", enumerate(rows, 1))
    return rows


def _json_lines(data: bytes) -> list[Row]:
    """Only a line feed ends a line of JSON: U+2028 and similar characters are part of a text."""
    found: list[tuple[int, Row]] = []
    for number, line in enumerate(_text(data).split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except RecursionError:
            raise ValueError(f"line {number} is nested more than {MOST_NESTING} levels deep") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error.msg} at character {error.colno}") from error
        except ValueError as error:
            raise ValueError(f"line {number}: {reason(error)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is {quoted(row)}, not an object with columns")
        found.append((number, row))
        _check_count(len(found))
    _check_rows("line", found)
    return [row for _, row in found]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{quoted(next(n for n in names if names.count(n) > 1))} appears twice")
    return out


def _parquet(data: bytes) -> list[Row]:
    _check_count(pl.scan_parquet(io.BytesIO(data)).select(pl.len()).collect().item())
    return pl.read_parquet(data).to_dicts()


def _csv(data: bytes, texts: Sequence[str] | None) -> list[Row]:
    text = _text(data)
    header = [name or "" for name in pl.read_csv(text.encode(), has_header=False, n_rows=1, infer_schema=False).row(0)]
    duplicates = [name for name in header if header.count(name) > 1]
    if "" in duplicates:
        raise ValueError(f"{duplicates.count('')} columns have no name; name each in the first line")
    if duplicates:
        raise ValueError(f"column {quoted(duplicates[0])} appears twice")
    typed = {name: pl.String for name in texts or () if name in header}
    table = pl.read_csv(text.encode(), infer_schema=texts is not None, infer_schema_length=None, schema_overrides=typed)
    _check_count(table.height)
    return table.to_dicts()


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 text: {reason(error)}") from error


def _check_count(rows: int) -> None:
    if rows > MOST_ROWS:
        raise ValueError(f"more than {MOST_ROWS:,} rows")


def _check_rows(unit: str, rows: Iterable[tuple[int, Row]]) -> None:
    for number, row in rows:
        for name, value in row.items():
            problem = _problem(name) or _problem(value)
            if problem is not None:
                raise ValueError(f"{unit} {number}, column {quoted(name)}: {problem}")


def _problem(cell: object) -> str | None:
    """What is wrong with a cell or anything within it; None where nothing is."""
    queue = [(cell, 0)]
    while queue:
        value, depth = queue.pop()
        if depth > MOST_NESTING:
            return f"nested more than {MOST_NESTING} levels deep"
        if isinstance(value, str):
            if len(value) > MOST_CELL:
                return f"a text of {len(value):,} characters; a cell has at most {MOST_CELL:,}"
            if not value.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in value):
                return f"{quoted(value)} contains a lone surrogate"
        elif isinstance(value, dict):
            queue += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            queue += [(part, depth + 1) for part in value]
    return None
