"""`opdscope figures`."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from flows.command.compare import finished
from flows.command.configuration import ConfigurationError
from flows.command.guarded import CONSOLE, OK, guarded
from flows.command.places import put_file
from schemas.text import quoted

if TYPE_CHECKING:
    from rich.table import Table

    from tasks.outputs.comparison.runs import Finished


def draw_figures(run: str, store: str, output: Path | None, formats: str) -> int:
    """`opdscope figures`."""

    def action() -> int:
        from tasks.outputs.figures.drawing import TABLES, figures, left_out
        from tasks.outputs.figures.style import ChartError

        forms = chosen(formats)
        of = finished(run, store)
        folder = folder_for(output, of.name)
        tables = {name: of.table(name) for name in TABLES}
        folder.mkdir(exist_ok=True)
        for figure in figures(tables):
            if figure.chart is None:
                CONSOLE.print(f"no {figure.name}: {figure.lacking}", soft_wrap=True)
                continue
            try:
                for name, content in figure.files(forms):
                    _write(folder / name, content)
            except ChartError as error:
                CONSOLE.print(escape(f"no {figure.name}: it could not be drawn: {error}"), soft_wrap=True)
        _write_tables(folder, of)
        for line in left_out(tables):
            CONSOLE.print(escape(line), soft_wrap=True)
        return OK

    return guarded(action)


def chosen(formats: str) -> list[str]:
    """Formats separated by commas, each once.

    Raises:
        ConfigurationError: one that there is not.
    """
    from tasks.outputs.figures.style import FORMATS

    given = list(dict.fromkeys(part.strip().lower() for part in formats.split(",")))
    if wrong := [form for form in given if form not in FORMATS]:
        raise ConfigurationError(f"--format: {quoted(wrong[0])} is no format; give some of {','.join(FORMATS)}")
    return given


def folder_for(output: Path | None, name: str) -> Path:
    """Where files are written; it may exist, and files of other names in it are left alone.

    Raises:
        ConfigurationError: it cannot be such a folder.
    """
    folder = Path(f"{name}-figures") if output is None else output
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"--output: {quoted(str(folder))} is a file; give a folder")
    if not folder.absolute().parent.is_dir():
        raise ConfigurationError(f"--output: the folder of {quoted(str(folder))} does not exist")
    return folder


def _write(path: Path, content: bytes) -> None:
    put_file(path, content)
    CONSOLE.print(escape(str(path)), soft_wrap=True)


def _write_tables(folder: Path, of: "Finished") -> None:
    """Tables as the terminal shows them, in LaTeX and Markdown."""
    from flows.command.written import grid_of
    from tasks.outputs.figures.grid import latex, markdown

    for name, table in _tables(of).items():
        if not table.row_count:
            CONSOLE.print(f"no table {name}: it has no rows")
            continue
        grid = grid_of(table)
        _write(folder / f"{name}.tex", latex(grid).encode())
        _write(folder / f"{name}.md", markdown(grid).encode())


def _tables(of: "Finished") -> dict[str, "Table"]:
    from flows.command.forecasts import forecast_table
    from flows.command.terminal import score_table, success_table

    scores = of.config.scores
    return {
        "summary": score_table(of.table("summary"), scores.level),
        "forecasts": forecast_table(of.table("forecasts").to_dicts(), scores.forecast_level),
        "success": success_table(of.table("success").to_dicts(), scores.level),
    }
