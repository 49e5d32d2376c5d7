"""Files of a run's folder: written with their digests, read and verified."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import polars as pl

from schemas.tables import RUN_TABLES
from schemas.text import reason
from tasks.outputs.report.facts import LeftOut
from tasks.run.session import RunSession
from tasks.run.shells import TaskSummary
from tasks.store.references import pinned
from tasks.store.store import Store, StoreError

PACKAGES = ("opdscope", "prefect", "torch", "transformers", "zarr", "polars", "numpy", "scipy")


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A table as a parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=True)
    return buffer.getvalue()


def read_run(session: RunSession) -> dict[str, Any] | None:
    """A run's `run.json`, if it exists and its files match it."""
    run = read_json(session.store, session.config.name, "run.json")
    if run is None:
        return None
    for name, expected in run.get("files", {}).items():
        content = session.store.get_bytes("runs", session.config.name, name)
        if content is None or hashlib.sha256(content).hexdigest() != expected:
            return None
    return run


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this project, run from a checkout that is not installed
        return "not installed"


def write_files(session: RunSession, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Write outputs of a run one by one as they are made; returns the SHA-256 of each."""
    return digested(session.store, session.config.name, files)


def digested(store: Store, run: str, files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Write outputs under the name of a run; returns the SHA-256 of each."""
    digests = {}
    for name, content in files:
        store.put_bytes(content, "runs", run, name)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def read_patiently(session: RunSession, name: str) -> pl.DataFrame:
    """A table of a session's run; waits while the store is unreachable.

    Raises:
        StoreError: it is missing, or another run is replacing it.
    """
    return session.with_retries(lambda: read_table(session.store, session.config.name, name))


def read_table(store: Store, run: str, name: str) -> pl.DataFrame:
    """A table of a run.

    Raises:
        StoreError: it is missing, or another run is replacing it.
    """
    data = store.get_bytes("runs", run, f"{name}.parquet")
    if data is None:
        raise StoreError(f"the outputs of run {run!r} are missing from {store.url!r}")
    expected = _digests(store, run).get(f"{name}.parquet")
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise StoreError(
            f"{name}.parquet of run {run!r} in {store.url!r} does not match its digest there: another "
            "run is writing it, or it is damaged; run again under another name (--name)"
        )
    return parsed(data, f"{name}.parquet of run {run!r} in {store.url!r}")


def read_declared(store: Store, run: str, name: str) -> pl.DataFrame:
    """A table of a diagnosis with all columns that this version declares.

    Raises:
        StoreError: it is missing, damaged, of another version, or another run is replacing it.
    """
    table = read_table(store, run, name)
    for column, declared in RUN_TABLES[name].items():
        if column not in table.columns or table.schema[column] != getattr(pl, declared.dtype):
            raise StoreError(
                f"{name}.parquet of run {run!r} in {store.url!r} has no column {column!r} of type {declared.dtype}: "
                "it is of another version, or damaged; run it again: nothing is decoded"
            )
    return table


def parsed(data: bytes, what: str) -> pl.DataFrame:
    """The table in a parquet file.

    Args:
        what: the file, for the message.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(f"{what} is damaged ({reason(error)}); remove it, or restore it") from error


def _digests(store: Store, run: str) -> dict[str, str]:
    """SHA-256 of a run's files, from the JSON files that it writes last; none from those that are damaged."""
    out: dict[str, str] = {}
    for name in ("run.json", "rank.json", "validation.json"):
        files = (read_json(store, run, name) or {}).get("files")
        out |= files if isinstance(files, dict) else {}
    return out


def read_json(store: Store, run: str, name: str) -> dict[str, Any] | None:
    """A JSON object among a run's outputs; None if it is missing or damaged."""
    try:
        content = json.loads(store.get_bytes("runs", run, name) or b"null")
    except (ValueError, RecursionError):  # damaged: treated as missing
        return None
    return content if isinstance(content, dict) else None


def write_run(
    session: RunSession,
    ids: Sequence[str],
    left_out: LeftOut,
    failed: Sequence[str],
    outputs: Mapping[str, Any],
    stages: Mapping[str, TaskSummary],
) -> dict[str, Any]:
    """Write `run.json`, the last file of a run; the caller holds the lease of its outputs.

    Args:
        outputs: as returned by `aggregate_task`: SHA-256 of each file, and why scores are unresolved.
    """
    run = {
        "name": session.config.name,
        "configuration": session.config.model_dump(mode="json"),
        "references": session.with_retries(lambda: pinned(session.store, session.config.name, "diagnose")),
        "aggregate": session.keys.aggregate(ids),
        **outputs,
        "questions": list(ids),
        "left_out": dict(left_out),
        "failed": list(failed),
        "artefacts": {i: [list(pair) for pair in session.keys.artefacts(i)] for i in ids},
        "versions": {package: _version(package) for package in PACKAGES},
        "stages": {stage: summary.figures for stage, summary in stages.items()},
    }
    data = json.dumps(run, indent=1).encode()
    session.with_retries(lambda: session.store.put_bytes(data, "runs", session.config.name, "run.json"))
    names = [*outputs["files"], "run.json"]
    session.with_retries(lambda: session.store.remove_temporary(("runs", session.config.name), names))
    return run
