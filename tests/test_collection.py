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
from tasks.store.artefact import MARKER, OBJECT, Store, StoreError
from tasks.store.collect import damaged, holdings, refer, referred, stored, sweep, unreferred
from tasks.store.keys import digest

DAY = 86400.0
KEPT, MADE, FREE, COMING = (digest(name) for name in ("kept", "made", "free", "to be made"))


def commit(store: Store, key: str) -> None:
    arrays = {"prompt": [5], "tokens": [7, 1], "offsets": [0, 2], "correct": [True], "truncated": [False]}
    types = {"prompt": "int32", "tokens": "int32", "offsets": "int64", "correct": "bool", "truncated": "bool"}
    store.commit("rollouts", key, {n: np.array(a, dtype=types[n]) for n, a in arrays.items()}, {})


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Artefacts `KEPT` and `MADE` of two runs, and `FREE`."""
    store = Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
    store.check_writable()
    for key in (KEPT, MADE, FREE):
        commit(store, key)
    refer(store, "begun", "diagnose", [f"rollouts/{KEPT}", f"trees/{COMING}"])
    store.put_bytes(json.dumps({"artefacts": {"q": [["rollouts", MADE]]}}).encode(), "runs", "done", "run.json")
    return store


def test_what_a_store_holds(store: Store) -> None:
    of_stage = {h.stage: h for h in holdings(store)}
    assert (of_stage["rollouts"].artefacts, of_stage["rollouts"].objects, of_stage["trees"].artefacts) == (3, 3, 0)
    assert of_stage["rollouts"].size == sum(
        len(store.get_bytes("rollouts", k, OBJECT) or b"") for k in (KEPT, MADE, FREE)
    )


def test_only_what_no_run_refers_to_and_is_old_is_free(store: Store) -> None:
    assert referred(store) == {f"rollouts/{KEPT}", f"rollouts/{MADE}", f"trees/{COMING}"}
    assert unreferred(store, older=DAY) == []
    time.sleep(0.01)
    free = unreferred(store, older=0.0)
    assert [item.artefact for item in free] == [f"rollouts/{FREE}"]
    assert sweep(store, free) == 1
    assert sorted(item.key for item in stored(store, "rollouts")) == sorted([KEPT, MADE])


def test_rounds_that_are_still_written_keep_the_old_ones(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("round-0000.zarr.zip", "round-0001.zarr.zip"):
        store.put_bytes(b"x", "rounds", KEPT, name)
    old = time.time() - 2 * DAY
    os.utime(tmp_path / "rounds" / KEPT / "round-0000.zarr.zip", (old, old))
    assert unreferred(store, older=DAY) == []
    os.utime(tmp_path / "rounds" / KEPT / "round-0001.zarr.zip", (old, old))
    assert len(unreferred(store, older=DAY)) == 2


def test_unreadable_references_free_nothing(store: Store) -> None:
    store.put_bytes(b"[", "runs", "begun", "references-diagnose.json")
    with pytest.raises(StoreError, match=r"runs/begun/references-diagnose.json .* cannot be read .*Expecting value"):
        unreferred(store, older=0.0)
    store.remove("runs", "begun", "references-diagnose.json")
    store.put_bytes(b'{"artefacts": [1]}', "runs", "foreign", "run.json")  # somebody else's
    with pytest.raises(StoreError, match=r"runs/foreign/run.json .* cannot be read"):
        unreferred(store, older=0.0)


def test_damage_is_found_and_repaired(store: Store) -> None:
    assert damaged(store) == []
    data = store.get_bytes("rollouts", KEPT, OBJECT) or b""
    store.put_bytes(data[:-1] + b"!", "rollouts", KEPT, OBJECT)
    assert [item.artefact for item in damaged(store)] == [f"rollouts/{KEPT}"]


def call(store: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["store", *arguments, "--store", str(store)])
    return done.exit_code, done.output


def test_the_commands(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = Store(str(folder))
    one, two = digest("one"), digest("two")
    commit(store, one)
    commit(store, two)
    code, out = call(folder, "ls")
    assert code == 0 and "rollouts" in out and "2" in out
    target = folder / "rollouts" / one / OBJECT
    target.write_bytes(target.read_bytes()[:-1])
    for arguments in (("verify", "--repair"), ("gc", "--older-than", "0", "--yes")):  # nothing says that it is a store
        code, out = call(folder, *arguments)
        assert code == 2 and f"has no {MARKER}" in out and target.exists()
    store.check_writable()
    code, out = call(folder, "verify")
    assert code == 1 and f"damaged: rollouts/{one}/artefact.zarr.zip" in out
    code, out = call(folder, "verify", "--repair")
    assert code == 0 and not target.exists()
    assert call(folder, "gc", "--older-than", "1")[1].startswith("0 artefacts")
    code, out = call(folder, "gc", "--older-than", "0", "--dry-run")
    assert code == 0 and out.startswith("1 artefacts") and (folder / "rollouts" / two).exists()
    assert f"rollouts/{two}/{OBJECT}" in out
    code, out = call(folder, "gc", "--older-than", "0", "--yes")
    assert "removed 1 artefacts" in out and not (folder / "rollouts" / two).exists()
    shutil.rmtree(folder)
    assert call(folder, "ls")[0] == 2


def test_only_the_first_names_are_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.check_writable()
    for i in range(25):
        store.put_bytes(b"x", "trees", digest(i), OBJECT)
    code, out = call(tmp_path, "gc", "--older-than", "0", "--dry-run")
    assert code == 0 and out.count(f"/{OBJECT}") == 20 and "and 5 more" in out
