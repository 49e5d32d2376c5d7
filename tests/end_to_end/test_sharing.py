"""Processes that share a store compute nothing twice, and take over from one that is gone; failures stay small."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from tasks.store.keys import digest
from tasks.store.leases import LeaseManager
from tasks.store.store import Store
from tests.helpers.command import Command
from tests.helpers.faults import put_in
from tests.helpers.places import ROOT
from tests.helpers.served import tables


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_a_lease_has_one_holder(store: Store) -> None:
    one, other = LeaseManager(store, 60.0), LeaseManager(store, 60.0)
    with one.acquire("work") as first, other.acquire("work") as second, other.acquire("other work") as third:
        assert (first, second, third) == (True, False, True)
    with other.acquire("work") as again:
        assert again
    assert store.names("claims") == []


def test_a_lease_is_kept_alive_and_else_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, other, third = LeaseManager(store, 0.4), LeaseManager(store, 0.4), LeaseManager(store, 0.4)

    def takes(leases: LeaseManager) -> bool:
        with leases.acquire("work") as ours:
            return ours

    with holder.acquire("work"):
        for _ in range(15):  # the holder lives: far longer than the lease
            assert not takes(other)
            time.sleep(0.1)
    with monkeypatch.context() as patch:
        patch.setattr(LeaseManager, "_beat", lambda *args: None)
        with holder.acquire("work"):  # holds it, and gives no sign of life
            assert not takes(other) and not takes(third)
            time.sleep(0.5)
            with other.acquire("work") as ours:
                assert ours and not takes(third)
    assert takes(third) and store.names("claims") == []


def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from tasks.store.store import Store; from tasks.store.leases import LeaseManager\n"
        "with LeaseManager(Store(sys.argv[1]), 600).acquire('work') as ours: os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    store = Store(str(tmp_path))
    assert len(store.names("claims")) == 1
    with LeaseManager(store, 600).acquire("work") as ours:
        assert ours
    assert store.names("claims") == []


EXECUTION = {"questions_per_task": 2, "round_draws": 24, "round_seconds": 0.0, "retry_seconds": 0.1}

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(settings: dict[str, Any], tmp_path: Path, prefect_environment: dict[str, str]) -> Start:
    """Starts `opdscope run` with a fault."""
    settings["execution"] = EXECUTION

    def begin(name: str, fault: str = "none", store: str = "store") -> "subprocess.Popen[str]":
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, "name": name, "store": str(tmp_path / store)}))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.faults", fault, "run", str(path)],
            env=prefect_environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def ended(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def run_of(store: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((store / "runs" / name / "run.json").read_text()))


def count(run: dict[str, Any], what: str) -> int:
    return sum(stage[what] for name, stage in run["stages"].items() if name != "aggregate")


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(start: Start, settings: dict[str, Any], tmp_path: Path) -> None:
    settings["execution"] = {**EXECUTION, "questions_in_flight": 1}  # or the first one to come has all work in hand
    ended(start("alone", store="alone"))
    both = [start(name, f"meet:{tmp_path / 'here'}") for name in ("one", "two")]
    for process in both:
        ended(process)
    alone = run_of(tmp_path / "alone", "alone")
    runs = [run_of(tmp_path / "store", name) for name in ("one", "two")]
    for what in ("made", "decoded_tokens"):
        assert sum(count(run, what) for run in runs) == count(alone, what)
    assert all(count(run, "made") for run in runs)
    assert tables(tmp_path / "store", "one") == tables(tmp_path / "store", "two") == tables(tmp_path / "alone", "alone")


@pytest.mark.slow
def test_the_work_of_a_killed_run_is_taken_over(start: Start, tmp_path: Path) -> None:
    ended(start("alone", store="alone"))
    first, second = start("one"), start("two")
    for _ in range(1200):
        if any((tmp_path / "store" / "rounds").glob("*/*")):
            break
        time.sleep(0.02)
    first.kill()
    first.communicate()
    ended(second)
    assert tables(tmp_path / "store", "two") == tables(tmp_path / "alone", "alone")
    own = digest(["run", "diagnose", "one"])  # of its name, until a run of this name begins again
    assert {lease.partition(".")[0] for lease in Store(str(tmp_path / "store")).names("claims")} <= {own}


Faulty = Callable[..., Result]


@pytest.fixture
def faulty(settings: dict[str, Any], tmp_path: Path, cli: Command) -> Faulty:
    """`opdscope run` with a fault, in this process."""
    settings["execution"] = EXECUTION

    def run(name: str, fault: str = "none", store: str = "store") -> Result:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, "name": name, "store": str(tmp_path / store)}))
        with pytest.MonkeyPatch.context() as patch:
            put_in(fault, patch.setattr)
            return cli("run", str(path))

    return run


@pytest.mark.parametrize(
    "stage", ["trees", *(pytest.param(later, marks=pytest.mark.slow) for later in ("distillation", "alignment"))]
)
def test_a_question_that_fails_does_not_end_the_others(stage: str, faulty: Faulty, tmp_path: Path) -> None:
    """Whatever stage it fails in: the others have outputs, a rerun with the same fault too, and one without it all."""
    for _ in range(2):
        done = faulty("small", f"{stage}:chain-002")
        assert done.exit_code == 1
        wanted = f"1 questions failed, run again to try them: chain-002: ValueError: no {stage} for chain-002"
        assert wanted in done.stderr and "left out: question chain-002: ValueError" in done.stdout
        broken = run_of(tmp_path / "store", "small")
        assert broken["failed"] == ["chain-002"] and len(broken["questions"]) == 5
        made = {f"{stage}/{key}" for pairs in broken["artefacts"].values() for stage, key in pairs}
        told = [json.loads(path.read_text()) for path in (tmp_path / "store/runs/small").glob("references-*.json")]
        assert made <= {name for names in told for name in names}  # also what is made of all questions that are left
    assert faulty("small").exit_code == 0
    mended = run_of(tmp_path / "store", "small")
    assert mended["failed"] == [] and len(mended["questions"]) == 6
    assert mended["stages"]["rollouts"]["made"] == 0 and mended["stages"][stage]["made"] > 0
    assert faulty("alone", store="alone").exit_code == 0
    assert tables(tmp_path / "store", "small") == tables(tmp_path / "alone", "alone")


def test_a_full_disk_is_waited_for_and_else_told(faulty: Faulty, tmp_path: Path) -> None:
    assert faulty("patient", "disk:2").exit_code == 0
    full = faulty("full", "disk:1000000", store="other")
    assert full.exit_code == 1 and "Traceback" not in full.stderr
    assert "No space left on device; completed work is kept, run again to continue" in full.stderr
    assert faulty("full", store="other").exit_code == 0
    assert tables(tmp_path / "other", "full") == tables(tmp_path / "store", "patient")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that one artefact more or less fills."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(start: Start, settings: dict[str, Any], small_disk: Path, tmp_path: Path) -> None:
    ended(start("alone", store="alone"))
    settings["execution"] = {**EXECUTION, "retries": 0}
    _, err = ended(start("full", store="disk/store"), 1)
    assert "No space left on device" in err and "completed work is kept" in err and "Traceback" not in err
    settings["execution"] = {**EXECUTION, "retries": 3, "retry_seconds": 2.0}
    process = start("full", store="disk/store")
    time.sleep(15)
    assert process.poll() is None  # waits for room
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    ended(process)
    assert tables(small_disk / "store", "full") == tables(tmp_path / "alone", "alone")
