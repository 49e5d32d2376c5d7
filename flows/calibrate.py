"""The calibration: every planner and the ranking against the exact oracle, family by family."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, Literal

import polars as pl
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows.orchestration.artifacts import markdown_artifact, output_link, plain, progress_artifacts, table_artifact
from schemas.config import CalibrateConfig
from schemas.pipeline import versions as stage_versions
from tasks.calibration.comparisons import MAIN_DRAWS, WINDOWS_DRAWS
from tasks.calibration.figure import Figure
from tasks.calibration.judge import figures, judged_as
from tasks.calibration.measure import Setting, measure
from tasks.calibration.report import calibration_page
from tasks.calibration.suite import Family
from tasks.operations.progress import publish
from tasks.outputs.files import parquet_bytes
from tasks.store.keys import Recipe
from tasks.store.references import pin
from tasks.store.store import Store

VERSION = 2
WINDOWS_UP_TO = 1024
"""Longest chains that `windows` is evaluated on: its continuations are simulated token by token."""
ROLLOUTS_TO_RANK = (2, 4, 8, 16, 32)
"""Rollouts per question at which a ranking is evaluated."""


def families(config: CalibrateConfig) -> list[Family]:
    """Clear and weak signals, easy and hard students; only two of the four at the longer lengths, which cost most."""
    every: list[tuple[Literal["clear", "weak"], Literal["easy", "hard"]]] = [
        ("clear", "easy"),
        ("clear", "hard"),
        ("weak", "easy"),
        ("weak", "hard"),
    ]
    out = [
        Family(length, signal, student)
        for i, length in enumerate(config.lengths)
        for signal, student in (every if i < 2 else every[1:3])
    ]
    if len(config.lengths) > 1:
        out.append(Family(config.lengths[1], "clear", "hard", "dense"))
    return out


def settings_of(family: Family) -> list[Setting]:
    """The settings evaluated on a family; `windows` with fewer, longer draws for as many decoded tokens."""
    adaptive = [Setting(family, "adaptive", n) for n in (256, 512, 1024, MAIN_DRAWS)]
    others = [Setting(family, planner, MAIN_DRAWS) for planner in ("forced", "uniform")]
    windows = [Setting(family, "windows", WINDOWS_DRAWS)] if family.length <= WINDOWS_UP_TO else []
    return [*adaptive, *others, *windows, *(Setting(family, "rank", 0, r) for r in ROLLOUTS_TO_RANK)]


def _measured(settings: Sequence[Setting], seed: int, run: int) -> list[dict[str, Any]]:
    return [row for setting in settings for row in measure(setting, seed, run)]


def rows_key(config: CalibrateConfig, family: Family) -> str:
    """Content key of a family's rows."""
    versions = {**stage_versions(), "calibration": VERSION}
    settings = [repr(s) for s in settings_of(family)]
    content: dict[str, object] = {"settings": settings, "seed": config.seed, "runs": config.runs, "versions": versions}
    return Recipe("calibration", VERSION, content, [], {}).key


@task(name="calibrate family", cache_policy=NO_CACHE, persist_result=False, task_run_name="{family.name}")
def family_task(config: CalibrateConfig, family: Family) -> Any:
    """All runs of one family, in worker processes; `Cached` if its rows are in the store."""
    store = Store(config.store)
    settings, key = settings_of(family), rows_key(config, family)
    data = store.get_bytes("calibration", key, "rows.parquet")
    if data is not None:
        publish("calibrate", config.runs)
        return Completed(name="Cached", message="the rows are in the store", data=pl.read_parquet(io.BytesIO(data)))
    rows: list[dict[str, Any]] = []
    workers = config.workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_single_thread) as pool:
        futures = [pool.submit(_measured, settings, config.seed, run) for run in range(config.runs)]
        for future in as_completed(futures):
            rows += future.result()
            publish("calibrate", 1)
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None))
    frame = frame.sort("planner", "draws", "rollouts", "run", maintain_order=True)
    store.put_bytes(parquet_bytes(frame), "calibration", key, "rows.parquet")
    return frame


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


@flow(name="calibrate", flow_run_name="calibrate", persist_result=False)
def calibrate(config: CalibrateConfig) -> pl.DataFrame:
    """Evaluate the estimators; write `calibration.parquet` and `calibration.html` under the run's folder.

    Returns:
        the rows of all runs, as returned by `tasks.calibration.measure`.
    """
    with progress_artifacts():
        return _calibrate(config)


def _calibrate(config: CalibrateConfig) -> pl.DataFrame:
    chosen = families(config)
    store = Store(config.store)
    pin(store, config.name, "calibrate", (f"calibration/{rows_key(config, family)}" for family in chosen))
    publish("calibrate", 0, len(chosen) * config.runs)
    rows: pl.DataFrame = pl.concat([family_task(config, family, return_state=True).result() for family in chosen])
    store.put_bytes(parquet_bytes(rows), "runs", config.name, "calibration.parquet")
    store.put_bytes(calibration_page(rows, config).encode(), "runs", config.name, "calibration.html")
    judged = figures(rows)
    table = pl.DataFrame([f.row for f in judged], infer_schema_length=None)
    table_artifact(f"{config.name}-figures", table, "the estimators against the exact oracle")
    output_link(store, config.name, "calibration.html")
    markdown_artifact(f"{config.name}-verdict", _verdicts(judged), f"calibration {config.name}")
    return rows


def _verdicts(judged: Sequence[Figure]) -> str:
    """Failed and inconclusive figures, as Markdown."""
    lines: list[str] = []
    for title, found in (
        ("Outside the required range", judged_as("fail", judged)),
        ("Inconclusive with so few runs", judged_as("inconclusive", judged)),
    ):
        if found:
            lines += [f"**{title}**", "", *(f"* {plain(text)}" for text in found), ""]
    return "\n".join(lines) or "Every figure lies in its required range."
