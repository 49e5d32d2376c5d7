"""What a run of very many, very long questions costs beside the models: measured in parts, and added up.

    python -m tests.benchmarks.scale [--questions 10000] [--rollouts 200] [--tokens 32768]

1. Many: a whole diagnosis of so many questions from recorded outcomes, every task and artefact as in any run but the
   rounds of draws, and no model; on a local disk. Gives Prefect's rows, artefacts, metadata, and seconds of
   orchestration and storage.
2. Requests: the same for few questions on an S3-compatible server; what one more question adds, and one round of draws.
3. Long: questions of so many rollouts and tokens, their arrays made at random where a model would make them, through
   the store, stage 5 and, in a process of its own, stage 6. Gives bytes, seconds and peak memory.

The sum is printed as a share of what the models take, at tokens a second that are given.
"""

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from flows.command.environment import prepare
from tests.benchmarks.timing import add_time

if TYPE_CHECKING:
    from schemas.config import RunConfig
    from tasks.run.keys import RunKeys

SIGNALS = 2
NODES = 64


def main(arguments: argparse.Namespace) -> None:
    """Measure the three parts, and print tables."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        q, r, t = arguments.questions, arguments.rollouts, arguments.tokens
        print(f"{q:,} questions x {r} rollouts x {t:,} tokens, {SIGNALS} signals\n", flush=True)
        many = measure_many(Path(folder), q)
        show(f"many: {q:,} questions from recorded outcomes, local disk", many)
        requests = measure_requests(Path(folder), *arguments.on_s3)
        show("requests that one more question makes", requests)
        long = measure_long(Path(folder), r, t)
        show(f"long: one question of {r} rollouts of {t:,} tokens", long)
        show("all together", projection(arguments, many, requests, long))


def show(title: str, rows: dict[str, float]) -> None:
    """Print a table."""
    print(title)
    for name, value in rows.items():
        text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"
        print(f"  {name:58} {text:>16}")
    print(flush=True)


def outcomes(path: Path, questions: int) -> dict[str, Any]:
    """Recorded outcomes of two rollouts a question, and a configuration that reads them."""
    rng = np.random.default_rng(0)
    rollouts, places, tokens = 2, 2, 3
    n = questions * rollouts * places
    index = np.arange(n * tokens)
    probs = rng.dirichlet(np.ones(tokens), n).reshape(-1) * 0.999
    keys = {
        "question_id": [f"q{i}" for i in index // (rollouts * places * tokens)],
        "rollout_id": index // (places * tokens) % rollouts,
        "position": index // tokens % places,
        "token_id": index % tokens,
    }
    pl.DataFrame(
        {
            **keys,
            "student_prob": probs,
            "successes": rng.binomial(8, rng.beta(1, 1, len(index))),
            "draws": 8,
            "correct": index // (places * tokens) % rollouts == 0,
        }
    ).write_parquet(path / "outcomes.parquet")
    teacher = rng.dirichlet(np.ones(tokens), n).reshape(-1) * 0.999
    pl.DataFrame({**keys, "teacher_prob": teacher}).write_parquet(path / "teacher.parquet")
    return {
        "tree": {"kind": "recorded", "path": str(path / "outcomes.parquet")},
        "teachers": [{"kind": "recorded", "name": "teacher", "path": str(path / "teacher.parquet")}],
        "losses": ["reverse_kl", "forward_kl"][:SIGNALS],
        "scores": {"posterior": 100, "bootstrap": 200},
    }


def measure_many(folder: Path, questions: int) -> dict[str, float]:
    """Run many questions, and once more with everything there."""
    import tasks.outputs.diagnosis
    import tasks.run.session
    import tasks.run.shells
    from flows.command.configuration import checked
    from flows.diagnose import diagnose
    from tasks.store.store import OBJECT, Store

    of_outputs = [(vars(tasks.outputs.diagnosis), name) for name in ("make_tables", "parquet_bytes", "render")]
    numerics = add_time([(vars(tasks.run.shells), "compute"), *of_outputs])
    reading = add_time([(vars(tasks.run.session), "read_recorded")])
    storage = add_time([(Store, name) for name in ("put_bytes", "put_note", "commit", "has", "load", "remove")])
    config = checked({**outcomes(folder, questions), "store": str(folder / "many")})
    began = time.monotonic()
    diagnose(config)
    wall = time.monotonic() - began
    first = {"numerics": numerics[0], "reading": reading[0], "storage": storage[0]}
    artefacts = list((folder / "many").rglob(OBJECT))
    rows = prefect_rows()
    began = time.monotonic()
    diagnose(config)
    again = time.monotonic() - began
    run = folder / "many" / "runs" / "run"
    return {
        "seconds": wall,
        "  of which stages' own work": first["numerics"],
        "  of which reading the tables of outcomes": first["reading"],
        "  of which the rest: orchestration, keys, leases, store": wall - first["numerics"] - first["reading"],
        "  store's calls, in both of these": first["storage"],
        "seconds when all of it is there": again,
        "peak memory, GiB": peak(),
        "artefacts": len(artefacts),
        "MB of artefacts": sum(a.stat().st_size for a in artefacts) / 1e6,
        "MB of run.json": (run / "run.json").stat().st_size / 1e6,
        "MB of references": (run / "references-diagnose.json").stat().st_size / 1e6,
        **{f"Prefect's rows: {name}": n for name, n in rows.items()},
    }


def prefect_rows() -> dict[str, int]:
    """Rows in the tables of Prefect's database that grow with runs."""
    names = ("flow_run", "task_run", "task_run_state", "artifact", "log", "events")
    with sqlite3.connect(Path(os.environ["PREFECT_HOME"]) / "prefect.db") as database:
        return {name: database.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in names}  # noqa: S608


def measure_requests(folder: Path, few: int, more: int) -> dict[str, float]:
    """HTTP requests by method that a question adds."""
    from flows.command.configuration import checked
    from flows.diagnose import diagnose
    from tests.helpers.s3 import Gate, s3_server

    counted: list[Counter[str]] = []
    with s3_server() as server:
        gate = Gate(server)
        os.environ |= gate.environment
        for questions in (few, more):
            config = checked({**outcomes(folder, questions), "store": f"s3://bucket/{questions}"})
            for _ in range(2):
                gate.requests.clear()
                diagnose(config)
                counted.append(gate.requests.copy())
        gate.requests.clear()
        one_round(f"s3://bucket/{few}")
        of_round = gate.requests.total()
        gate.shutdown()
    a, again_a, b, again_b = counted
    made = {f"{name} to make it": (b[name] - a[name]) / (more - few) for name in sorted(b)}
    found = {f"{name} to find it there": (again_b[name] - again_a[name]) / (more - few) for name in sorted(again_b)}
    return made | found | {"in a round of draws": of_round}


def one_round(url: str) -> None:
    """A round as a tree decodes it, with nothing to decode."""
    from schemas.config import Execution
    from tasks.stages.protocol import Unit
    from tasks.store.checkpoints import StoreCheckpoints
    from tasks.store.store import Store

    keys: Any = SimpleNamespace(rounds=lambda stage, question: "key")
    nothing = {"success": np.zeros(1, bool), "truncated": np.zeros(1, bool), "length": np.zeros(1, np.int32)}
    kept = StoreCheckpoints(Store(url), keys, cast(Any, SimpleNamespace(execution=Execution())))
    kept.decode_round("trees", "q", 0, [Unit(0, 1), Unit(1, 2)], lambda unit: nothing)


def write_long(url: str, question: int, rollouts: int, tokens: int) -> dict[str, float]:
    """Commit every artefact of one long question; seconds of it, and of stage 5."""
    from schemas.pipeline import diagnosis_stages
    from schemas.signals import signals as signals_of
    from tasks.stages.compute import Computed
    from tasks.store.store import Store
    from tests.helpers.oracle import Given, GivenProvider

    store, rng = Store(url), np.random.default_rng(question)
    T, branches = rollouts * tokens, 8
    B = NODES * branches
    prob = rng.dirichlet(np.ones(branches), NODES)
    tree = {
        **{name: rng.random(T) for name in ("token_prob", "entropy", "leverage")},
        "node": np.sort(rng.choice(T, NODES, replace=False)),
        "round": np.zeros(NODES, dtype=np.int32),
        "inclusion": np.full(NODES, NODES / T),
        "share": np.ones(NODES),
        "p_sq": (prob**2).sum(1),
        "tail_prob": np.zeros(NODES),
        "branch_offsets": np.arange(NODES + 1) * branches,
        "branch_token": np.tile(np.arange(branches, dtype=np.int32), NODES),
        "branch_prob": prob.reshape(-1),
        "branch_tail": np.zeros(B, dtype=bool),
        "draws": np.full(B, 8, dtype=np.int32),
        "successes": rng.binomial(8, 0.5, B).astype(np.int32),
        "truncations": np.zeros(B, dtype=np.int32),
    }
    config, rollouts_of = (
        long_config(),
        {
            "prompt": np.arange(64, dtype=np.int32),
            "tokens": rng.integers(0, 150_000, T).astype(np.int32),
            "offsets": np.arange(rollouts + 1) * tokens,
            "correct": rng.random(rollouts) < 0.5,
            "truncated": np.zeros(rollouts, dtype=bool),
            "reward": np.ones(rollouts),
        },
    )
    distillation = {
        signal: {
            **{name: rng.random(T) for name in ("d_sq", "kl", "js", "teacher_token_prob", "d_token")},
            **{name: np.ones(T) for name in ("student_kept", "teacher_kept")},
            "d_bar": np.zeros(NODES),
            **{name: rng.normal(size=B) for name in ("d", "d_head")},
            "teacher_prob": rng.dirichlet(np.ones(branches), NODES).reshape(-1),
        }
        for signal in signals_of(config)
    }
    name = str(question)
    provider = GivenProvider({name: Given(rollouts_of, tree, distillation)})
    computed = Computed(config, provider, [name], list(distillation), lambda *_: 0)
    *earlier, last = diagnosis_stages()
    computed.run(*earlier)
    began = time.monotonic()
    computed.run(last)
    stage5 = time.monotonic() - began
    keys = named_keys(config, [name])
    began = time.monotonic()
    for stage in diagnosis_stages():
        for signal, key in keys.of_stage(stage, name).items():
            store.commit(stage, key, computed.artefact(stage, name, signal), {})
    return {"stage 5": stage5, "commit": time.monotonic() - began}


def long_config() -> "RunConfig":
    """A run of one teacher with `SIGNALS` losses."""
    from schemas.config import RunConfig

    return RunConfig.model_validate(
        {
            "questions": {"path": "q"},
            "student": {"path": "s"},
            "teachers": [{"name": "teacher"}],
            "losses": [{"kind": "jsd", "beta": (i + 1) / (SIGNALS + 1)} for i in range(SIGNALS)],
        }
    )


def named_keys(config: "RunConfig", questions: list[str]) -> "RunKeys":
    """Keys by the names of what they are of."""
    from schemas.signals import signals
    from tasks.run.keys import RunKeys

    number = {signal: i for i, signal in enumerate(signals(config))}

    class Keys(RunKeys):
        def key(self, stage: str, question: str, signal: Any = None) -> str:
            if stage == "prior":
                return "prior-0"
            return f"{stage}-{question}" if signal is None else f"{stage}-{number[signal]}-{question}"

    return Keys(config, cast(Any, None), questions)


def stage6(url: str, questions: int) -> None:
    """Print seconds of the tables of so many long questions, and the process's peak memory in GiB."""
    from tasks.outputs.diagnosis import load_scores, make_tables
    from tasks.statistics.prior import Prior
    from tasks.store.store import Store

    store, config = Store(url), long_config()
    keys = named_keys(config, [str(q) for q in range(questions)])
    session: Any = SimpleNamespace(store=store, config=config, keys=keys)
    prior = Prior.of(store.need("prior", "prior-0").arrays)
    began = time.monotonic()
    make_tables(config, load_scores(session, keys.questions), lambda ids: dict.fromkeys(ids, "x"), prior)
    print(time.monotonic() - began, peak())


def measure_long(folder: Path, rollouts: int, tokens: int) -> dict[str, float]:
    """Some long questions, and stage 6 over half and all of them."""
    from tasks.store.store import Store

    url, few, more = str(folder / "long"), 6, 12
    written = [write_long(url, q, rollouts, tokens) for q in range(more)]
    files = list((folder / "long").rglob("*.zip"))
    out = {
        "MB of its artefacts": sum(f.stat().st_size for f in files) / 1e6 / more,
        "seconds to commit it": sum(w["commit"] for w in written) / more,
        "seconds of stage 5": sum(w["stage 5"] for w in written) / more,
    }
    began = time.monotonic()
    for file in files:
        assert Store(url).has(file.parts[-3], file.parts[-2])
    out["seconds to find it there, verified"] = (time.monotonic() - began) / more
    seconds = []
    for questions in (few, more):
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--stage6", url, str(questions)]
        done = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        seconds.append(float(done[-2]))
        out[f"peak memory of stage 6 over {questions} such questions, GiB"] = float(done[-1])
    out["seconds of stage 6 for one more"] = (seconds[1] - seconds[0]) / (more - few)
    return out


def projection(
    arguments: argparse.Namespace, many: dict[str, float], requests: dict[str, float], long: dict[str, float]
) -> dict[str, float]:
    """The whole, from its parts."""
    q, tokens = arguments.questions, arguments.rollouts * arguments.tokens
    beside = many["  of which the rest: orchestration, keys, leases, store"]
    asked = sum(n for name, n in requests.items() if name.endswith("to make it")) * q
    asked += requests["in a round of draws"] * arguments.rounds * q
    storing = (long["seconds to commit it"] + long["seconds to find it there, verified"]) * q
    decoded = q * (tokens + arguments.draws * arguments.tokens / 2)
    models = decoded / arguments.decoded + q * tokens * (1 + 1) / arguments.scored
    orchestration = beside + asked * arguments.latency
    return {
        "artefacts": many["artefacts"],
        "TB of artefacts": long["MB of its artefacts"] * q / 1e6,
        "requests to the object store": asked,
        "rows in Prefect's database": sum(n for name, n in many.items() if name.startswith("Prefect")),
        "tokens decoded, billions": decoded / 1e9,
        "hours of the models": models / 3600,
        f"hours of orchestration, {1000 * arguments.latency:g} ms a request": orchestration / 3600,
        "per cent of the models' time": 100 * orchestration / models,
        "hours of hashing, packing and writing": storing / 3600,
        "that, per cent of the models' time": 100 * storing / models,
        "hours of stage 6": long["seconds of stage 6 for one more"] * q / 3600,
    }


def peak() -> float:
    """Most memory that this process has had, GiB (on Linux, which counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument(
        "--on-s3", type=int, nargs=2, default=(10, 40), help="questions of the two runs that are compared"
    )
    parser.add_argument("--rounds", type=int, default=16, help="rounds of a question's draws")
    parser.add_argument("--draws", type=int, default=4096, help="draws of a question's tree")
    parser.add_argument("--decoded", type=float, default=100_000, help="tokens a second, of all GPUs")
    parser.add_argument("--scored", type=float, default=400_000, help="tokens a second in forward passes, of all GPUs")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds of a request to the object store")
    parser.add_argument("--stage6", nargs=2, metavar=("STORE", "QUESTIONS"), help="what the third part calls")
    given = parser.parse_args()
    if given.stage6 is not None:
        stage6(given.stage6[0], int(given.stage6[1]))
    else:
        main(given)
