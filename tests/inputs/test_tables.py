"""Tables and files from outside, one module at a time: what is read is what was written, or is refused by its place."""

import io
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.limits import MOST_CELL, MOST_NESTING
from tasks.inputs import tables
from tasks.inputs.files import NotAFileError, check_file, read_file
from tasks.inputs.tables import parse_table

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXT, CELLS, max_size=4), max_size=5)


@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]))
@settings(deadline=None)
def test_json_lines_come_back_whatever_characters_they_hold(rows: list[Any], ascii_: bool, between: str) -> None:
    text = between.join(json.dumps(row, ensure_ascii=ascii_) for row in rows)
    for mark in ("", "\ufeff"):
        assert parse_table("jsonl", (mark + text).encode()) == rows


def test_line_separators_of_unicode_end_no_line() -> None:
    text = '{"a": "x\u2028y\u2029z\x85"}'
    assert parse_table("jsonl", text.encode()) == [{"a": "x\u2028y\u2029z\x85"}]


WRITTEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1)


@given(st.lists(st.tuples(WRITTEN, WRITTEN), min_size=1, max_size=5))
@settings(deadline=None)
def test_csv_and_parquet_give_every_text_as_it_is(cells: list[tuple[str, str]]) -> None:
    table = pl.DataFrame({"id": [a for a, _ in cells], "سؤال": [b for _, b in cells]})
    for kind, write in (("csv", table.write_csv), ("parquet", table.write_parquet)):
        buffer = io.BytesIO()
        write(buffer)
        assert parse_table(kind, buffer.getvalue()) == table.to_dicts()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, {"a": "007", "b": "1.50", "c": "true"}),
        (["a"], {"a": "007", "b": 1.5, "c": True}),
        (["a", "c", "not there"], {"a": "007", "b": 1.5, "c": "true"}),
        ([], {"a": 7, "b": 1.5, "c": True}),
    ],
)
def test_csv_columns_have_types_where_not_all_are_texts(texts: list[str] | None, expected: dict[str, Any]) -> None:
    assert parse_table("csv", b"a,b,c\n007,1.50,true\n", texts) == [expected]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("jsonl", b'{"a": 1}\n\n[1]', "^line 3 is"),
        ("jsonl", b'{"a": 1}\nx', "^line 2 is not JSON: Expecting value at character 1"),
        ("jsonl", b'{"a": 1, "a": 2}', "^line 1: 'a' appears twice"),
        ("jsonl", b'{"a": {"b": 1, "b": 2}}', "^line 1: 'b' appears twice"),
        ("jsonl", b"\n\n\xff", "^line 3 is not UTF-8 text"),
        ("csv", b"a,a\n1,2\n", "^column 'a' appears twice"),
        ("csv", b"a,,\n1,2,3\n", "^2 columns have no name"),
        ("csv", b"a\n1\n\xff\n", "^line 3 is not UTF-8 text"),
        ("parquet", b"PAR1", ""),
        ("parquet", b"", ""),
    ],
)
def test_what_is_no_table_is_refused_by_line(kind: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message or "."):
        parse_table(kind, data)


def nested(levels: int) -> str:
    return '{"a": ' + "[" * levels + "]" * levels + "}"


def test_limits_of_cells_are_what_they_say() -> None:
    assert parse_table("jsonl", nested(MOST_NESTING + 1).encode())  # the cell itself is level 0
    with pytest.raises(ValueError, match="line 1, column 'a': nested more than 50 levels deep"):
        parse_table("jsonl", nested(MOST_NESTING + 2).encode())
    row = json.dumps({"a": "x" * MOST_CELL})
    assert len(parse_table("jsonl", row.encode())[0]["a"]) == MOST_CELL
    for long in ({"a": "x" * (MOST_CELL + 1)}, {"a": {"x" * (MOST_CELL + 1): 1}}):
        with pytest.raises(ValueError, match="line 1, column 'a': a text of 1,000,001 characters"):
            parse_table("jsonl", json.dumps(long).encode())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_are_counted_before_they_are_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.DataFrame({"a": ["x", "y", "z"]})
    buffer = io.BytesIO()
    getattr(table, {"jsonl": "write_ndjson"}.get(kind, f"write_{kind}"))(buffer)
    monkeypatch.setattr(tables, "MOST_ROWS", 3)
    assert len(parse_table(kind, buffer.getvalue())) == 3
    monkeypatch.setattr(tables, "MOST_ROWS", 2)
    with pytest.raises(ValueError, match="more than 2 rows"):
        parse_table(kind, buffer.getvalue())


def test_numbers_of_json_keep_their_kind() -> None:
    row = parse_table("jsonl", b'{"a": 1, "b": 1.0, "c": NaN, "d": 1e400, "e": true, "f": 123456789012345678901234}')[0]
    assert isinstance(row["a"], int) and isinstance(row["b"], float) and row["e"] is True
    assert math.isnan(row["c"]) and row["d"] == math.inf and row["f"] == 123456789012345678901234


@pytest.mark.parametrize("most", [-1, 0, 3, 100])
def test_a_file_is_read_as_far_as_is_asked(most: int, tmp_path: Path) -> None:
    path = tmp_path / "سؤال.txt"
    path.write_bytes(b"0123456789")
    assert read_file(path, most) == b"0123456789"[: most if most >= 0 else None]
    assert read_file(str(path)) == b"0123456789"
    check_file(path)
    check_file(tmp_path)


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "socket", "link"):
        for look in (check_file, read_file):
            with pytest.raises(NotAFileError, match=f"{name} is a pipe, a device or a socket; give a file"):
                look(tmp_path / name)
    server.close()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("gone", "dangling"):
        with pytest.raises(FileNotFoundError):
            read_file(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
