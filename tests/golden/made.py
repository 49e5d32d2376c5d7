"""Keys of four configurations, and tables of a small run and of the oracle, made anew and summed up.

python -m tests.golden.made            SHA-256 of every table, to compare two commits on one machine
python -m tests.golden.made --write    replace the summaries that the test compares with
"""

import hashlib
import io
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from flows.command.configuration import checked
from schemas.config import RunConfig
from schemas.pipeline import diagnosis_stages
from tasks.calibration.measure import Setting, measure
from tasks.calibration.suite import Family
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import start_session
from tasks.run.shells import run_stage
from tasks.store.keys import digest
from tests.helpers.small import make_models, make_questions, small_settings

HERE = Path(__file__).parent
PLANNERS = ("adaptive", "forced", "uniform", "windows", "rank")

Summary = dict[str, Any]


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Two nodes of one question, and a teacher of them."""
    place = {"question_id": "q", "rollout_id": 0}
    outcomes = [
        {**place, "position": t, "token_id": j, "student_prob": p, "successes": s, "draws": 8, "correct": True}
        for t, branches in ((0, ((3, 0.5, 2), (4, 0.25, 7))), (2, ((5, 0.75, 4), (6, 0.125, 1))))
        for j, p, s in branches
    ]
    probs = [0.25, 0.5, 0.5, 0.25]
    teacher = [
        {**{name: row[name] for name in ("question_id", "rollout_id", "position", "token_id")}, "teacher_prob": p}
        for row, p in zip(outcomes, probs, strict=True)
    ]
    for name, rows in (("outcomes", outcomes), ("teacher", teacher)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "store": str(folder / "store"),
        "tree": {"kind": "recorded", "path": str(folder / "outcomes.jsonl")},
        "teachers": [{"kind": "recorded", "name": "teacher", "path": str(folder / "teacher.jsonl")}],
        "losses": ["reverse_kl", "jsd"],
    }


def configurations(settings: dict[str, Any], folder: Path) -> dict[str, RunConfig]:
    """One of each planner: a small one, one with everything set, one of windows, one that is recorded."""
    everything = {
        "tree": {"kind": "adaptive", "draws": 96, "round": 48, "node_draws": 24, "head": 3, "tail": 2},
        "losses": ["forward_kl", {"kind": "jsd", "beta": 0.3}, {"kind": "top_k", "k": 3, "rest": "bucket"}],
        "scores": {"groupings": [{"by": "entropy", "bins": 3}], "posterior": 100, "bootstrap": 200, "level": 0.9},
        "ranking": {"segments": 3, "draws": 2},
        "seed": 7,
    }
    windows = {"tree": {"kind": "windows", "draws": 160, "min_visits": 4}}
    return {
        "forced": checked(settings),
        "adaptive": checked({**settings, **everything}),
        "windows": checked({**settings, **windows}),
        "recorded": checked(recorded_settings(folder)),
    }


def keys(config: RunConfig) -> Summary:
    """Every key of a run, by stage, with models, engine and verifier of no particular content or version."""
    content: dict[str, Any] = {
        "model_fingerprint": lambda model: Path(model.path).name,
        "tokenizer_fingerprint": lambda tokenizer: "tokenizer",
        "verifier_fingerprint": lambda settings: settings.kind,
    }
    names = {
        "tasks.engines.identity": ("model_fingerprint", "tokenizer_fingerprint"),
        "tasks.run.preflight": ("verifier_fingerprint",),
    }
    with ExitStack() as patched:
        for module, functions in names.items():
            patched.enter_context(patch.multiple(module, **{name: content[name] for name in functions}))
        patched.enter_context(patch("tasks.engines.choice.engine_fingerprint", lambda kind: kind))
        session = start_session(config)
        found = session.keys.references([*diagnosis_stages(), "values", "ranking", "updates"])
        whole = session.keys.aggregate(session.keys.questions)
    by_stage: dict[str, list[str]] = {}
    for stage, key in found:
        by_stage.setdefault(stage, []).append(key)
    return {"aggregate": whole, **{stage: digest(ours) for stage, ours in sorted(by_stage.items())}}


def run_tables(config: RunConfig) -> dict[str, pl.DataFrame]:
    """All tables of a diagnosis."""
    session = start_session(config)
    try:
        ids = session.keys.questions
        for stage in diagnosis_stages():
            summary = run_stage(session, stage, ids)
            if summary.failed or summary.left_out:
                raise RuntimeError(f"{stage}: {summary.failed or summary.left_out}")
        return {
            name.removesuffix(".parquet"): pl.read_parquet(io.BytesIO(data))
            for name, data in make_outputs(session, ids, {}).files
            if name.endswith(".parquet")
        }
    finally:
        session.provider.close()


def oracle_table(planner: str) -> pl.DataFrame:
    """What one run of the calibration tells of a planner."""
    draws = 0 if planner == "rank" else 256
    rows = measure(Setting(Family(64, "clear", "hard"), planner, draws, 4), 0, 0)
    return pl.DataFrame(rows, infer_schema_length=None)


def summed_up(table: pl.DataFrame) -> Summary:
    """Rows of a table, and of each column its nulls, and sums that tell an order apart, or its digest."""
    columns: dict[str, Any] = {}
    place = np.cos(np.arange(len(table)))
    for name, column in zip(table.columns, table.get_columns(), strict=True):
        if column.dtype.is_numeric() or column.dtype == pl.Boolean:
            values = column.cast(pl.Float64).fill_nan(None)
            known = values.fill_null(0.0).to_numpy()
            columns[name] = [values.null_count(), float(known.sum()), float((known * place).sum())]
        else:
            columns[name] = digest(column.to_list())
    return {"rows": len(table), "columns": columns}


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    """Every table, by name."""
    make_models(folder / "models")
    settings = small_settings(folder / "models", make_questions(folder / "questions.jsonl"), folder / "store")
    out = {f"oracle {planner}": oracle_table(planner) for planner in PLANNERS}
    for name, config in configurations(settings, folder).items():
        out |= {f"{name} {table}": frame for table, frame in run_tables(config).items()}
    return out


def read(name: str) -> dict[str, Any]:
    """The summaries in the repository."""
    return dict(json.loads((HERE / f"{name}.json").read_text()))


def main(write: bool) -> None:
    """Print the SHA-256 of every table; write the summaries where asked to."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = tables(folder)
        for name, table in found.items():
            print(hashlib.sha256(table.write_csv(float_precision=17).encode()).hexdigest()[:16], name)
        if write:
            settings = small_settings(folder / "models", folder / "questions.jsonl", folder / "store")
            made = {
                "keys": {name: keys(config) for name, config in configurations(settings, folder).items()},
                "tables": {name: summed_up(table) for name, table in found.items()},
            }
            for name, content in made.items():
                (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
