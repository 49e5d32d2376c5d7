"""A run that is killed again and again ends in the same bytes as one that is not, and decodes little twice."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.helpers.places import ROOT


def drive(config: Path, counts: Path, environment: dict[str, str], event: int | None = None) -> int:
    """The driver's exit code."""
    command = [sys.executable, "-m", "tests.helpers.driver", str(config), str(counts), *([str(event)] if event else [])]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def counted(counts: Path) -> tuple[int, list[int]]:
    """All tokens that were decoded, and those of each call of the engine that ended."""
    lines = counts.read_text().splitlines()
    return sum(int(line) for line in lines if line.isdigit()), [int(x[5:]) for x in lines if x.startswith("call ")]


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_same_bytes(
    kills: int, settings: dict[str, Any], prefect_environment: dict[str, str], tmp_path: Path
) -> None:
    in_flight = 3
    settings["execution"] = {"round_draws": 24, "round_seconds": 0.0, "questions_in_flight": in_flight}
    draws = 96 if kills < 10 else 960  # a life must be long enough for a unit of each question in flight
    settings["tree"] = {"kind": "adaptive", "head": 3, "tail": 2, "node_draws": 12, "round": 48, "draws": draws}

    def configuration(name: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, "store": str(tmp_path / name)}))
        return path

    whole_counts = tmp_path / "whole.counts"
    assert drive(configuration("whole"), whole_counts, prefect_environment) == 0
    decoded, calls = counted(whole_counts)
    assert decoded == sum(calls)
    events = int(whole_counts.read_text().split()[-1])

    rng = np.random.default_rng(7)
    counts = tmp_path / "killed.counts"
    config = configuration("killed")
    killed = 0
    while killed < kills:
        # lives so short that all of them together do not finish the run, and the kills spread over it
        event = int(rng.integers(events // (3 * kills), events // kills))
        if drive(config, counts, prefect_environment, event) == 0:
            break
        killed += 1
    assert killed == kills, f"the run was over after {killed} kills"
    assert drive(config, counts, prefect_environment) == 0

    for name in ("tokens.parquet", "summary.parquet", "report.html"):
        ours = (tmp_path / "killed" / "runs" / "small" / name).read_bytes()
        theirs = (tmp_path / "whole" / "runs" / "small" / name).read_bytes()
        assert ours == theirs, name
    assert counted(counts)[0] <= decoded + kills * in_flight * max(calls)  # a round of each question, at most
    run = json.loads((tmp_path / "killed" / "runs" / "small" / "run.json").read_text())
    assert run["stages"]["rollouts"]["cached"] > 0
    leftovers = [p.name for p in (tmp_path / "killed" / "rounds").rglob("part-*")]
    assert leftovers == []  # parts of rounds are removed when their round is whole
