"""The index of `opdscope serve` at many runs: seconds of the first look at a store, and of later ones.

python -m tests.benchmarks.index [--runs 1000] [--questions 24]
"""

import argparse
import hashlib
import json
import tempfile
import time
from contextlib import ExitStack

from flows.service.index import Index
from schemas.tables import FORECASTS
from tasks.outputs.files import parquet_bytes
from tasks.outputs.names import name_lease
from tasks.stages.aggregate.tables import frame
from tasks.store.keys import digest
from tasks.store.leases import LeaseManager
from tasks.store.references import pin, pinned
from tasks.store.store import Store

ARTEFACTS = 60
"""Of a question, as in the demo."""


def fill(store: Store, runs: int, questions: int) -> None:
    """Write runs with the files that a diagnosis leaves, as large as real ones."""
    names = {"place": 1, "teacher": "large", "context": "none", "loss": "kl", "verdict": "helps", "remark": ""}
    table = parquet_bytes(frame([{**dict.fromkeys(FORECASTS, 0.5), **names}] * 21, FORECASTS))
    for i in range(runs):
        run = f"run-{i:04d}"
        artefacts = {f"q{q}": [["trees", digest([i, q, a])] for a in range(ARTEFACTS)] for q in range(questions)}
        pin(store, run, "diagnose", [f"{stage}/{key}" for pairs in artefacts.values() for stage, key in pairs])
        store.put_note(table, "runs", run, "forecasts.parquet")
        for name in ("tokens", "summary", "differences", "predictors", "selection", "losses", "success", "handover"):
            store.put_note(b"", "runs", run, f"{name}.parquet")
        store.put_note(b"", "runs", run, "report.html")
        told = {
            "configuration": {"student": {"path": "student"}},
            "references": pinned(store, run, "diagnose"),
            "questions": list(artefacts),
            "artefacts": artefacts,
            "files": {"forecasts.parquet": hashlib.sha256(table).hexdigest()},
        }
        store.put_note(json.dumps(told, indent=1).encode(), "runs", run, "run.json")


def main(runs: int, questions: int) -> None:
    """Fill a store in a temporary folder, ten of whose runs go on; print seconds and bytes."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = Store(folder)
        fill(store, runs, questions)
        leases = LeaseManager(store, 60.0)
        for i in range(0, runs, max(1, runs // 10)):
            store.remove("runs", f"run-{i:04d}", "run.json")
            stack.enter_context(leases.acquire(name_lease("diagnose", f"run-{i:04d}")))
        index = Index(store)
        for what in ("first look", "second look", "third look"):
            started = time.perf_counter()
            rows = index.rows()
            print(f"{what:12} {time.perf_counter() - started:7.2f} s")
        states = {state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}}
        print(f"{runs} runs ({states}), {len(index.snapshot().body):,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=24)
    given = parser.parse_args()
    main(given.runs, given.questions)
