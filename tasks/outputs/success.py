"""Teachers' own success, updates and forecasts over the questions of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from schemas.question_tables import ANSWERED, BY_QUESTION, QUESTIONS
from schemas.signals import POLICY, Signal, answering_sources, losses, ranked_signals, updating_signals
from tasks.run.reads import StoredReads
from tasks.run.session import RunSession
from tasks.stages.aggregate.forecast import Evidence, forecast_rows
from tasks.stages.aggregate.success import Answered, handover_rates, handover_rows, own_rates, success_rows
from tasks.stages.aggregate.tables import frame
from tasks.stages.aggregate.updates import crossed
from tasks.statistics.csr import Floats


def answered(session: RunSession, ids: Sequence[str]) -> list[Answered]:
    """Every question with its teachers' answers."""
    sources, reads = answering_sources(session.config), StoredReads(session.store, session.keys)
    return [
        Answered(
            float(np.mean(reads.artefact("rollouts", i)["correct"])),
            {source: reads.artefact("answers", i, source.every_loss) for source in sources},
            {source: reads.artefact("handover", i, source.every_loss) for source in sources},
        )
        for i in ids
    ]


def success_tables(
    session: RunSession, questions: Sequence[Answered]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `schemas.tables.SUCCESS` and of `HANDOVERS`; none where no teacher answers."""
    config = session.config
    if not answering_sources(config):
        return [], []
    return success_rows(questions, config.scores, config.seed), handover_rows(questions, config.scores, config.seed)


def answered_table(
    signals: Iterable[Signal],
    ids: Sequence[str],
    questions: Sequence[Answered],
    updates: Mapping[Signal, Floats],
) -> pl.DataFrame:
    """One row per signal and question: its id and the columns of `schemas.question_tables.ANSWERED`.

    Args:
        ids: of the questions.
        updates: as `read_updates` gives them.
    """
    own, handover = own_rates(questions), handover_rates(questions)
    unknown = np.full(len(ids), np.nan)
    rows = []
    for signal in signals:
        products = crossed(updates[POLICY], updates[signal]) if signal in updates and POLICY in updates else unknown
        of_source = own.get(signal.source, unknown), handover.get(signal.source, unknown)
        for question, *values in zip(ids, *of_source, products, strict=True):
            rows.append({"question_id": question, **signal._asdict(), **dict(zip(ANSWERED, values, strict=True))})
    return frame(rows, {name: QUESTIONS[name] for name in (*BY_QUESTION, *ANSWERED)})


def read_updates(session: RunSession, ids: Sequence[str]) -> dict[Signal, Floats]:
    """Updates of every signal by question, [Q, U], the policy gradient's among them; none where none were computed."""
    reads = StoredReads(session.store, session.keys)
    return {
        signal: np.stack([reads.artefact("updates", i, signal)["update"] for i in ids]).astype(np.float64)
        for signal in updating_signals(session.config)
    }


def forecasts(
    session: RunSession,
    questions: Sequence[Answered],
    updates: Mapping[Signal, Floats],
    scored: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Rows of `schemas.tables.FORECASTS`, the best first.

    Args:
        scored: rows of a table that has `gain` and `d_sq` of every signal.
    """
    config, of_run = session.config, losses(session.config)
    own, handover = own_rates(questions), handover_rates(questions)
    base = np.array([q.student for q in questions])
    known = {Signal(row["teacher"], row["context"], row["loss"]): row for row in scored}
    by_signal = {signal: of_run[signal.loss] for signal in ranked_signals(config)}
    gains = {signal: row["gain"] for signal, row in known.items() if row["gain"] is not None}
    gain = {signal: float(gains.get(signal, np.nan)) for signal in by_signal}
    silent = {signal for signal, row in known.items() if row["d_sq"] == 0}
    evidence = Evidence(base, own, handover, gain, silent, updates.get(POLICY), updates)
    return forecast_rows(evidence, by_signal, config.scores, config.seed)
