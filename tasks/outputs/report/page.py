"""The report: one HTML file that needs no network and runs no script. Model output is escaped by the template."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from schemas.config import RunConfig, is_local_folder
from schemas.text import BETWEEN
from tasks.outputs.figures.charts import LOSSES_SHOWN, SOURCES_SHOWN, Names, along, forest
from tasks.outputs.figures.style import ChartError, drawn
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.tables import Texts, headline
from tasks.stages.no_signal import Endings
from tasks.statistics.csr import row_sums

LeftOut = Mapping[str, str]

ROLLOUTS_SHOWN = 4
TOKENS_SHOWN = 300
FOREST = "teacher, context and loss"
GROUPS = {
    "position": "place in the rollout",
    "entropy": "student's entropy",
    "divergence": "KL(student || teacher)",
    "difficulty": "question's success rate",
}


PREDICTOR_NAMES = {
    "kl": "KL(student || teacher)",
    "js": "Jensen-Shannon divergence",
    "entropy": "student's entropy",
    "position": "place in the rollout",
    "student_prob": "student's probability of the token",
    "teacher_prob": "teacher's probability of the token",
    "teacher_lead": "log-ratio of teacher and student",
    "signal_norm": "|d|, strength of the signal",
}


class Cell(NamedTuple):
    """One token under one teacher: its colour, its tooltip, and whether its sign is known."""

    text: str
    color: str
    note: str
    resolved: bool


class Facts(NamedTuple):
    """Counts of one question for the page; `tail_missing` is the largest tail of a node that was not drawn."""

    rollouts: int
    correct: int
    truncated_rollouts: int
    nodes: int
    draws: int
    successes: int
    truncated_draws: int
    tail_missing: float

    @property
    def endings(self) -> Endings:
        """How its rollouts and draws ended."""
        return Endings(self.rollouts, self.correct, self.truncated_rollouts, self.draws, self.successes)

    @classmethod
    def of(cls, q: QuestionScores) -> "Facts":
        """From a question's arrays."""
        drawn = row_sums(np.asarray(q.tree["branch_tail"], dtype=np.float64), q.tree["branch_offsets"])
        return cls(
            rollouts=len(q.rollouts["correct"]),
            correct=int(q.rollouts["correct"].sum()),
            truncated_rollouts=int(q.rollouts["truncated"].sum()),
            nodes=len(np.unique(q.tree["node"])),
            draws=int(q.tree["draws"].sum()),
            successes=int(q.tree["successes"].sum()),
            truncated_draws=int(q.tree["truncations"].sum()),
            tail_missing=float(np.max(np.where(drawn > 0, 0.0, q.tree["tail_prob"]), initial=0.0)),
        )


class Example(NamedTuple):
    """A rollout, token by token: a row of cells for each teacher."""

    title: str
    correct: bool
    rows: list[tuple[str, list[Cell]]]
    omitted: int


class Told(NamedTuple):
    """What the page says in words.

    Attributes:
        why_unresolved: why the alignment of some signal is unknown; None where all are known.
        notes: lines on questions that tell no direction, and on generated texts.
        advice: what to train with.
    """

    why_unresolved: str | None
    notes: Sequence[str]
    advice: str


def render(
    config: RunConfig,
    scored: Sequence[QuestionScores],
    facts: Sequence[Facts],
    tables: Mapping[str, pl.DataFrame],
    texts: Texts,
    left_out: LeftOut,
    told: Told,
) -> str:
    """The page.

    Args:
        scored: all questions; rollout arrays are read only for the examples.
        facts: of the same questions.
        tables: the run's tables, by name.
        texts: gives the text of token ids.
        left_out: questions that were left out, with the reason.
        told: what it says in words.
    """
    tokens, summary = tables["tokens"], tables["summary"]
    environment = Environment(
        loader=PackageLoader("tasks.outputs.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(score=_score, estimate=_estimate)
    loss = str(summary["loss"][0]) if summary.height else ""
    charts, not_drawn = draw_charts(summary, loss)
    rollouts = sum(f.rollouts for f in facts)
    return environment.get_template("report.html.jinja").render(
        name=config.name,
        level=f"{100 * config.scores.level:g} %",
        student=_student(config),
        questions=len(facts),
        rollouts=rollouts,
        solved=f"{100 * sum(f.correct for f in facts) / rollouts:.0f} %",
        nodes=sum(f.nodes for f in facts),
        draws=sum(f.draws for f in facts),
        truncated_draws=sum(f.truncated_draws for f in facts),
        truncated_rollouts=sum(f.truncated_rollouts for f in facts),
        tail_missing=max(f.tail_missing for f in facts),
        left_out=left_out,
        told=told,
        forecasts=tables["forecasts"].to_dicts(),
        forecast_level=f"{100 * config.scores.forecast_level:g} %",
        table=headline(summary),
        gaps=_gaps(tables["differences"]),
        success=tables["success"].to_dicts(),
        between=BETWEEN,
        selection=_by_source(tables["selection"], loss, "tokens"),
        predictors=_by_source(tables["predictors"], loss, "predictor"),
        predictor_names=PREDICTOR_NAMES,
        resolved=int(tokens.filter(pl.col("resolved")).height),
        scored_tokens=tokens.drop_nulls("lfsr").height,
        sampled=all(q.sampled for q in scored),
        forest=charts.pop(FOREST, None),
        charts=charts,
        not_drawn=not_drawn,
        loss=loss,
        examples=_examples(scored, tokens, texts, loss),
    )


def draw_charts(summary: pl.DataFrame, loss: str) -> tuple[dict[str, Markup], list[str]]:
    """The charts by title, and notes on charts that are missing or incomplete; tables contain what they would show."""
    shown: dict[str, Markup] = {}
    notes, names = [], Names.of(summary)
    for group, title in {"": FOREST, **GROUPS}.items():
        try:
            chart = along(summary, group, loss, title, names) if group else forest(summary, names)
            svg = None if chart is None else drawn(chart, "svg").decode()
        except ChartError as error:
            notes.append(f"The chart of alignment by {title} could not be drawn: {error}.")
            continue
        if svg is not None:
            shown[title] = Markup(svg)  # noqa: S704 - drawn here; names are escaped by Vega
    sources, losses = summary.select("teacher", "context").n_unique(), summary["loss"].n_unique()
    if sources > SOURCES_SHOWN or losses > LOSSES_SHOWN:
        notes.append(
            f"Charts show the first {min(sources, SOURCES_SHOWN)} of {sources} teachers with contexts and the first "
            f"{min(losses, LOSSES_SHOWN)} of {losses} losses; summary.parquet contains all."
        )
    return shown, notes


def _student(config: RunConfig) -> str:
    if config.student is None:
        return "recorded outcomes"
    local = config.student.is_gguf or is_local_folder(config.student.path)
    return Path(config.student.path).name if local else config.student.path


def _score(row: dict[str, Any] | None, name: str = "alignment") -> str:
    """A score with its interval, or why there is none."""
    if row is None:
        return "no nodes"
    if row[name] is None:
        return "undefined" if row["d_sq"] == 0 else "unresolved"
    return _estimate(row, name)


def _estimate(row: dict[str, Any] | None, name: str) -> str:
    """An estimate with its interval, as far as they are known."""
    if row is None or row[name] is None:
        return "–"
    if row[f"{name}_low"] is None:
        return f"{row[name]:.2f}"
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _gaps(differences: pl.DataFrame) -> dict[tuple[str, ...], dict[str, Any]]:
    """Correct minus incorrect rollouts, by signal."""
    rows = differences.filter(pl.col("group") == "outcome").iter_rows(named=True)
    return {(row["teacher"], row["context"], row["loss"]): row for row in rows}


def _by_source(table: pl.DataFrame, loss: str, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of one loss by teacher and context, then by the value of a column; sources without numbers are left out."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table.filter(pl.col("loss") == loss).iter_rows(named=True):
        out.setdefault(f"{row['teacher']}{BETWEEN}{row['context']}", {})[row[name]] = row
    value = "gain" if name == "tokens" else "correlation"
    return {source: rows for source, rows in out.items() if any(row[value] is not None for row in rows.values())}


def _examples(scored: Sequence[QuestionScores], tokens: pl.DataFrame, texts: Texts, loss: str) -> list[Example]:
    """Some rollouts, correct and incorrect in turn, those with the most nodes; one per question."""
    nodes = tokens.filter(pl.col("loss") == loss)
    counts = (
        nodes.unique(["question_id", "rollout_id", "position"])
        .group_by("question_id", "rollout_id", "correct")
        .len()
        .sort("len", "question_id", "rollout_id", descending=[True, False, False])
    )
    chosen: list[tuple[str, int]] = []
    for turn in range(ROLLOUTS_SHOWN):
        for row in counts.filter(pl.col("correct") == bool(turn % 2)).iter_rows(named=True):
            if row["question_id"] not in [question for question, _ in chosen]:
                chosen.append((row["question_id"], row["rollout_id"]))
                break
    by_id = {q.question_id: q for q in scored}
    return [_example(by_id[question], rollout, nodes, texts) for question, rollout in chosen]


def _example(q: QuestionScores, rollout: int, nodes: pl.DataFrame, texts: Texts) -> Example:
    offsets = q.rollouts["offsets"]
    ids = [int(t) for t in np.asarray(q.rollouts["tokens"])[int(offsets[rollout]) : int(offsets[rollout + 1])]]
    here = nodes.filter((pl.col("question_id") == q.question_id) & (pl.col("rollout_id") == rollout))
    rows, text = [], texts(ids[:TOKENS_SHOWN])
    for (teacher, context), part in here.group_by(["teacher", "context"], maintain_order=True):
        at = {row["position"]: row for row in part.iter_rows(named=True)}
        cells = [_cell(text[token], at.get(i)) for i, token in enumerate(ids[:TOKENS_SHOWN])]
        rows.append((f"{teacher}{BETWEEN}{context}", cells))
    correct = bool(np.asarray(q.rollouts["correct"])[rollout])
    title = f"question {q.question_id}, rollout {rollout}"
    return Example(title, correct, rows, max(0, len(ids) - TOKENS_SHOWN))


def _cell(text: str, row: dict[str, Any] | None) -> Cell:
    if row is None:
        return Cell(text, "transparent", "", False)
    note = f"success from here {row['value']:.2f}\n"
    if row["student_prob"] is not None and row["teacher_prob"] is not None:
        note += f"student's probability {row['student_prob']:.3f}, teacher's {row['teacher_prob']:.3f}\n"
    note += f"draws {row['draws']} over {row['branches']} branches"
    if row["lfsr"] is not None:
        note = f"local false sign rate {row['lfsr']:.2f}\n{note}"
    if row["cosine"] is None:
        return Cell(text, "#e2e8f0", f"cosine undefined\n{note}", False)
    interval = f"[{row['cosine_low']:.2f}, {row['cosine_high']:.2f}]"
    return Cell(text, _color(row["cosine"]), f"cosine {row['cosine']:.2f} {interval}\n{note}", bool(row["resolved"]))


def _color(cosine: float) -> str:
    """Orange (-1) over white to blue (+1)."""
    end = (66, 133, 196) if cosine > 0 else (221, 120, 60)
    share = min(1.0, abs(cosine))
    return "rgb({:.0f},{:.0f},{:.0f})".format(*(255 + (c - 255) * share for c in end))
