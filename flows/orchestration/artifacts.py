"""Artifacts of a run in Prefect's UI: progress of each stage, tables, a summary, links to the index and the report."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID

import polars as pl
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.command.terminal import ROLLOUT_LABELS, number, score
from tasks.operations.progress import Amount, Step, listen
from tasks.run.shells import TaskSummary
from tasks.stages.aggregate.tables import headline
from tasks.store.store import Store

REPORTS_URL = "OPDSCOPE_REPORTS_URL"
"""Environment variable: URL at which `opdscope serve` shows the outputs of runs."""
_PAUSE = 2.0
"""Seconds between two updates of one artifact."""


@dataclass
class _Bar:
    artifact: UUID
    amount: Amount
    updated: float = field(default_factory=time.monotonic)


@contextmanager
def progress_artifacts() -> Iterator[None]:
    """While the block runs, every stage that reports progress has an artifact with its rate and time left."""
    bars: dict[str, _Bar] = {}

    def show(step: Step) -> None:
        if step.total is not None:
            made = create_progress_artifact(0.0, key=_key(f"progress-{step.stage}"), description=step.stage)
            bars[step.stage] = _Bar(cast(UUID, made), Amount(step.total))
        elif step.stage in bars:
            bar = bars[step.stage]
            bar.amount.add(step)
            if bar.amount.complete or time.monotonic() - bar.updated >= _PAUSE:
                _update(step.stage, bar)

    stop = listen(show)
    try:
        yield
        for stage, bar in bars.items():
            _update(stage, bar, finished=True)
    finally:
        stop()


def _update(stage: str, bar: _Bar, finished: bool = False) -> None:
    bar.updated, bar.amount.over = time.monotonic(), bar.amount.over or finished
    share = 1.0 if bar.amount.complete else bar.amount.done / max(1, bar.amount.total)
    update_progress_artifact(bar.artifact, round(100 * share, 1), description=f"{stage}: {bar.amount}")


def scores_artifact(run: str, summary: pl.DataFrame) -> None:
    """Alignments with their intervals, as the command line shows them."""
    rows = [
        {
            **{name: row[name] for name in ("teacher", "context", "loss")},
            **{label: score(row[name]) for name, label in ROLLOUT_LABELS.items()},
            "mean cos.": number(row["all"]["mean_cosine"]),
        }
        for row in headline(summary)
    ]
    create_table_artifact(rows, key=_key(f"{run}-scores"), description=f"alignment with the ideal gradient, run {run}")


def table_artifact(name: str, table: pl.DataFrame, description: str) -> None:
    """A table with rounded numbers."""
    rounded = table.with_columns(pl.col(pl.Float64).round(4))
    create_table_artifact(rounded.to_dicts(), key=_key(name), description=description)


def markdown_artifact(name: str, text: str, description: str) -> None:
    """Text for the UI."""
    create_markdown_artifact(text, key=_key(name), description=description)


def run_link(run: str) -> None:
    """A link to the run's row in the index of runs, where that is served; the row follows the run while it goes on."""
    base = os.environ.get(REPORTS_URL)
    if base:
        link = f"{base.rstrip('/')}/?run={quote(run, safe='')}"
        create_link_artifact(
            link, link_text=f"{run} among all runs", key=_key(f"{run}-run"), description="the run in the index, live"
        )


def output_link(store: Store, run: str, file: str) -> None:
    """A link to an output if it is served; else its path."""
    place = store.path("runs", run, file)
    base = os.environ.get(REPORTS_URL)
    if base:
        link = f"{base.rstrip('/')}/{quote(run)}/{quote(file)}"
        create_link_artifact(link, link_text=file, key=_key(f"{run}-{file}"), description=place)
    else:
        text = f"`{place}`\n\n`opdscope serve` shows it in a browser."
        markdown_artifact(f"{run}-{file}", text, file)


def summary_artifact(
    run: str,
    stages: Mapping[str, TaskSummary],
    left_out: Mapping[str, str],
    failed: Mapping[str, str],
    told: Mapping[str, Any],
) -> None:
    """What to train with, figures of each stage, why scores are unresolved if some are, and the missing questions.

    Args:
        told: the content of `run.json` or `rank.json`.
    """
    lines = [f"**{plain(told['advice'])}**", ""]
    lines += [] if told["why_unresolved"] is None else [f"**Unresolved:** {plain(told['why_unresolved'])}", ""]
    lines += ["| stage | made | from the store | decoded tokens | seconds |", "|---|---:|---:|---:|---:|"]
    for stage, outcome in stages.items():
        figures = (outcome.made, outcome.cached, outcome.decoded_tokens)
        lines.append(f"| {stage} | {' | '.join(f'{n:,}' for n in figures)} | {outcome.seconds:.1f} |")
    for title, questions in (("left out", {k: v for k, v in left_out.items() if k not in failed}), ("failed", failed)):
        if questions:
            lines += ["", f"**{len(questions)} {title}**", ""]
            lines += [f"* **{plain(q)}**: {plain(reason)}" for q, reason in _first(questions)]
            if len(questions) > _MOST:
                lines.append(f"* and {len(questions) - _MOST} more")
    markdown_artifact(f"{run}-summary", "\n".join(lines), f"what run {run} did")


_MOST = 50


def _first(questions: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    return list(questions.items())[:_MOST]


def plain(text: str) -> str:
    """Text escaped for Markdown; questions and errors may contain anything."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))


def _key(name: str) -> str:
    """An artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
