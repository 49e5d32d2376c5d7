"""The nightly suite: every run that has something new, compared with the nights before."""

import json
import platform
from datetime import UTC, datetime
from typing import Any

import polars as pl
from prefect import flow, runtime, tags
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows.calibrate import calibrate
from flows.diagnose import QuestionsFailedError, diagnose
from flows.orchestration.artifacts import markdown_artifact, plain, table_artifact
from flows.validate import validate
from schemas.config import Execution, NightlyConfig, RunConfig
from tasks.calibration.judge import figures, judged_as
from tasks.engines.protocol import EngineError
from tasks.inputs.errors import InputError
from tasks.operations.errors import patiently
from tasks.outputs.files import parquet_bytes, parsed, read_run, read_table
from tasks.outputs.history import MOVED, compared, no_history, slower, tonight, unchanged
from tasks.run.session import close_sessions, open_session
from tasks.store.leases import LeaseManager
from tasks.store.store import Store, StoreError

FINISHED, REGRESSION = "opdscope.nightly.finished", "opdscope.nightly.regression"
"""Names of the events that a night emits; the second only if something got worse."""

_PATIENCE = (Execution().retries, Execution().retry_seconds)
"""Retries of a call on the suite's own store, and seconds before the first."""


class NightBusyError(RuntimeError):
    """The same suite is already running in another process."""


@flow(name="nightly", flow_run_name="{config.name}", persist_result=False)
def nightly(config: NightlyConfig) -> dict[str, Any]:
    """Execute every run of a suite that has something new, and mark scores that moved beyond their interval.

    Returns:
        the content of `nightly.json`: what moved, what got slower, what failed.

    Raises:
        NightBusyError: the suite is already running in another process.
    """
    store = Store(config.store)
    with LeaseManager(store, 60.0).acquire(f"nightly-{config.name}") as acquired:
        if not acquired:
            raise NightBusyError(f"suite {config.name!r} is already running in another process")
        with tags(*runtime.flow_run.tags):  # the deployment's tags, for the nested runs
            return _nightly(config, store)


_RUN_ERRORS = (InputError, EngineError, StoreError, OSError)
"""Errors of one run or of its store: the other runs of the night are still executed."""


def _nightly(config: NightlyConfig, store: Store) -> dict[str, Any]:
    night = datetime.now(UTC)
    history = patiently(lambda: read_history(store, config.name), *_PATIENCE)
    new = no_history()
    failed: dict[str, str] = {}
    slow: list[str] = []
    for run in config.runs:
        try:
            rows, error = _rows_of(run, history, night, config.nights)
        except _RUN_ERRORS as raised:
            rows, error = None, f"{type(raised).__name__}: {raised}"
        if error is not None:
            failed[run.name] = error
        if rows is not None:
            found = slower(history, rows, config.nights, config.slower)
            slow += [found] if found is not None else []
            new = pl.concat([new, rows])
            _write(store, config.name, "history.parquet", parquet_bytes(pl.concat([history, new])))
    wrong = _calibrated(config, failed) + [line for run in config.validations for line in _validated(run, failed)]
    return _report(config, store, night, new, failed, slow, wrong)


def _rows_of(
    run: RunConfig, history: pl.DataFrame, night: datetime, nights: int
) -> tuple[pl.DataFrame | None, str | None]:
    """Tonight's rows of a run, computed only if something is new, and its error if there is one."""
    key = finished_key(run)
    rows = unchanged(history, run.name, key, night) if key is not None else None
    if rows is not None:
        return rows, None
    done, error = _diagnosed(run)
    if done is None:
        return None, error
    execution, store = run.execution, Store(run.store)
    summary = patiently(lambda: read_table(store, run.name, "summary"), execution.retries, execution.retry_seconds)
    made = tonight(night, run.name, done["aggregate"], summary, done["stages"], platform.node())
    return compared(history, made, nights), error


def _write(store: Store, suite: str, name: str, content: bytes) -> None:
    patiently(lambda: store.put_bytes(content, "nightly", suite, name), *_PATIENCE)


def finished_key(run: RunConfig) -> str | None:
    """The key of a run's tables if they exist and none of their inputs has changed, else None.

    Raises:
        InputError: the run cannot start; names the field and the value.
        EngineError: its model cannot be inspected.
        StoreError: its store cannot be used.
    """
    try:
        session = open_session(run)
        written = read_run(session)
        if written is None or written["failed"]:
            return None
        session.keys.leave_out(written["left_out"])
        if not set(written["questions"]) <= set(session.keys.questions):
            return None  # the set of questions has changed
        key = session.keys.aggregate(written["questions"])
        return key if key == written["aggregate"] else None
    finally:
        close_sessions()


def _diagnosed(run: RunConfig) -> tuple[dict[str, Any] | None, str | None]:
    """Content of `run.json` if there are outputs, and the error if there is one."""
    state = diagnose(run, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, QuestionsFailedError):
        return result.run, str(result)
    if isinstance(result, BaseException):
        return None, f"{type(result).__name__}: {result}"
    return result, None


def _calibrated(config: NightlyConfig, failed: dict[str, str]) -> list[str]:
    """Figures of the calibration outside their required ranges."""
    if config.calibrate is None:
        return []
    state = calibrate(config.calibrate, return_state=True)
    rows = state.result(raise_on_failure=False)
    if isinstance(rows, BaseException):
        failed[config.calibrate.name] = f"{type(rows).__name__}: {rows}"
        return []
    return judged_as("fail", figures(rows))


def _validated(run: RunConfig, failed: dict[str, str]) -> list[str]:
    """Figures of a validation outside their required ranges."""
    result = validate(run, return_state=True).result(raise_on_failure=False)
    if isinstance(result, BaseException):
        failed[run.name] = f"{type(result).__name__}: {result}"
        return []
    return [
        f"{run.name}: {row['figure']}: {row['value']:.3f} ± {row['error'] or 0:.3f}, must be {row['must be']}"
        for row in result["figures"]
        if row["verdict"] == "fail"
    ]


def read_history(store: Store, suite: str) -> pl.DataFrame:
    """All nights of a suite so far.

    Raises:
        StoreError: its file is damaged, or of another version.
    """
    data = store.get_bytes("nightly", suite, "history.parquet")
    if data is None:
        return no_history()
    what = f"history.parquet of suite {suite!r} in {store.url!r}"
    history = parsed(data, what)
    if history.schema != no_history().schema:
        raise StoreError(f"{what} has other columns than this version writes; move it away to start a new history")
    return history


def _report(
    config: NightlyConfig,
    store: Store,
    night: datetime,
    new: pl.DataFrame,
    failed: dict[str, str],
    slow: list[str],
    wrong: list[str],
) -> dict[str, Any]:
    """Write `nightly.json`, artifacts and events."""
    moved = new.filter(pl.col("change").is_in(MOVED))
    computed = new.filter(pl.col("change") != "unchanged")["run"].unique().sort().to_list()
    result: dict[str, Any] = {
        "name": config.name,
        "night": night.isoformat(),
        "computed": computed,
        "moved": [sentence(row) for row in moved.iter_rows(named=True)],
        "slower": slow,
        "calibration": wrong,
        "failed": failed,
    }
    worse = [sentence(row) for row in moved.filter(pl.col("change") != "up").iter_rows(named=True)]
    result["regressions"] = [*worse, *slow, *wrong, *(f"{run}: {error}" for run, error in failed.items())]
    _write(store, config.name, "nightly.json", json.dumps(result, indent=1).encode())
    table_artifact(f"{config.name}-scores", new.drop("key", "night", "machine"), f"scores of suite {config.name}")
    markdown_artifact(f"{config.name}-night", night_page(result, new), f"suite {config.name}")
    resource = {"prefect.resource.id": f"opdscope.suite.{config.name}", "prefect.resource.name": config.name}
    emit_event(FINISHED, resource, payload=result)
    if result["regressions"]:
        emit_event(REGRESSION, resource, payload={**result, "message": message(result)})
        get_run_logger().warning("%s", message(result))
    return result


def message(result: dict[str, Any]) -> str:
    """A message for mail or chat: one line per regression."""
    return f"opdscope {result['name']}: {len(result['regressions'])} regressions\n" + "\n".join(result["regressions"])


def sentence(row: dict[str, Any]) -> str:
    """How a score moved."""
    name = f"{row['run']}: {row['teacher']}/{row['context']} by {row['loss']}, {row['rollouts']} rollouts"
    if row["alignment"] is None:
        return f"{name}: no longer defined, was {row['reference']:.3f}"
    half = (row["alignment_high"] - row["alignment_low"]) / 2
    return f"{name}: {row['alignment']:.3f} ± {half:.3f}, was {row['reference']:.3f} ± {row['reference_error']:.3f}"


def night_page(result: dict[str, Any], new: pl.DataFrame) -> str:
    """The night as Markdown."""
    counts = dict(new.group_by("change").len().sort("change").iter_rows())
    lines = [f"{len(result['computed'])} of {new['run'].n_unique()} runs had something to compute.", ""]
    lines.append(", ".join(f"{n} {change}" for change, n in counts.items()) or "No scores.")
    for title, found in (
        ("Moved beyond its interval", result["moved"]),
        ("Slower", result["slower"]),
        ("Calibration", result["calibration"]),
        ("Failed", [f"{run}: {error}" for run, error in result["failed"].items()]),
    ):
        if found:
            lines += ["", f"**{title}**", "", *(f"* {plain(line)}" for line in found)]
    return "\n".join(lines)
