"""Tables and sentences of a terminal: what a run, a ranking or a calibration has found."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from schemas.tables import KEPT
from tasks.stages.aggregate.tables import headline

ROLLOUT_LABELS = {"all": "all rollouts", "correct": "correct", "incorrect": "incorrect"}


_WIDEST = 10_000


def show_table(console: Console, table: Table) -> None:
    """Print a table with whole numbers: a narrow terminal folds the names, other outputs are as wide as it takes."""
    for column in table.columns:
        widest = max(cell_len(Text.from_markup(str(cell)).plain) for cell in (column.header, *column.cells))
        if column.justify == "right":
            column.min_width = widest
        else:
            column.overflow, column.no_wrap = "fold", False
    widest = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    before = console.width
    try:
        if not console.is_terminal:
            console.width = max(console.width, widest)
        console.print(table)
    finally:
        console.width = before


def score_table(summary: pl.DataFrame, level: float) -> Table:
    """Alignment with its interval by teacher, context and loss, and the mean cosine."""
    title = f"alignment with the ideal gradient, {100 * level:g} % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("teacher", "context", "loss"):
        table.add_column(name, no_wrap=True)
    for name in ROLLOUT_LABELS.values():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mean cos.", justify="right", no_wrap=True)
    previous: tuple[str, str] | None = None
    for row in headline(summary):
        source: tuple[str, str] = (row["teacher"], row["context"])
        if previous not in (None, source):
            table.add_section()
        table.add_row(
            *(escape(name) if source != previous else "" for name in source),
            escape(row["loss"]),
            *(score(row[name]) for name in ROLLOUT_LABELS),
            number(row["all"]["mean_cosine"]),
        )
        previous = source
    return table


def rank_table(ranks: pl.DataFrame, level: float) -> Table:
    """Signals by gain, with the probability that each is the best."""
    title = f"gain a rollout of a unit step along each signal, {100 * level:g} % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", justify="right", no_wrap=True)
    for name in ("teacher", "context", "loss"):
        table.add_column(name, no_wrap=True)
    updates = ["update gain"] if ranks["update_gain"].is_not_null().any() else []
    for name in ("gain", "deficit to the first", "best", *updates):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ranks.iter_rows(named=True):
        known = row["gain"] is not None
        table.add_row(
            str(row["rank"] or ""),
            *(escape(row[name]) for name in ("teacher", "context", "loss")),
            precise(row, "gain") if known else "undefined",
            precise(row, "gain_deficit") if known and row["rank"] > 1 else "",
            f"{100 * row['p_best']:.0f} %" if row["p_best"] is not None else "",
            *(estimate(row, "update_gain") for _ in updates),
        )
    return table


def success_table(rows: Sequence[dict[str, Any]], level: float) -> Table:
    """Teachers' own success with each context, and what the student can go on from.

    Args:
        rows: as `schemas.tables.SUCCESS` declares them.
    """
    title = f"teachers' own success, and the student's from just before their answers, {100 * level:g} % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("teacher", "context"):
        table.add_column(name, no_wrap=True)
    for name in ("own success", "gap to the student", "handover", "copied"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        names = (escape(row[name]) for name in ("teacher", "context"))
        table.add_row(*names, *(estimate(row, name) for name in ("own", "gap", "handover", "copied")))
    return table


def figure_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Figures with their required ranges.

    Args:
        rows: as `tasks.calibration.figure.Figure.row` gives them.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("figure")
    for name in ("value", "of", "must be"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        error = "" if row["error"] is None else f" ± {row['error']:.3f}"
        value = "-" if row["value"] is None else f"{row['value']:.3f}{error}"
        table.add_row(row["figure"], value, f"{row['of']:,}", row["must be"], row["verdict"] or "")
    return table


def planner_table(planners: pl.DataFrame) -> Table:
    """Every planner at the same number of decoded tokens."""
    table = Table(title="planners at the same number of decoded tokens", title_justify="left", box=SIMPLE_HEAD)
    for name in planners.columns:
        table.add_column(name, justify="left" if name == "planner" else "right")
    for row in planners.iter_rows():
        table.add_row(*(value if isinstance(value, str) else "-" if value is None else f"{value:.3f}" for value in row))
    return table


def ranking_shares(ranking: pl.DataFrame) -> Table:
    """How often the best teacher ranks first, by rollouts."""
    table = Table(title="the best of five teachers comes first", title_justify="left", box=SIMPLE_HEAD)
    for name in ("by", "rollouts a question", "draws a question", "in", "rank correlation"):
        table.add_column(name, justify="left" if name == "by" else "right")
    for row in ranking.iter_rows(named=True):
        share, agreement = f"{100 * row['right']:.0f} %", f"{row['agreement']:.2f}"
        table.add_row(row["planner"], str(row["rollouts"]), f"{row['draws']:,}", share, agreement)
    return table


def precise(row: dict[str, Any], name: str) -> str:
    """A gain with its interval, as far as that is known, with four decimals."""
    low, value, high = (row[n] for n in (f"{name}_low", name, f"{name}_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def what_would_settle(ranks: pl.DataFrame, result: dict[str, Any]) -> str:
    """One sentence: whether the first two are distinguished, or how much more data is needed."""
    if result["why_unresolved"] is not None:
        return escape(f"not settled: {result['why_unresolved']}")
    if result["settled"] is None:
        return "there are no two signals to compare"
    names = [f"{row['teacher']}/{row['context']} by {row['loss']}" for row in ranks.head(2).iter_rows(named=True)]
    pair = escape(f"{names[0]} and {names[1]}")
    if result["settled"]:
        return f"settled: {pair} are distinguished"
    if result["additional_questions"] is None:
        return f"not settled: {pair} do not differ at all"
    n = ranks["rollouts"][0] / ranks["questions"][0]
    more = f"about {result['additional_questions']:,} more questions with {n:g} rollouts each"
    unsettled = f"not settled: distinguishing {pair} would take {more}"
    if result["additional_rollouts"] is None:
        return f"{unsettled}; more rollouts of the same questions would not be enough"
    return f"{unsettled}, or about {result['additional_rollouts']:,} more rollouts of each question here"


def what_is_not_ranked(sources: Sequence[Sequence[str]], losses: Sequence[str]) -> list[str]:
    """A line where contexts show the very rollout that is scored, and one where losses need draws."""
    names = ", ".join(f"{teacher}/{context}" for teacher, context in sources)
    shows = f"{'shows' if len(sources) == 1 else 'show'} the rollout that is scored, which only trees can judge"
    needs = f"{'needs' if len(losses) == 1 else 'need'} several draws from one place, which only trees have"
    told = [(names, shows), (", ".join(losses), needs)]
    return [f"not ranked: {escape(what)} {why} (opdscope run)" for what, why in told if what]


def what_is_copied(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each teacher whose own success the student cannot go on from, or one where that is not known.

    Args:
        rows: as `schemas.tables.SUCCESS` declares them.
    """
    if rows and all(row["handover"] is None for row in rows):
        return ["handover is not known: the verifier does not tell where answers begin"]
    copying = [row for row in rows if row["copied_low"] is not None and row["copied_low"] > 0]
    return [
        f"copied: {escape(row['teacher'])}/{escape(row['context'])} is right {estimate(row, 'copied')} more often than "
        "the student that goes on from just before its answers"
        for row in copying
    ]


def what_losses_keep(kept: pl.DataFrame) -> list[str]:
    """A line for each truncated loss: what it looks at, over all teachers with their contexts.

    Args:
        kept: rows with the columns `schemas.tables.KEPT`, by loss.
    """
    lines = []
    for loss in kept["loss"].unique(maintain_order=True):
        rows = kept.filter(pl.col("loss") == loss)
        shares = {name: rows[name].drop_nulls().to_list() for name in KEPT if name != "positions"}
        if min(shares["covered"], default=1.0) < 1 - 1e-9:
            covered = f"cover {_percent(shares['covered'])} of the positions"
            lines.append(f"{escape(loss)}: with tokenizers of their own, teachers {covered}")
        if min(shares["student_kept"], default=1.0) < 1 - 1e-9:
            lines.append(
                f"{escape(loss)} looks at {_percent(shares['student_kept'])} of the student's probability and "
                f"{_percent(shares['teacher_kept'])} of the teachers', and has no gradient at "
                f"{_percent(shares['without_gradient'])} of the positions"
            )
    return lines


def _percent(shares: Sequence[float]) -> str:
    if not shares:
        return "an unknown part"
    return f"{'-'.join(dict.fromkeys(f'{100 * share:.3g}' for share in (min(shares), max(shares))))} %"


def estimate(row: dict[str, Any], name: str) -> str:
    """A value with its interval, as far as they are known."""
    if row[name] is None or row[f"{name}_low"] is None:
        return number(row[name])
    return f"{number(row[name])} [{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]"


def score(row: dict[str, Any] | None) -> str:
    """An alignment with its interval."""
    if row is None or row["alignment"] is None:
        return "no nodes" if row is None else "undefined" if row["d_sq"] == 0 else "unresolved"
    return f"{number(row['alignment'])} [{number(row['alignment_low'])}, {number(row['alignment_high'])}]"


def number(value: float | None) -> str:
    """Two decimals without the leading zero, as usual in the field."""
    if value is None:
        return "-"
    text = f"{round(value, 2) + 0.0:.2f}"  # no -0
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
