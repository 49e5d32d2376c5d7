"""`opdscope compare`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from flows.command.configuration import ConfigurationError
from flows.command.guarded import CONSOLE, OK, guarded
from flows.command.places import check_place, place, put_file
from schemas.text import quoted

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from tasks.outputs.comparison.runs import Finished

SUFFIXES = (".md", ".tex", ".csv", ".parquet")


def compare_runs(runs: Sequence[str], store: str, output: Path | None) -> int:
    """`opdscope compare`."""

    def action() -> int:
        if len(runs) < 2:
            raise ConfigurationError(f"RUN: {quoted(runs[0])} is one run; give two or more")
        if output is not None:
            check_output(output)
        from flows.command.comparisons import comparison_tables, what_changed
        from flows.command.terminal import show_table
        from tasks.outputs.comparison.rows import comparison_table
        from tasks.outputs.comparison.runs import compared

        found = [finished(run, store) for run in runs]
        sides = [compared(run, label) for run, label in zip(found, labels([run.name for run in found]), strict=True)]
        table = comparison_table(sides)
        tables = comparison_tables(table, sides)
        if output is not None:  # before the terminal, which may be closed by then
            put_file(output, _content(output.suffix, table, tables))
        for line in what_changed(table, sides):
            CONSOLE.print(line, style="bold", soft_wrap=True)
        for shown in tables:
            show_table(CONSOLE, shown)
        if output is not None:
            CONSOLE.print(escape(str(output)), soft_wrap=True)
        return OK

    return guarded(action)


def check_output(output: Path) -> None:
    """Reject a file that cannot be written, before anything is read.

    Raises:
        ConfigurationError: it names the option and the value.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigurationError(f"--output: {quoted(str(output))} ends with none of {', '.join(SUFFIXES)}")
    if output.is_dir():
        raise ConfigurationError(f"--output: {quoted(str(output))} is a folder; give a file")
    if not output.absolute().parent.is_dir():
        raise ConfigurationError(f"--output: the folder of {quoted(str(output))} does not exist")


def finished(run: str, store: str) -> "Finished":
    """A finished run: a name in the store, `STORE/runs/NAME`, or `STORE#NAME`.

    Raises:
        ConfigurationError: it is none of these, or its store does not exist.
        StoreError: there is no such run.
    """
    url, name = place(run, store)
    check_place(url)
    from tasks.outputs.comparison.runs import Finished
    from tasks.store.store import Store

    opened = Store(url)
    if not opened.exists() or opened.is_file():
        raise ConfigurationError(
            f"RUN: {quoted(run)}: there is no store {quoted(url)}; give --store, or STORE/runs/NAME"
        )
    return Finished.of(opened, name)


def labels(names: Sequence[str]) -> list[str]:
    """What runs are called: their names, numbered where they are alike."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def _content(suffix: str, table: "pl.DataFrame", tables: Sequence["Table"]) -> bytes:
    from flows.command.written import grid_of
    from tasks.outputs.figures.grid import csv, latex, markdown
    from tasks.outputs.files import parquet_bytes

    if suffix == ".parquet":
        return parquet_bytes(table)
    if suffix == ".csv":
        return csv(table).encode()
    write = latex if suffix == ".tex" else markdown
    return "\n".join(write(grid_of(shown)) for shown in tables).encode()
