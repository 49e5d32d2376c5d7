"""Prefect's server on a real PostgreSQL, and a server that is restarted in the middle of a run."""

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.ports import free_port
from tests.prefect_server import Server

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[1]
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def run(server: Server, config: dict[str, Any], path: Path) -> "subprocess.Popen[str]":
    path.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(path)],
        env=server.client_environment,
        cwd=HERE,
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


@pytest.mark.skipif(not PROGRAMS, reason="needs PostgreSQL: apt-get install postgresql")
def test_a_server_on_postgresql(server: Callable[..., Server], settings: dict[str, Any], tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "database"
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # it refuses to run as root
    data.mkdir()
    if os.getuid() == 0:
        shutil.chown(data, user)
        for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
            folder.chmod(folder.stat().st_mode | 0o011)
    as_user = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []

    def program(name: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(PROGRAMS[-1] / name), *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL)

    program("initdb", "-D", str(data), "-U", "prefect", "--auth", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    program("pg_ctl", "-D", str(data), "-o", options, "-w", "-l", str(data / "log"), "start")
    try:
        served = server(database=f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres")
        process = run(served, settings, tmp_path / "config.yaml")
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found = httpx.post(f"{served.url}/flow_runs/filter", json={}).json()
        assert [run["state"]["type"] for run in found] == ["COMPLETED"]
        tasks = httpx.post(f"{served.url}/task_runs/filter", json={}).json()
        assert len(tasks) > 10 and {task["state"]["type"] for task in tasks} == {"COMPLETED"}
    finally:
        program("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


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
    assert process.returncode == 2 and "execution.gpu_limit: 'gpus' is no global concurrency limit" in err
    limit = httpx.post(f"{served.url}/v2/concurrency_limits/", json={"name": "gpus", "limit": 1}).raise_for_status()
    process = run(served, settings, tmp_path / "config.yaml")
    most = 0
    while process.poll() is None:
        found = httpx.get(f"{served.url}/v2/concurrency_limits/{limit.json()['id']}").json()
        most = max(most, found["active_slots"])
        time.sleep(0.05)
    assert process.returncode == 0 and most == 1
