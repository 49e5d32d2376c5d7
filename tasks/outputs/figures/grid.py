"""Tables of text, written as LaTeX, Markdown and CSV in which every cell stays text."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from schemas.text import visible

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": "{`}",
    "'": "{'}",
    "±": r"$\pm$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}
_MINUS = re.compile(r"(?:^|(?<=[ \[+]))-(?=[.0-9])")
_JOINED = re.compile(r"-(?=-)|(?<=[?!])(?=\{`\})")
"""Where LaTeX would make one sign of two."""
_MARKDOWN = re.compile(r"[\\`*_|~<>&$@:]|\](?=[(\[])|(?<=www)\.|(?<=WWW)\.")
_LONG = 30
"""Letters from which on a cell is set in lines."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell starts with that spreadsheets take for a formula."""


class Grid(NamedTuple):
    """A table of text.

    Attributes:
        title: what it shows.
        header: of the columns.
        right: whether each column is aligned to the right.
        rows: cells.
    """

    title: str
    header: Sequence[str]
    right: Sequence[bool]
    rows: Sequence[Sequence[str]]


def latex_text(text: str) -> str:
    """Text for LaTeX in UTF-8: no character of it is a command or part of another sign; numbers have a minus."""
    if text == "-":
        return "--"  # nothing is known
    parts = _MINUS.split(visible(text))
    return "$-$".join(_JOINED.sub(r"\g<0>{}", "".join(_LATEX.get(c, c) for c in part)) for part in parts)


def latex(grid: Grid) -> str:
    """A table with rules of the package `booktabs`, its title as the caption."""
    cells = list(zip(grid.header, *grid.rows, strict=True))
    columns = "".join(
        "r" if right else r"p{0.3\linewidth}" if max(map(len, column)) > _LONG else "l"
        for right, column in zip(grid.right, cells, strict=True)
    )
    lines = [r"\begin{table}", r"\centering", f"\\caption{{{latex_text(grid.title)}}}", r"\small"]
    lines += [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(grid.header), r"\midrule"]
    lines += [_latex_row(row) for row in grid.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_row(cells: Sequence[str]) -> str:
    # after the end of a row, a bracket or star would be an argument
    safe = [f"{{}}{cell}" if cell.startswith(("[", "*")) else cell for cell in map(latex_text, cells)]
    return " & ".join(safe) + r" \\"


def markdown_text(text: str) -> str:
    """Text for a table in Markdown, in which no character has a meaning."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", visible(text))


def markdown(grid: Grid) -> str:
    """A table, under its title."""
    rules = ["---:" if right else "---" for right in grid.right]
    rows = [[markdown_text(cell) for cell in row] for row in (grid.header, *grid.rows)]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rules, *rows[1:]]]
    return "\n".join([f"**{markdown_text(grid.title)}**", "", *lines, ""])


def csv(table: pl.DataFrame) -> str:
    """A table as CSV; text that spreadsheets would take for a formula has an apostrophe before it."""
    safe = [
        pl.when(pl.any_horizontal(pl.col(name).str.starts_with(start) for start in _FORMULA))
        .then(pl.lit("'") + pl.col(name))
        .otherwise(pl.col(name))
        .alias(name)
        for name, dtype in table.schema.items()
        if dtype == pl.String
    ]
    return table.with_columns(safe).write_csv()
