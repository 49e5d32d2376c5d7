"""Tables and sentences of a terminal: runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.command.terminal import estimate, number
from schemas.signals import Signal
from tasks.outputs.comparison.differences import Compared

_TITLES = {
    "success": "the student's success",
    "own": "teachers' own success",
    "handover": "handover: the student's success from just before their answers",
    "forecast": "forecast: success after training until it levels off",
    "alignment": "alignment with the ideal gradient",
    "gain": "gain a rollout of a unit step along each signal",
}
_NAMES = ("teacher", "context", "loss")
_SIDE_BY_SIDE = 3
"""Runs that a row holds; of more, each has a row of its own."""
_NAMED = 3

Row = dict[str, Any]


def comparison_tables(table: pl.DataFrame, runs: Sequence[Compared]) -> list[Table]:
    """A table for each score: in every run, and the differences to the first.

    Args:
        table: as `schemas.question_tables.COMPARISON` declares it.
    """
    out = []
    for score, title in _TITLES.items():
        rows = table.filter(pl.col("score") == score)
        if rows.is_empty() or (rows["value"].is_null().all() and score != "alignment"):
            continue
        levels = [run.forecast_level if score == "forecast" else run.level for run in runs]
        shown = Table(title=f"{title}, {_coverage(levels)}", title_justify="left", box=SIMPLE_HEAD)
        names = [name for name in _NAMES if rows[name].is_not_null().any()]
        for name in names:
            shown.add_column(name, no_wrap=True)
        by_signal = rows.partition_by(_NAMES, maintain_order=True)
        fill = _beside if len(runs) <= _SIDE_BY_SIDE else _below
        fill(shown, names, [[_Cells.of(row, runs) for row in part.to_dicts()] for part in by_signal])
        out.append(shown)
    return out


def _coverage(levels: Sequence[float]) -> str:
    """Of the intervals of each run, and of the differences, which have the larger one."""
    told = [f"{100 * level:g} %" for level in levels]
    if len(set(told)) == 1:
        return f"{told[0]} interval"
    return f"intervals of {', '.join(told)}; of differences {100 * max(levels):g} %"


class _Cells(NamedTuple):
    """A score of a run, as it is shown."""

    run: str
    names: Mapping[str, str]
    value: str
    change: str

    @classmethod
    def of(cls, row: Row, runs: Sequence[Compared]) -> "_Cells":
        """From a row of the table."""
        names = {name: escape(row[name]) for name in _NAMES if row[name] is not None}
        run = next(run for run in runs if run.name == row["run"])
        return cls(escape(row["run"]), names, _shown(row, run), _change(row))


def _beside(shown: Table, names: Sequence[str], parts: Sequence[Sequence[_Cells]]) -> None:
    first, *others = parts[0]
    differences = ["difference"] if len(others) == 1 else [f"{other.run} - {first.run}" for other in others]
    for title in (first.run, *(other.run for other in others), *differences):
        shown.add_column(title, justify="right", no_wrap=True)
    for part in parts:
        told = (part[0].names[name] for name in names)
        shown.add_row(*told, *(cells.value for cells in part), *(cells.change for cells in part[1:]))


def _below(shown: Table, names: Sequence[str], parts: Sequence[Sequence[_Cells]]) -> None:
    shown.add_column("run", no_wrap=True)
    for name in ("value", "difference"):
        shown.add_column(name, justify="right", no_wrap=True)
    for i, part in enumerate(parts):
        if i and names:
            shown.add_section()
        for j, cells in enumerate(part):
            told = (cells.names[name] if j == 0 else "" for name in names)
            shown.add_row(*told, cells.run, cells.value, cells.change if j else "")


def _shown(row: Row, run: Compared) -> str:
    """A score, or why there is none."""
    if row["value"] is None and row["score"] in ("alignment", "gain"):
        columns = run.columns.get(Signal(*(row[name] for name in _NAMES)))
        if columns is None:
            return "-"  # not a signal of this run
        return "undefined" if row["score"] == "gain" or not columns["d_sq"].any() else "unresolved"
    return _value(row)


def _value(row: Row) -> str:
    return f"{row['value']:.4f}" if row["score"] == "gain" else estimate(row, "value")


def _change(row: Row) -> str:
    if row["difference"] is None:
        return "-"
    gain = row["score"] == "gain"
    sign = "+" if round(row["difference"], 4 if gain else 2) > 0 else ""
    if not gain:
        return f"{sign}{estimate(row, 'difference')}"
    value, low, high = (row[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{sign}{value:.4f}" + ("" if low is None else f" [{low:.4f}, {high:.4f}]")


def what_changed(table: pl.DataFrame, runs: Sequence[Compared]) -> list[str]:
    """Lines for each run after the first: what differs clearly, and what does not."""
    return [escape(line) for other in runs[1:] for line in _lines(table, runs[0], other)]


def _lines(table: pl.DataFrame, first: Compared, other: Compared) -> list[str]:
    of = {name: table.filter(pl.col("run") == run.name).to_dicts() for name, run in (("a", first), ("b", other))}
    before, after = (next(row for row in of[side] if row["score"] == "success") for side in "ab")
    common = len(set(first.ids) & set(other.ids))
    said = [
        f"{other.name} against {first.name}: success of the student: {number(before['value'])} -> "
        f"{number(after['value'])} ({_change(after)}, {_over(common, first, other)})"
    ]
    said += _best(of["a"], of["b"])
    clear = (_clear(of["b"], score, first, other) for score in ("forecast", "alignment", "gain"))
    return ["; ".join(said), *(f"  {line}" for line in clear if line is not None)]


def _over(common: int, first: Compared, other: Compared) -> str:
    if not common:
        return "not paired: no common questions"
    of = "" if common == len(first.ids) == len(other.ids) else f" of {len(first.ids):,} and {len(other.ids):,}"
    return f"{common:,} common question{'' if common == 1 else 's'}{of}"


def _best(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """The signal of the highest forecast, or else gain, in both."""
    for score in ("forecast", "gain"):
        found = [
            max(known, key=lambda row: float(row["value"]))
            for rows in (before, after)
            if (known := [row for row in rows if row["score"] == score and row["value"] is not None])
        ]
        if len(found) == 2:
            names = [_name(row) for row in found]
            same = all(row["difference"] in (0.0, None) for row in after if row["score"] == score)
            if names[0] == names[1] or same:
                return [f"highest {score} stays that of {names[0]}"]
            told = [f"{name} ({_value(row)})" for name, row in zip(names, found, strict=True)]
            return [f"highest {score} {' -> '.join(told)}"]
    return []


def _clear(rows: Sequence[Row], score: str, first: Compared, other: Compared) -> str | None:
    """Which signals a score has clearly changed for: where the interval leaves 0 out."""
    known = [row for row in rows if row["score"] == score and row["difference_low"] is not None]
    if not known:
        return None
    known.sort(key=lambda row: -abs(row["difference"]))
    up = [_name(row) for row in known if row["difference_low"] > 0]
    down = [_name(row) for row in known if row["difference_high"] < 0]
    signals = f"{len(known)} signal{'' if len(known) == 1 else 's'}"
    if not up and not down:
        return f"{score} clearly changed for none of {signals}"
    told = [f"{way} for {_some(names)}" for way, names in (("up", up), ("down", down)) if names]
    levels = [run.forecast_level if score == "forecast" else run.level for run in (first, other)]
    by_chance = (1 - max(levels)) * len(known)
    return f"{score} clearly {' and '.join(told)}, of {signals} (by chance alone, about {by_chance:.1g})"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _name(row: Row) -> str:
    return f"{row['teacher']}/{row['context']} by {row['loss']}"
