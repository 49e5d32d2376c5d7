"""A store on a real S3-compatible server: whole runs, leases, outages, delays, and no credentials anywhere."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3fs import S3FileSystem

from tasks.operations.errors import is_transient
from tasks.store.garbage import remove, unreachable
from tasks.store.leases import LeaseManager
from tasks.store.listing import holdings, stored
from tasks.store.outages import StoreAwayError
from tasks.store.store import Store, StoreError
from tests.helpers.places import ROOT
from tests.helpers.s3 import SECRET, Gate, s3_server

KEY, PART = "0" * 64, "part-0000-000000000.zarr.zip"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a moto server."""
    with s3_server() as url:
        yield url


@pytest.fixture
def gate(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A way to the server that can fail; the environment holds credentials for it."""
    gate = Gate(s3)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they keep the address that the environment had
    yield gate
    gate.shutdown()


def opened(name: str) -> Store:
    return Store(f"s3://bucket/{name}")


def test_objects_leases_and_clean_up(gate: Gate) -> None:
    store = opened("unit")
    store.check_writable()
    assert store.get_bytes("a", "b") is None and store.names("a") == []
    store.put_bytes(b"1", "rounds", KEY, PART)
    assert opened("unit").names("rounds", KEY) == [PART]  # another process sees it at once
    with LeaseManager(store, 60).acquire("work") as ours, LeaseManager(opened("unit"), 60).acquire("work") as theirs:
        assert ours and not theirs
    assert opened("unit").names("claims") == []
    assert [(h.artefacts, h.size) for h in holdings(store) if h.stage == "rounds"] == [(1, 1)]
    time.sleep(1.1)  # S3 tells whole seconds
    remove(store, unreachable(store, older=0.0))
    assert list(stored(opened("unit"), "rounds")) == []


@pytest.mark.parametrize("fault", ["refusing", "away"])
def test_a_store_that_refuses_or_is_away_is_told_apart_from_a_wrong_one(gate: Gate, fault: str) -> None:
    opened("x").check_writable()
    with LeaseManager(opened("x"), 60).acquire("work") as ours:
        assert ours
        setattr(gate, fault, True)
        calls: list[Callable[[], object]] = [
            opened("x").check_writable,
            lambda: opened("x").put_bytes(b"1", "a"),
            lambda: opened("x").remove("a"),
        ]
        if fault == "away":
            calls += [lambda: opened("x").get_bytes("a"), lambda: opened("x").names("claims")]
        for call in calls:
            with pytest.raises(StoreAwayError, match="'s3://bucket/x' does not answer, or refuses for now") as caught:
                call()
            assert is_transient(caught.value)
        setattr(gate, fault, False)
    assert opened("x").names("claims") == []
    with pytest.raises(StoreError, match="cannot write to 's3://nobucket'"):
        Store("s3://nobucket").check_writable()


def run(settings: dict[str, Any], tmp_path: Path, environment: dict[str, str], store: str) -> "subprocess.Popen[str]":
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, "store": store}))
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(path)],
        env={**environment, **aws},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refusing", "away"])
def test_a_run_on_a_store_that_is_slow_and_refuses_writes_or_is_away_for_a_while(
    gate: Gate, fault: str, settings: dict[str, Any], tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    settings["execution"] = {"questions_per_task": 3, "round_draws": 24, "round_seconds": 0.0, "retry_seconds": 2.0}
    whole = run(settings, tmp_path, prefect_environment, str(tmp_path / "whole"))
    out, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err

    gate.delay = 0.01
    process = run(settings, tmp_path, prefect_environment, f"s3://bucket/{fault}")
    store = opened(fault)
    for _ in range(600):
        if store.names("rounds"):
            break
        time.sleep(0.1)
    setattr(gate, fault, True)
    time.sleep(8.0)
    setattr(gate, fault, False)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    names = [name for name in store.names("runs", "small") if name.endswith(".parquet")]
    assert len(names) == 5
    for name in names:
        assert store.get_bytes("runs", "small", name) == (tmp_path / "whole" / "runs" / "small" / name).read_bytes()
    for path in store.fs.find(store.root):
        assert SECRET.encode() not in store.fs.cat_file(path), path
    assert SECRET not in out + err


@pytest.mark.slow
def test_credentials_from_a_block(
    gate: Gate, settings: dict[str, Any], tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    make = (
        "import sys; from prefect.filesystems import RemoteFileSystem\n"
        "RemoteFileSystem(basepath='s3://bucket', settings={'key': 'someone', 'secret': sys.argv[2], "
        "'endpoint_url': sys.argv[1]}).save('objects', overwrite=True)"
    )
    command = [sys.executable, "-c", make, gate.environment["AWS_ENDPOINT_URL"], SECRET]
    subprocess.run(command, env=prefect_environment, check=True, capture_output=True)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        os.environ.pop(name)  # the fixture puts back what was there
    settings["execution"] = {"storage_block": "objects"}
    process = run(settings, tmp_path, {**prefect_environment, "AWS_EC2_METADATA_DISABLED": "true"}, "s3://bucket/block")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert SECRET not in out + err
    settings["execution"] = {"storage_block": "missing"}
    process = run(settings, tmp_path, prefect_environment, "s3://bucket/block")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "there is no block remote-file-system/missing" in err
