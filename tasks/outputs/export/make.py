"""An export: weights of a run's tokens, a rule for fresh ones, their figures, and the files of a trainer."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from schemas.signals import Signal
from schemas.text import listed, quoted
from schemas.token_weights import EXPORT_SCHEMA, SOURCES
from tasks.inputs.errors import InputError
from tasks.outputs.export.folder import check_folder, write_folder
from tasks.outputs.export.glue import TARGETS, python_files
from tasks.outputs.export.source import FinishedRun, chosen_signal, display, forecast_of, name_of, open_run, rivals
from tasks.stages.aggregate.questions import QuestionScores
from tasks.stages.aggregate.token_choice import CHOICES
from tasks.stages.aggregate.token_evidence import Setting
from tasks.stages.aggregate.token_rule_fit import FEATURES, MOST_WEIGHT, Rule, total
from tasks.stages.aggregate.token_table import Estimated, estimated, rule_lengths, table_length
from tasks.stages.aggregate.token_weights import Gathered, Judged, Judging, Wanted, folds
from tasks.store.store import Store


class Made(NamedTuple):
    """What an export consists of, before it is written.

    Attributes:
        weights: `schemas.token_weights.WEIGHTS`.
        scale: what <g, d> / |d|^2 was multiplied by in the table, as in the full rule.
        spread: of single tokens around the full rule, in units of weight, by signal.
        lengths: of the signal with each rule's weights on the run's tokens, over that with equal weights.
        temperature: at which the run sampled.
    """

    signal: Signal
    weights: pl.DataFrame
    scale: float
    spread: dict[str, float]
    rules: dict[str, Rule]
    lengths: dict[str, float]
    judged: Judged
    prompts: dict[str, list[int]]
    temperature: float


def export_run(
    store: str,
    name: str,
    to: str,
    *,
    signal: str | None = None,
    choose: str = "run",
    mask: bool = False,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Write the weights of a finished run's tokens, rules for fresh ones, and what a trainer's hook needs.

    Args:
        store: URL of the store; name: of the run there.
        to: one of `TARGETS`.
        signal: TEACHER/CONTEXT/LOSS; by default the first by forecast, else the one with the largest gain.
        choose: "run": one signal for all tokens; "question" or "token": another teacher and context by the same loss
            where one is clearly better.
        mask: weights of 0 and 1.
        output: folder; by default RUN-TO in the working folder.

    Returns:
        the content of `export.json`, with the path of the folder as `folder`.

    Raises:
        InputError: names the argument, the value and what would be right.
        StoreError: an artefact or table is missing or damaged.
    """
    for option, value, known in (("--to", to, TARGETS), ("--choose", choose, CHOICES)):
        if value not in known:
            raise InputError(option, f"{quoted(value)} is not one of {listed(known)}")
    folder = Path(f"{name}-{to}" if output is None else output).expanduser()
    opened = Store(store)
    if not opened.exists():
        raise InputError("--store", f"{quoted(store)} does not exist; give the store of a run")
    run = open_run(opened, name)
    check_folder(folder)
    made = make(run, chosen_signal(run, signal), choose, mask)
    rule = rule_json(run, made, mask)
    index = index_json(run, made, to, choose, mask, rule)
    return {**write_folder(folder, index, _files(made, to, name, rule, mask)), "folder": str(folder)}


def make(run: FinishedRun, signal: Signal, choose: str, mask: bool) -> Made:
    """Weights, rules and figures of a run.

    Raises:
        InputError: the signal's teacher tells none of what a rule looks at.
    """
    config = run.config
    wanted = Wanted([signal] if choose == "run" else rivals(run, signal), choose, mask)
    setting = Setting(run.prior(), config.sampling.temperature, config.scores.posterior)
    scored = run.scores(wanted.signals)
    gathered, judging = Gathered(wanted), Judging(wanted, setting, config.scores, config.seed)
    for q in scored:
        gathered.add(q)
    if not (total(gathered.full).length_sq[0] > 0):
        raise InputError(
            "--signal",
            f"{quoted(display(signal))} has no token of which {listed(FEATURES)} are known: "
            "its teacher does not tell its distributions; give another signal",
        )
    for held_out, others in folds(len(scored)):
        fitted = gathered.fit(others, config.seed)
        for i in held_out:
            judging.add(scored[i], gathered.full[i], fitted)
    judged = judging.judged()
    everything = gathered.fit(range(len(scored)), config.seed)
    parts: list[Estimated] = []
    prompts: dict[str, list[int]] = {}
    for q, moments in zip(scored, gathered.full, strict=True):
        parts.append(
            estimated(q, moments, everything, wanted, setting, judged.spread, config.scores.level, config.seed)
        )
        prompts[q.question_id] = _prompt(q)
    spread = {name_of(s): raw * everything.scale for s, raw in zip(wanted.signals, judged.spread, strict=True)}
    table = pl.concat([part.rows for part in parts])
    return Made(
        signal,
        table,
        everything.scale,
        spread,
        everything.rules,
        rule_lengths(parts),
        judged,
        prompts,
        setting.temperature,
    )


def _prompt(q: QuestionScores) -> list[int]:
    return [int(t) for t in q.rollouts["prompt"]]


def rule_json(run: FinishedRun, made: Made, mask: bool) -> dict[str, Any]:
    """The rules as plain data, with what they are worth."""
    gains = {row["tokens"]: row for row in made.judged.gains}
    rules = {}
    for name, rule in made.rules.items():
        figures = {key: value for key, value in gains[name].items() if key != "tokens"} | made.judged.correlations[name]
        length = {"length": made.lengths[name]}
        rules[name] = {**rule.as_json(), **length, **figures, **verdict(gains[name], "the rule")}
    plain: dict[str, Any] = _plain(
        {
            "kind": "opdscope rule",
            "schema": EXPORT_SCHEMA,
            **_about(run, made.signal),
            "mask": mask,
            "most_weight": MOST_WEIGHT,
            "weight": "1 where the estimate is above 0, else 0" if mask else "min(most_weight, max(0, estimate))",
            "estimate": "constant + sum of coefficient * feature",
            "features": {name: feature._asdict() for name, feature in FEATURES.items()},
            "equal_weights": {k: v for k, v in gains["all"].items() if k.startswith("gain")},
            "rules": rules,
        }
    )
    return plain


def verdict(row: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Whether weights are better than equal ones on other questions, and that in words.

    Args:
        row: one of `Judged.gains`.
        what: the weights.
    """
    low, high = row["additional_gain_low"], row["additional_gain_high"]
    if math.isnan(row["gain"]):
        said = "keeps no token that is known to help: nothing is gained from this signal"
    elif math.isnan(low):
        said = "is not judged: too few questions carry signal"
    elif low > 0 and row["gain_low"] > 0:
        return {"better": True, "verdict": f"{what} is better than equal weights on other questions"}
    elif low > 0:
        said = "avoids harm, but is not shown to help: give another signal"
    else:
        said = f"is {'worse than' if high < 0 else 'not shown to be better than'} equal weights on other questions"
    return {"better": False, "verdict": f"{what} {said}"}


def index_json(
    run: FinishedRun, made: Made, to: str, choose: str, mask: bool, rule: Mapping[str, Any]
) -> dict[str, Any]:
    """What `export.json` says, apart from the files."""
    gains = {row["tokens"]: row for row in made.judged.gains}
    counts = made.weights["source"].value_counts()
    of_source = {row["source"]: row["count"] for row in counts.iter_rows(named=True)}
    plain: dict[str, Any] = _plain(
        {
            "schema": EXPORT_SCHEMA,
            "to": to,
            **_about(run, made.signal),
            "forecast": forecast_of(run, made.signal),
            "choose": choose,
            "changed": _changed(made),
            "mask": mask,
            "scale": made.scale,
            "length": table_length(made.weights),
            "questions": len(run.questions),
            "tokens": made.weights.height,
            **{source: of_source.get(source, 0) for source in SOURCES},
            "weighted": verdict(gains["replay"], "the weighting"),
            "chosen": None if choose == "run" else verdict(gains["chosen"], "the choice"),
            "rule": {name: {k: of[k] for k in ("better", "verdict", "length")} for name, of in rule["rules"].items()},
            "gains": [row for row in made.judged.gains if choose != "run" or row["tokens"] != "chosen"],
            "spread": made.spread,
        }
    )
    return plain


def _changed(made: Made) -> float:
    """Share of the tokens that follow another signal than the run's."""
    same = pl.all_horizontal(pl.col(name) == value for name, value in made.signal._asdict().items())
    return float(made.weights.select((~same).mean()).item())


def _about(run: FinishedRun, signal: Signal) -> dict[str, Any]:
    student = run.config.student
    return {
        "run": run.name,
        "aggregate": run.run.get("aggregate"),
        "student": None if student is None else {"path": student.path, "revision": student.revision},
        "signal": signal._asdict(),
        "temperature": run.config.sampling.temperature,
        "level": run.config.scores.level,
    }


def _plain(value: Any) -> Any:
    """Plain data in which what is not defined is None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _files(made: Made, to: str, name: str, rule: Mapping[str, Any], mask: bool) -> Iterator[tuple[str, bytes]]:
    if to != "jsonl":
        yield "weights.parquet", _parquet(made.weights)
    if to != "parquet":
        yield "weights.jsonl", "".join(json.dumps(row) + "\n" for row in rollout_rows(made)).encode()
    yield "rule.json", json.dumps(rule, indent=1, allow_nan=False).encode() + b"\n"
    yield from python_files(to, name, made.signal, made.rules, mask, made.temperature).items()


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", metadata={"opdscope_schema": str(EXPORT_SCHEMA)})
    return buffer.getvalue()


def rollout_rows(made: Made) -> Iterator[dict[str, Any]]:
    """One row for each rollout: prompt and completion ids, weights with intervals, and what each token follows."""
    by = ["question_id", "rollout_id"]
    lists = ("token_id", "weight", "estimate_low", "estimate_high", "source", "teacher", "context")
    named = {"token_id": "token_ids", "weight": "weights"}
    for (question, rollout), part in made.weights.group_by(by, maintain_order=True):
        yield {
            "schema": EXPORT_SCHEMA,
            "question_id": question,
            "rollout_id": rollout,
            "correct": part["correct"][0],
            "prompt_ids": made.prompts[str(question)],
            "loss": part["loss"][0],
            **{named.get(name, name): part[name].to_list() for name in lists},
        }
