"""What a store holds, whether it is whole, and that cleaning up never takes what a kept run needs."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.store.artefact import OBJECT, Store
from tasks.store.collect import damaged, holdings, referred, remove, stored, unreferred

DAY = 86400.0


def commit(store: Store, key: str) -> None:
    arrays = {"prompt": [5], "tokens": [7, 1], "offsets": [0, 2], "correct": [True], "truncated": [False]}
    types = {"prompt": "int32", "tokens": "int32", "offsets": "int64", "correct": "bool", "truncated": "bool"}
    store.commit("rollouts", key, {n: np.array(a, dtype=types[n]) for n, a in arrays.items()}, {})


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Artefacts `kept` and `made` of two runs, and `free`."""
    store = Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
    for key in ("kept", "made", "free"):
        commit(store, key)
    store.put_bytes(
        json.dumps(["rollouts/kept", "trees/to be made"]).encode(), "runs", "begun", "references-diagnose.json"
    )
    store.put_bytes(json.dumps({"artefacts": {"q": [["rollouts", "made"]]}}).encode(), "runs", "done", "run.json")
    return store


def test_what_a_store_holds(store: Store) -> None:
    of_stage = {h.stage: h for h in holdings(store)}
    assert (of_stage["rollouts"].artefacts, of_stage["rollouts"].objects, of_stage["trees"].artefacts) == (3, 3, 0)
    assert of_stage["rollouts"].size == sum(
        len(store.get_bytes("rollouts", k, OBJECT) or b"") for k in ("kept", "made", "free")
    )


def test_only_what_no_run_refers_to_and_is_old_is_free(store: Store) -> None:
    assert referred(store) == {"rollouts/kept", "rollouts/made", "trees/to be made"}
    assert unreferred(store, older=DAY) == []
    time.sleep(0.01)
    free = unreferred(store, older=0.0)
    assert [item.artefact for item in free] == ["rollouts/free"]
    remove(store, free)
    assert sorted(item.key for item in stored(store, "rollouts")) == ["kept", "made"]


def test_rounds_that_are_still_written_keep_the_old_ones(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("round-0000.zarr.zip", "round-0001.zarr.zip"):
        store.put_bytes(b"x", "rounds", "key", name)
    old = time.time() - 2 * DAY
    os.utime(tmp_path / "rounds" / "key" / "round-0000.zarr.zip", (old, old))
    assert unreferred(store, older=DAY) == []
    os.utime(tmp_path / "rounds" / "key" / "round-0001.zarr.zip", (old, old))
    assert len(unreferred(store, older=DAY)) == 2


def test_unreadable_references_free_nothing(store: Store) -> None:
    store.put_bytes(b"[", "runs", "begun", "references-diagnose.json")
    with pytest.raises(ValueError, match="Expecting value"):
        unreferred(store, older=0.0)


def test_damage_is_found_and_repaired(store: Store) -> None:
    assert damaged(store) == []
    data = store.get_bytes("rollouts", "kept", OBJECT) or b""
    store.put_bytes(data[:-1] + b"!", "rollouts", "kept", OBJECT)
    assert [item.artefact for item in damaged(store)] == ["rollouts/kept"]


def test_the_commands(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    commit(store, "one")
    commit(store, "two")

    def call(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["store", *arguments, "--store", str(tmp_path / "store")])
        return done.exit_code, done.output

    code, out = call("ls")
    assert code == 0 and "rollouts" in out and "2" in out
    target = tmp_path / "store" / "rollouts" / "one" / OBJECT
    target.write_bytes(target.read_bytes()[:-1])
    code, out = call("verify")
    assert code == 1 and "damaged: rollouts/one/artefact.zarr.zip" in out
    code, out = call("verify", "--repair")
    assert code == 0 and not target.exists()
    assert call("gc", "--older-than", "1")[1].startswith("0 artefacts")
    code, out = call("gc", "--older-than", "0", "--dry-run")
    assert code == 0 and out.startswith("1 artefacts") and (tmp_path / "store" / "rollouts" / "two").exists()
    code, out = call("gc", "--older-than", "0", "--yes")
    assert "removed 1 artefacts" in out and not (tmp_path / "store" / "rollouts" / "two").exists()
    shutil.rmtree(tmp_path / "store")
    assert call("ls")[0] == 2
