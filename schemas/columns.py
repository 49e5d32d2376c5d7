"""A column of a table."""

from typing import NamedTuple


class Column(NamedTuple):
    """One column: its polars type and what it holds."""

    dtype: str
    meaning: str
