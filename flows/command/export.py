"""`opdscope export`: weights of a run's tokens, a rule for fresh ones, and what a trainer's hook needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flows.command.guarded import CONSOLE, OK, guarded
from flows.command.places import check_place, place
from flows.command.terminal import precise, show_table

_NAMES = {
    "all": "equal weights",
    "chosen": "equal weights, as chosen",
    "full": "rule: full",
    "sampled": "rule: sampled",
    "student": "rule: student",
    "replay": "draws, else rule: full",
}
_SHORT, _LONG = 0.9, 1.1
"""Lengths of the signal, over that with equal weights, between which nothing is said of it."""


def export_file(
    name: str, to: str, *, store: str, signal: str | None, choose: str, mask: bool, output: Path | None
) -> int:
    """`opdscope export`."""

    def action() -> int:
        url, run = place(name, store)
        check_place(url)
        from tasks.outputs.export.make import export_run

        told = export_run(url, run, to, signal=signal, choose=choose, mask=mask, output=output)
        for line in what_it_is(told):
            CONSOLE.print(escape(line), soft_wrap=True)
        show_table(CONSOLE, gain_table(told["gains"], told["level"]))
        for line in what_it_is_worth(told):
            CONSOLE.print(escape(line), soft_wrap=True)
        CONSOLE.print(escape(f"{told['folder']}: {', '.join([*told['files'], 'export.json'])}"), soft_wrap=True)
        return OK

    return guarded(action)


def what_it_is(told: dict[str, Any]) -> list[str]:
    """Lines on the signal and on where the weights come from.

    Args:
        told: as `tasks.outputs.export.make.export_run` returns it.
    """
    of = told["signal"]
    counts = {source: told[source] for source in ("drawn", "predicted", "none")}
    lines = [
        f"{of['teacher']}/{of['context']} by {of['loss']}: {counts['drawn']:,} of {told['tokens']:,} tokens weighted "
        f"by their draws, {counts['predicted']:,} by the rule"
        + (f", {counts['none']:,} without a signal" if counts["none"] else "")
    ]
    forecast = told["forecast"]
    if forecast is not None and forecast["verdict"] != "helps":
        remark = f": {forecast['remark']}" if forecast["remark"] else ""
        lines.append(f"the forecast of training on it is {forecast['verdict']}{remark}")
    if told["choose"] != "run":
        lines.append(f"{100 * told['changed']:.1f} % of the tokens follow another teacher or context")
    return lines


def gain_table(rows: Sequence[dict[str, Any]], level: float) -> Table:
    """Gains of each weighting.

    Args:
        rows: as `told["gains"]`.
    """
    title = f"gain of a unit step, on questions that the weights were not fitted to, {100 * level:g} % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("weights", no_wrap=True)
    for name in ("tokens kept", "gain", "more than equal weights"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        added = "" if row["tokens"] == "all" else precise(row, "additional_gain")
        table.add_row(_NAMES[row["tokens"]], f"{100 * row['share']:.1f} %", precise(row, "gain"), added)
    return table


def _estimate(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[n] for n in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _length(of: dict[str, Any], length: float) -> str:
    """What weights do to the length of the signal, where that is much."""
    if length == 0:
        return "; all weights are 0"
    if length < _SHORT:
        told = f"; it leaves {length:.2g} of the signal's length, as the rest has no weight or meets the limit"
        return f"{told}: raise the learning rate" if of["better"] else told
    return f"; it makes the signal {length:.2g} times as long: lower the learning rate" if length > _LONG else ""


def what_it_is_worth(told: dict[str, Any]) -> list[str]:
    """Lines that say whether the weights, the rules and the choice are better than equal weights."""
    lines = [f"these rollouts: {told['weighted']['verdict']}{_length(told['weighted'], told['length'])}"]
    lines += [
        f"fresh rollouts, rule {name}: {of['verdict']}{_length(of, of['length'])}" for name, of in told["rule"].items()
    ]
    return lines + ([f"choice by {told['choose']}: {told['chosen']['verdict']}"] if told["choose"] != "run" else [])
