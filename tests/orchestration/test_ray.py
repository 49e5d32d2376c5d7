"""A run spread over Ray's workers: nothing computed twice, and the work of a killed worker done by another."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.helpers.places import ROOT
from tests.helpers.prefect_server import Server

pytest.importorskip("prefect_ray")
pytestmark = pytest.mark.slow


def run(
    settings: dict[str, Any], environment: dict[str, str], tmp_path: Path, name: str, runner: str
) -> "subprocess.Popen[str]":
    execution = {**settings["execution"], "task_runner": runner, "ray_cpus": 2, "questions_per_task": 1}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**settings, "execution": execution, "name": name, "store": str(tmp_path / name)}))
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(path)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(store: Path, name: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    folder = store / "runs" / name
    tables = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    return tables, json.loads((folder / "run.json").read_text())["stages"]


def test_two_workers_and_one_that_is_killed(
    settings: dict[str, Any], prefect_server: Server, prefect_environment: dict[str, str], tmp_path: Path
) -> None:
    settings["tree"]["draws"] = 240
    settings["engine"] = {"threads": 1}  # as each of Ray's workers has; another number rounds sums otherwise
    alone = run(settings, prefect_environment, tmp_path, "alone", "process")
    _, err = alone.communicate(timeout=300)
    assert alone.returncode == 0, err
    tables, stages = outputs(tmp_path / "alone", "alone")

    both = run(settings, prefect_environment, tmp_path, "both", "ray")
    _, err = both.communicate(timeout=500)
    assert both.returncode == 0, err
    theirs, spread = outputs(tmp_path / "both", "both")
    assert theirs == tables
    for stage, done in stages.items():
        assert (spread[stage]["made"], spread[stage]["decoded_tokens"]) == (done["made"], done["decoded_tokens"]), stage

    artifacts = prefect_server.artifacts()  # progress of the workers is told in the flow
    draws = 6 * 6 * settings["tree"]["draws"]
    assert f"draws: {draws:,} of {draws:,}" in artifacts["progress-draws"]["description"]
    assert "trees: 6 of 6" in artifacts["progress-trees"]["description"]

    killed = run(settings, prefect_environment, tmp_path, "killed", "ray")
    victim: psutil.Process | None = None
    for _ in range(3000):
        if any((tmp_path / "killed" / "trees").glob("*/*")):
            workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::trees" in " ".join(p.info["cmdline"] or [])]
            if workers:
                victim = workers[0]
                break
        time.sleep(0.05)
    assert victim is not None
    victim.kill()
    _, err = killed.communicate(timeout=500)
    assert killed.returncode == 0, err
    assert outputs(tmp_path / "killed", "killed")[0] == tables
