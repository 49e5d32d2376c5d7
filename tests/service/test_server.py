"""Prefect's server on a real PostgreSQL, and a server that is restarted in the middle of a run."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows.command.configuration import checked
from tests.helpers.places import ROOT
from tests.helpers.ports import free_port
from tests.helpers.prefect_server import Server

pytestmark = pytest.mark.slow

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def run(server: Server, config: dict[str, Any], path: Path) -> "subprocess.Popen[str]":
    path.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(path)],
        env=server.client_environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(**options: Any) -> Server:
        home = tmp_path / f"prefect{len(made)}"
        home.mkdir()
        made.append(Server(home, **options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    if not PROGRAMS:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    as_root = os.getuid() == 0
    user = "postgres" if as_root else pwd.getpwuid(os.getuid()).pw_name  # it refuses to run as root
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for one user
        if as_root:
            shutil.chown(folder, user)

        def program(name: str, *arguments: str) -> None:
            command = [*(["runuser", "-u", user, "--"] if as_root else []), str(PROGRAMS[-1] / name)]
            subprocess.run(
                [*command, "-D", f"{folder}/data", *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL
            )

        program("initdb", "-U", "prefect", "--auth", "trust")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        program("pg_ctl", "-o", options, "-w", "-l", f"{folder}/log", "start")
        try:
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            program("pg_ctl", "-m", "immediate", "stop")


def test_a_server_on_postgresql(
    database: str, server: Callable[..., Server], settings: dict[str, Any], tmp_path: Path
) -> None:
    served = server(database=database)
    process = run(served, settings, tmp_path / "config.yaml")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = httpx.post(f"{served.url}/flow_runs/filter", json={}).json()
    assert [run["state"]["type"] for run in found] == ["COMPLETED"]
    tasks = httpx.post(f"{served.url}/task_runs/filter", json={}).json()
    assert len(tasks) > 10 and {task["state"]["type"] for task in tasks} == {"COMPLETED"}


def test_a_server_that_is_restarted_during_a_run(
    server: Callable[..., Server], settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["execution"] = {"questions_per_task": 1, "round_draws": 24, "round_seconds": 0.0}
    served = server()
    whole = run(served, {**settings, "store": str(tmp_path / "whole")}, tmp_path / "whole.yaml")
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    process = run(served, {**settings, "store": str(tmp_path / "store")}, tmp_path / "config.yaml")
    for _ in range(1200):
        if any((tmp_path / "store" / "rounds").glob("*/*")):
            break
        time.sleep(0.05)
    served.kill()
    time.sleep(2)
    served.start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for path in (tmp_path / "whole" / "runs" / "small").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "store" / "runs" / "small" / path.name).read_bytes()


def test_a_limit_on_gpus_is_kept(server: Callable[..., Server], settings: dict[str, Any], tmp_path: Path) -> None:
    served = server()
    settings["execution"] = {"gpu_limit": "gpus", "retries": 0}
    process = run(served, settings, tmp_path / "config.yaml")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "execution.gpu_limit: 'gpus' is not a global concurrency limit" in err
    limit = httpx.post(f"{served.url}/v2/concurrency_limits/", json={"name": "gpus", "limit": 1}).raise_for_status()
    process = run(served, settings, tmp_path / "config.yaml")
    most = 0
    while process.poll() is None:
        found = httpx.get(f"{served.url}/v2/concurrency_limits/{limit.json()['id']}").json()
        most = max(most, found["active_slots"])
        time.sleep(0.05)
    assert process.returncode == 0 and most == 1


def test_two_workers_on_one_store(
    database: str, server: Callable[..., Server], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Each takes one of two runs: they share the work; where one is killed with its run, the other does it all."""
    settings["execution"] = {"questions_per_task": 2, "round_draws": 24, "round_seconds": 0.0}
    settings["tree"]["draws"] = 480
    served = server(database=database)
    api = httpx.Client(base_url=served.url, timeout=30)
    environment = {**served.client_environment, "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(ROOT)}
    make = "from flows.orchestration.deployments import *; deploy(offers({}, {}, 'store'), Path.cwd(), None)"
    subprocess.run([sys.executable, "-c", make], check=True, env=environment, cwd=tmp_path)
    place = api.get("/deployments/name/diagnose/diagnose").json()["id"]
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "opdscope", "--limit", "1", "--name"]
    workers = [subprocess.Popen([*command, name], env=environment, cwd=tmp_path) for name in ("one", "two")]

    def start(name: str, store: str) -> str:
        config = checked({**settings, "name": name, "store": str(tmp_path / store)}).model_dump(mode="json")
        made = api.post(f"/deployments/{place}/create_flow_run", json={"parameters": {"config": config}})
        return str(made.raise_for_status().json()["id"])

    def wait(run: str) -> dict[str, Any]:
        for _ in range(1200):
            found = dict(api.get(f"/flow_runs/{run}").json())
            if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED"):
                return found
            time.sleep(0.2)
        raise AssertionError(found["state"])

    def of(store: str, name: str) -> tuple[dict[str, bytes], int, int]:
        """Tables, artefacts made and tokens decoded."""
        folder = tmp_path / store / "runs" / name
        stages = json.loads((folder / "run.json").read_text())["stages"]
        made, decoded = (
            sum(stage[what] for stage_name, stage in stages.items() if stage_name != "aggregate")
            for what in ("made", "decoded_tokens")
        )
        return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}, made, decoded

    try:
        both = [wait(run) for run in [start("a", "shared"), start("b", "shared")]]
        assert [run["state"]["type"] for run in both] == ["COMPLETED", "COMPLETED"]
        assert max(run["start_time"] for run in both) < min(run["end_time"] for run in both)  # at the same time
        assert wait(start("alone", "own"))["state"]["type"] == "COMPLETED"
        (a, made_a, decoded_a), (b, made_b, decoded_b) = of("shared", "a"), of("shared", "b")
        alone, made, decoded = of("own", "alone")
        assert a == b == alone
        assert (made_a + made_b, decoded_a + decoded_b) == (made, decoded)

        first, second = start("c", "other"), start("d", "other")
        assert _first(tmp_path / "other", "rounds/*/*")
        family = psutil.Process(workers[0].pid)
        for process in [family, *family.children(recursive=True)]:
            process.kill()
        workers[0].wait()
        state = {run: api.get(f"/flow_runs/{run}").json()["state"]["type"] for run in (first, second)}
        assert set(state.values()) == {"RUNNING"}  # both were at work; of one nobody is left to tell
        ended = [json_file.parent.name for json_file in _first(tmp_path / "other" / "runs", "*/run.json")]
        assert [of("other", name)[0] for name in ended] == [alone]
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(60)


def _first(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern, as soon as there is one."""
    for _ in range(1200):
        if found := list(folder.glob(pattern)):
            return found
        time.sleep(0.1)
    return []
