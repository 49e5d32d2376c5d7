"""Tables of a terminal as text, for files."""

from rich.table import Table
from rich.text import Text

from tasks.outputs.figures.grid import Grid


def grid_of(table: Table) -> Grid:
    """What a table shows, without its markup."""
    cells = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    return Grid(
        title=Text.from_markup(str(table.title)).plain,
        header=[Text.from_markup(str(column.header)).plain for column in table.columns],
        right=[column.justify == "right" for column in table.columns],
        rows=list(zip(*cells, strict=True)),
    )
