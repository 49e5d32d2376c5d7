"""A diagnosis of recorded outcomes, stage by stage.

    python -m tests.benchmarks.recorded [--questions 100]

Each question has 8 rollouts with 10 nodes of 6 branches; three recorded teachers and two losses make 6 signals. All is
random, and everything but Prefect is as in any run: keys, leases, artefacts, tables and report.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flows.command.configuration import checked
from schemas.pipeline import diagnosis_stages
from tasks.outputs.diagnosis import make_outputs
from tasks.run.session import start_session
from tasks.run.shells import run_stage

ROLLOUTS, NODES, BRANCHES, TEACHERS = 8, 10, 6, 3


def recorded(folder: Path, questions: int) -> dict[str, Any]:
    """Tables of outcomes and of teachers, and a configuration that reads them."""
    rng = np.random.default_rng(0)
    nodes = questions * ROLLOUTS * NODES
    row = np.arange(nodes * BRANCHES)

    def probabilities() -> Any:
        return rng.dirichlet(np.full(BRANCHES, 0.5), nodes).reshape(-1) * 0.98

    rollout = row // (NODES * BRANCHES) % ROLLOUTS
    places = {
        "question_id": [f"q{i}" for i in row // (ROLLOUTS * NODES * BRANCHES)],
        "rollout_id": rollout,
        "position": row // BRANCHES % NODES * 20,
        "token_id": row % BRANCHES,
    }
    outcomes = {
        "student_prob": probabilities(),
        "successes": rng.binomial(32, rng.beta(1, 1, len(row))),
        "draws": 32,
        "correct": rollout % 2 == 0,
    }
    pl.DataFrame({**places, **outcomes}).write_parquet(folder / "outcomes.parquet")
    teachers = [f"t{t}" for t in range(TEACHERS)]
    for name in teachers:
        pl.DataFrame({**places, "teacher_prob": probabilities()}).write_parquet(folder / f"{name}.parquet")
    return {
        "store": str(folder / "store"),
        "tree": {"kind": "recorded", "path": str(folder / "outcomes.parquet")},
        "teachers": [{"kind": "recorded", "name": t, "path": str(folder / f"{t}.parquet")} for t in teachers],
        "losses": ["reverse_kl", "forward_kl"],
    }


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--questions", type=int, default=100)
    questions = options.parse_args().questions
    with tempfile.TemporaryDirectory() as place:
        config = checked(recorded(Path(place), questions))
        began = last = time.perf_counter()

        def told(what: str) -> None:
            nonlocal last
            now = time.perf_counter()
            print(f"{what:14} {now - last:6.1f} s")
            last = now

        session = start_session(config)
        told("reading tables")
        for stage in diagnosis_stages():
            run_stage(session, stage, session.keys.questions)
            told(stage)
        for _ in make_outputs(session, session.keys.questions, {}).files:
            pass
        told("tables, report")
        print(f"{'all':14} {last - began:6.1f} s, {questions * ROLLOUTS * NODES:,} nodes")


if __name__ == "__main__":
    main()
