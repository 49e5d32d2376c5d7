"""Whole validations: from a configuration to a page, again from the store, and after kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from flows.service.states import OUTPUTS
from schemas.training_tables import TRAININGS, VALIDATION
from tasks.store.references import reachable
from tasks.store.store import Store
from tests.helpers.command import Command
from tests.helpers.places import ROOT
from tests.validation.material import validation_config


def written(settings: dict[str, Any], folder: Path, run: dict[str, Any] | None = None, **more: Any) -> Path:
    success = {"success": {"rollouts": 2}, "update": {"dimensions": 64}, **(run or {})}
    config = validation_config(settings, folder, success, signals=["large/*/*"], **more)
    path = folder / "validation.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.mark.slow
def test_a_validation_and_the_same_again(settings: dict[str, Any], models: Path, cli: Command, tmp_path: Path) -> None:
    students = [{"path": str(models / "teacher")}]
    path = written(settings, tmp_path, optimisers=[{"kind": "adamw", "learning_rate": 0.01}], students=students)
    first = cli("validate", str(path))
    assert first.exit_code == 0, first.stderr
    assert "rank correlation with success after training" in first.stdout and "after 3 steps" in first.stdout
    folder = Path(settings["store"]) / "runs" / "small"
    trainings, validation = (pl.read_parquet(folder / f"{name}.parquet") for name in ("trainings", "validation"))
    assert trainings.columns == list(TRAININGS) and validation.columns == list(VALIDATION)
    # the second student is its own teacher, by weights, from which nothing is learned
    assert trainings.height == 2 * 3 * 2 and trainings["student"].unique().sort().to_list() == ["student", "teacher"]
    own = validation.filter((pl.col("student") == "teacher") & (pl.col("teacher") == "large"))
    assert own["forecast"].is_null().all() and own["verdict"].unique().to_list() == ["unclear"]
    result = json.loads((folder / "validation.json").read_text())
    assert set(result["files"]) == {"trainings.parquet", "validation.parquet", "validation.html"}
    assert (folder.parent / "small-student-2" / "rank.json").is_file()
    kept = {name for name in reachable(Store(settings["store"])) if name.startswith("trainings/")}
    stored = {f"trainings/{name}" for name in Store(settings["store"]).names("trainings")}
    assert stored <= kept and len(stored) == 2 * (3 + 1)
    again = cli("validate", str(path))
    assert again.exit_code == 0 and "0 artefacts made, 8 from the store, 0 tokens decoded" in again.stdout
    assert json.loads((folder / "validation.json").read_text())["predictors"] == result["predictors"]


def test_a_validation_writes_its_tables_and_page(settings: dict[str, Any], cli: Command, tmp_path: Path) -> None:
    path = written(settings, tmp_path, optimisers=[{"kind": "adamw", "learning_rate": 0.01}], reward=False)
    done = cli("validate", str(path))
    assert done.exit_code == 0, done.stderr
    assert "rank correlation with success after training" in done.stdout and "after 3 steps" in done.stdout
    folder = Path(settings["store"]) / "runs" / "small"
    validation = pl.read_parquet(folder / "validation.parquet")
    assert validation.columns == list(VALIDATION) and validation.height == 2 * 2
    result = json.loads((folder / "validation.json").read_text())
    assert set(result["files"]) == {"trainings.parquet", "validation.parquet", "validation.html"}
    assert [row["predictor"] for row in result["predictors"]][:1] == ["forecast"]
    for flow in ("rank", "validate"):  # each names what it was made with
        listed = (folder / f"references-{flow}.json").read_bytes()
        assert json.loads((folder / OUTPUTS[flow]).read_text())["references"] == hashlib.sha256(listed).hexdigest()


def test_what_cannot_be_done_is_said_before_anything_is_computed(
    settings: dict[str, Any], cli: Command, tmp_path: Path
) -> None:
    path = written(settings, tmp_path, students=[{"path": "/nowhere/model"}])
    done = cli("validate", str(path))
    assert done.exit_code == 2
    assert "validation.students[0].path: '/nowhere/model' is not there" in done.stderr
    assert not Store(settings["store"]).names("rollouts")


@pytest.mark.slow
def test_killed_validations_end_in_the_same_bytes(
    settings: dict[str, Any], prefect_environment: dict[str, str], tmp_path: Path
) -> None:
    execution = {"execution": {"round_seconds": 0.0}}
    tables = []
    for name, kills in (("whole", 0), ("killed", 4)):
        own = {**settings, "store": str(tmp_path / name), "name": "v"}
        path = written(own, tmp_path, execution, steps=30, workers=2)
        command = [sys.executable, "-c", "from flows.cli import main; main()", "validate", str(path)]
        environment = {**os.environ, **prefect_environment, "PYTHONPATH": str(ROOT)}
        for _ in range(kills):
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            states = tmp_path / name / "training_states"
            deadline = time.monotonic() + 300
            while process.poll() is None and not states.is_dir() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(2)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        tables.append(
            [pl.read_parquet(tmp_path / name / "runs" / "v" / f"{t}.parquet") for t in ("trainings", "validation")]
        )
    for whole, killed in zip(*tables, strict=True):
        assert whole.equals(killed)


@pytest.mark.slow
def test_a_small_validation_of_the_demo(prefect_environment: dict[str, str], tmp_path: Path) -> None:
    """Five minutes: the copying teacher is found out, and a good one beats it."""
    signals = '["large/none/reverse_kl", "copying/leak/*", "self/wrong_attempt/jsd"]'
    sets = [f"validation.signals={signals}", "validation.seeds=1", "validation.steps=10", "validation.evaluate_at=[3]"]
    sets += [
        "validation.selections=[]",
        "validation.selected=[]",
        "validation.optimisers=[{kind: normalised, length: 0.1}]",
    ]
    store = ["--store", str(tmp_path / "demo")]
    command = [sys.executable, "-c", "from flows.cli import main; main()"]
    environment = {**os.environ, **prefect_environment, "PYTHONPATH": str(ROOT)}
    made = subprocess.run([*command, "demo", *store], env=environment, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stderr
    options = [option for value in sets for option in ("--set", value)]
    config = str(tmp_path / "demo" / "demo" / "demo.yaml")
    done = subprocess.run(
        [*command, "validate", config, *store, *options], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    table = pl.read_parquet(tmp_path / "demo" / "runs" / "demo" / "validation.parquet")
    last = table.filter((pl.col("step") == 10) & (pl.col("teacher") != "reward"))
    by = {(row["teacher"], row["loss"]): row for row in last.iter_rows(named=True)}
    assert by["large", "reverse_kl"]["verdict"] == "helps"
    assert by["large", "reverse_kl"]["measured"] > by["large", "reverse_kl"]["base"] + 0.3
    for loss in ("reverse_kl", "forward_kl", "jsd"):
        row = by["copying", loss]
        assert row["measured"] < row["base"] and abs(row["measured"] - row["forecast"]) < 0.2
        assert row["remark"].startswith("copies ") and row["verdict"] != "helps"
