"""The tables and the report of a diagnosis."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from schemas.config import RunConfig, WindowsTree
from schemas.question_tables import BY_QUESTION
from schemas.signals import Signal, signals
from schemas.tables import FORECASTS, HANDOVERS, LOSSES, PREDICTORS, SELECTION, SUCCESS, VOCABULARY
from tasks.operations.progress import publish
from tasks.outputs.files import parquet_bytes
from tasks.outputs.generated import generated_texts
from tasks.outputs.report.facts import Facts, LeftOut, Told
from tasks.outputs.report.page import render
from tasks.outputs.report.rollouts import Rollouts
from tasks.outputs.success import answered, answered_table, forecasts, read_updates, success_tables
from tasks.run.session import RunSession
from tasks.stages.aggregate.forecast import advice
from tasks.stages.aggregate.groups import all_bins
from tasks.stages.aggregate.pooling import Sums
from tasks.stages.aggregate.predictors import AtNodes, predictor_rows
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.selection import CHOICES, selection_rows, sum_choices, sum_predicted
from tasks.stages.aggregate.tables import Texts, differences_table, frame, questions_table, summary_table, tokens_table
from tasks.stages.aggregate.truncation import Kept
from tasks.stages.aggregate.vocabulary import Pushes
from tasks.stages.no_signal import why_unresolved, without_signal
from tasks.statistics.prior import Prior
from tasks.statistics.streams import stream_seed
from tasks.store.lazy import Loaded, OneQuestion


def load_scores(session: RunSession, ids: Sequence[str]) -> list[QuestionScores]:
    """The artefacts of the questions, read lazily; those of one question are in memory at a time."""
    cache, names = OneQuestion(session.store), signals(session.config)

    def read(stage: str, question: str, signal: Signal | None = None) -> Loaded:
        return cache.loaded(question, stage, session.keys.key(stage, question, signal))

    return [QuestionScores.of(i, names, read, session.config.tree.sampled) for i in ids]


def make_tables(
    config: RunConfig,
    scored: Sequence[QuestionScores],
    texts: Texts,
    prior: Prior,
    seen: Callable[[QuestionScores, pl.DataFrame], None] = lambda q, tokens: None,
) -> tuple[dict[str, pl.DataFrame], list[Facts]]:
    """The tables of a run's signals, by name, and the page's facts about each question; one question at a time.

    Args:
        seen: is given every question once, with its rows of the table of tokens.
    """
    names, scores = list(scored[0].distillation), config.scores
    temperature, limit = config.sampling.temperature, config.tree.tail_limit
    sums = Sums(all_bins(scores.groupings, scored, names))
    tokens, chosen, facts = [], [], []
    nodes: dict[Signal, list[AtNodes]] = {signal: [] for signal in names}
    truncated = dict.fromkeys(names, Kept())
    pushes = Pushes(names)
    for q in scored:
        sums.add(q)
        pushes.add(q)
        tokens.append(tokens_table(q, names, texts, scores.level))
        seen(q, tokens[-1])
        seed = stream_seed("selection", config.seed, q.question_id)
        chosen.append(sum_choices(q, names, prior, scores, temperature, limit, seed))
        for signal, at_nodes in nodes.items():
            at_nodes.append(AtNodes.of(q, signal))
            truncated[signal] = truncated[signal].plus(q.distillation[signal])
        facts.append(Facts.of(q))
        publish("aggregate", 1)
    choices = np.stack(chosen)
    for i, signal in enumerate(names):
        choices[:, i, CHOICES.index("predicted_positive")] = sum_predicted(nodes[signal])
    pool = sums.pool(scores, config.seed)
    tables = {
        "tokens": pl.concat(tokens),
        "summary": summary_table(pool),
        "differences": differences_table(pool),
        "predictors": frame(predictor_rows(nodes, scores, config.seed), PREDICTORS),
        "losses": frame([{**signal._asdict(), **kept.shares()} for signal, kept in truncated.items()], LOSSES),
        "questions": questions_table(sums.by_question(), [f.question_id for f in facts], [f.endings for f in facts]),
        "selection": frame(selection_rows(choices, names, scores, config.seed), SELECTION),
        "vocabulary": frame(pushes.rows(texts(pushes.token_ids), scores.level), VOCABULARY),
    }
    return tables, facts


class Outputs(NamedTuple):
    """Outputs of a diagnosis.

    Attributes:
        why_unresolved: why the alignment of some signal over all rollouts is unknown; None where all are known.
        without_signal: lines on the questions that tell no direction.
        generated_texts: lines on what was written for contexts.
        advice: what to train with, in a sentence.
        files: name and content of each file, made on demand: first the tables, then the report, so that no table is
            lost where a chart fails.
    """

    why_unresolved: str | None
    without_signal: list[str]
    generated_texts: list[str]
    advice: str
    files: Iterator[tuple[str, bytes]]


def make_outputs(session: RunSession, ids: Sequence[str], left_out: LeftOut) -> Outputs:
    """Tables and report."""
    scored = load_scores(session, ids)
    prior = Prior.of(session.store.need("prior", session.keys.key("prior", ids[0])).arrays)
    spell, temperature = session.provider, session.config.sampling.temperature
    shown = Rollouts(signals(session.config), len(scored), spell.texts, spell.decode, temperature)
    tables, facts = make_tables(session.config, scored, spell.texts, prior, shown.add)
    questions = answered(session, ids)
    success, handover = success_tables(session, questions)
    every = tables["summary"].filter(pl.col("group") == "all")
    updates = read_updates(session, ids)
    forecast = forecasts(session, questions, updates, every.to_dicts())
    by_question = answered_table(signals(session.config), ids, questions, updates)
    tables["questions"] = tables["questions"].join(by_question, on=BY_QUESTION, how="left", maintain_order="left")
    tables |= {"success": frame(success, SUCCESS), "handover": frame(handover, HANDOVERS)}
    tables["forecasts"] = frame(forecast, FORECASTS)
    why = _why_unresolved(session.config, tables["summary"], facts)
    written = generated_texts(session, ids)
    no_signal = without_signal({i: f.endings for i, f in zip(ids, facts, strict=True)}, session.config)

    advised = advice(forecast, bool(updates))

    def files() -> Iterator[tuple[str, bytes]]:
        for name, table in tables.items():
            yield f"{name}.parquet", parquet_bytes(table)
        notes = [*no_signal, *written]
        told = Told(why, notes, advised)
        page = render(session.config, facts, tables, shown, left_out, told)
        yield "report.html", page.encode()

    return Outputs(why, no_signal, written, advised, files())


def _why_unresolved(config: RunConfig, summary: pl.DataFrame, facts: Sequence[Facts]) -> str | None:
    every = summary.filter(pl.col("group") == "all")
    if every.filter((pl.col("d_sq") > 0) & pl.col("alignment").is_null()).is_empty() and not every.is_empty():
        return None
    if not any(f.nodes for f in facts):
        fewer = ", or lower tree.min_visits" if isinstance(config.tree, WindowsTree) else ""
        return f"no position was drawn from: raise tree.draws{fewer}"
    carrying = 0 if every.is_empty() else int(every["carrying"][0])
    return why_unresolved([f.endings for f in facts], carrying, config)
