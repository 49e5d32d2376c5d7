"""What a report shows of a run as a whole: its tables by signal, in the page's own form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from schemas.config import RunConfig, WindowsTree
from schemas.signals import Signal
from tasks.outputs.report.facts import Facts
from tasks.outputs.report.rollouts import Rollouts

THRESHOLDS = np.round(np.linspace(0.0, 1.0, 51), 2)
"""Least probabilities that a token helps, at which the page tells what is kept."""

_NAMES = ["teacher", "context", "loss"]
_SUMMARY = [
    "alignment",
    "alignment_low",
    "alignment_high",
    "gain",
    "gain_low",
    "gain_high",
    "mean_cosine",
    "d_sq",
    "nodes",
]
_PAIR = [f"{name}{end}" for name in ("alignment", "gain") for end in ("", "_low", "_high")]


def overview(
    config: RunConfig, facts: Sequence[Facts], tables: Mapping[str, pl.DataFrame], shown: Rollouts
) -> dict[str, Any]:
    """The overview, as JSON: tables become lists of records, in which `signal` is a place in `signals`."""
    summary = tables["summary"]
    signals = [Signal(*map(str, row)) for row in tables["losses"].select(_NAMES).rows()]  # with or without nodes
    place = {signal: i for i, signal in enumerate(signals)}
    pairs = tables["differences"].filter(pl.col("group") == "all")
    outcome = tables["differences"].filter(pl.col("group") == "outcome")
    texts = shown.vocabulary
    return {
        "signals": [list(signal) for signal in signals],
        "level": config.scores.level,
        "forecast_level": config.scores.forecast_level,
        "forecasts": _records(tables["forecasts"], place),
        "success": tables["success"].to_dicts(),
        "summary": _records(summary, place, ["group", "bin", *_SUMMARY]),
        "between_outcomes": _records(outcome, place, _PAIR),
        "pairs": [
            {**record, "other": place[Signal(*other)]}
            for record, other in zip(
                _records(pairs, place, _PAIR), pairs.select([f"other_{name}" for name in _NAMES]).rows(), strict=True
            )
        ],
        "predictors": _records(tables["predictors"], place),
        "selection": _records(tables["selection"], place),
        "losses": _records(tables["losses"], place),
        "vocabulary": _records(tables["vocabulary"], place),
        "thresholds": {"at": THRESHOLDS.tolist(), "kept": kept_at_thresholds(tables["tokens"], signals)},
        "counts": _counts(facts, tables["tokens"]),
        "draws_visit_many": isinstance(config.tree, WindowsTree),
        "questions": [question.listed for question in shown.questions],
        "left_out": shown.left_out,
        "texts": [list(texts), list(texts.values())],
    }


def _records(
    table: pl.DataFrame, place: Mapping[Signal, int], columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Rows of a table with the signal's place for its names."""
    wanted = columns if columns is not None else [name for name in table.columns if name not in _NAMES]
    signals = [place[Signal(*names)] for names in table.select(_NAMES).rows()]
    rows = table.select(wanted).to_dicts()
    return [{"signal": signal, **row} for signal, row in zip(signals, rows, strict=True)]


def kept_at_thresholds(tokens: pl.DataFrame, signals: Sequence[Signal]) -> list[list[list[float | None]]]:
    """What is kept where tokens that help less probably than a threshold are left out.

    Returns:
        by signal the shares of tokens and of |d|^2, each at every threshold; None where there are none. Nodes are
        weighted by the positions that they represent; those without a direction, or whose sign was not computed, are
        not kept.
    """
    out: list[list[list[float | None]]] = []
    for signal in signals:
        rows = tokens.filter(*(pl.col(name) == value for name, value in signal._asdict().items()))
        p, weight, d_sq = (rows[name].to_numpy().astype(np.float64) for name in ("p_positive", "weight", "d_sq"))
        weight, p = np.nan_to_num(weight), np.nan_to_num(p, nan=-1.0)
        order = np.argsort(p, kind="stable")
        first = np.searchsorted(p[order], THRESHOLDS)  # of those that are kept
        shares = []
        for mass in (weight, weight * np.nan_to_num(d_sq)):
            above = np.concatenate([np.cumsum(mass[order][::-1])[::-1], [0.0]])
            shares.append([float(value) / float(above[0]) if above[0] > 0 else None for value in above[first]])
        out.append(shares)
    return out


def _counts(facts: Sequence[Facts], tokens: pl.DataFrame) -> dict[str, Any]:
    totals = {
        name: sum(getattr(f, name) for f in facts)
        for name in (
            "rollouts",
            "correct",
            "truncated_rollouts",
            "rollout_tokens",
            "nodes",
            "draws",
            "draw_tokens",
            "truncated_draws",
        )
    }
    return {
        "questions": len(facts),
        **totals,
        "tail_missing": max((f.tail_missing for f in facts), default=0.0),
        "sampled": all(f.sampled for f in facts),
        "resolved": int(tokens["resolved"].sum()),
        "scored": int(tokens["lfsr"].is_not_null().sum()),
    }
