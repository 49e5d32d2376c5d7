"""Tables of a terminal: forecasts, and what trainings say of them."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.command.terminal import estimate, number

_NAMES = ("teacher", "context", "loss")


def forecast_table(rows: Sequence[dict[str, Any]], level: float) -> Table:
    """Success after training on each signal, the best first.

    Args:
        rows: as `schemas.tables.FORECASTS` declares them.
    """
    title = f"success after training until it levels off, {100 * level:g} % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", justify="right", no_wrap=True)
    for name in _NAMES:
        table.add_column(name, no_wrap=True)
    for name in ("before", "after", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        if row["forecast"] is None:
            continue
        share = f"{100 * row['p_best']:.0f} %"
        names = (escape(row[name]) for name in _NAMES)
        said = row["verdict"] + (f": {row['remark']}" if row["remark"] else "")
        table.add_row(str(row["place"]), *names, number(row["base"]), estimate(row, "forecast"), share, escape(said))
    return table


def predictor_table(rows: Sequence[dict[str, Any]], steps: Sequence[int]) -> Table:
    """How well what was known beforehand tells which trainings succeed.

    Args:
        rows: as `tasks.validation.judge.predictor_rows` gives them.
        steps: that were logged.
    """
    table = Table(title="rank correlation with success after training", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("predictor", no_wrap=True)
    early = [f"after {steps[0]} steps"] if len(steps) > 1 else []
    for name in (*early, f"after {steps[-1]} steps", "pairs in order", "regret"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        start = [estimate(row, "early")] if early else []
        pairs = "-" if row["ordered"] is None else f"{100 * row['ordered']:.0f} %"
        regret = "-" if row["regret"] is None else f"{row['regret']:.3f}"
        table.add_row(escape(row["predictor"]), *start, estimate(row, "late"), pairs, regret)
    return table
