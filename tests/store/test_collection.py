"""What a store holds, whether it is whole, and that cleaning up never takes what a kept run needs."""

import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.command.guarded import guarded
from schemas.arrays import ROLLOUTS
from tasks.store.garbage import remove, sweep, unreachable
from tasks.store.keys import digest
from tasks.store.listing import Stored, damaged, holdings, stored
from tasks.store.outages import LASTING
from tasks.store.references import pin, pin_also, reachable
from tasks.store.store import MARKER, OBJECT, Store, StoreError

DAY = 86400.0
KEPT, MADE, FREE, COMING = (digest(name) for name in ("kept", "made", "free", "to be made"))


def commit(store: Store, key: str) -> None:
    made = {
        "prompt": [5],
        "tokens": [7, 1],
        "offsets": [0, 2],
        "correct": [True],
        "truncated": [False],
        "reward": [1.0],
    }
    store.commit("rollouts", key, {n: np.array(a, dtype=ROLLOUTS[n].dtype) for n, a in made.items()}, {})


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Artefacts `KEPT` and `MADE` of two runs, and `FREE`."""
    store = Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
    store.check_writable()
    for key in (KEPT, MADE, FREE):
        commit(store, key)
    pin(store, "begun", "diagnose", [f"rollouts/{KEPT}", f"trees/{COMING}"])
    store.put_bytes(json.dumps({"artefacts": {"q": [["rollouts", MADE]]}}).encode(), "runs", "done", "run.json")
    return store


def test_what_a_store_holds(store: Store) -> None:
    of_stage = {h.stage: h for h in holdings(store)}
    assert (of_stage["rollouts"].artefacts, of_stage["rollouts"].objects, of_stage["trees"].artefacts) == (3, 3, 0)
    assert of_stage["rollouts"].size == sum(
        len(store.get_bytes("rollouts", k, OBJECT) or b"") for k in (KEPT, MADE, FREE)
    )


def test_only_what_no_run_refers_to_and_is_old_is_free(store: Store) -> None:
    assert reachable(store) == {f"rollouts/{KEPT}", f"rollouts/{MADE}", f"trees/{COMING}"}
    assert unreachable(store, older=DAY) == []
    time.sleep(0.01)
    free = unreachable(store, older=0.0)
    assert [item.artefact for item in free] == [f"rollouts/{FREE}"]
    assert sweep(store, free) == 1
    assert sorted(item.key for item in stored(store, "rollouts")) == sorted([KEPT, MADE])


def test_rounds_that_are_still_written_keep_the_old_ones(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("round-0000.zarr.zip", "round-0001.zarr.zip"):
        store.put_bytes(b"x", "rounds", KEPT, name)
    old = time.time() - 2 * DAY
    os.utime(tmp_path / "rounds" / KEPT / "round-0000.zarr.zip", (old, old))
    assert unreachable(store, older=DAY) == []
    os.utime(tmp_path / "rounds" / KEPT / "round-0001.zarr.zip", (old, old))
    assert len(unreachable(store, older=DAY)) == 2


def test_unreadable_references_free_nothing(store: Store) -> None:
    store.put_bytes(b"[", "runs", "begun", "references-diagnose.json")
    with pytest.raises(StoreError, match=r"runs/begun/references-diagnose.json .* cannot be read .*Expecting value"):
        unreachable(store, older=0.0)
    store.remove("runs", "begun", "references-diagnose.json")
    store.put_bytes(b'{"artefacts": [1]}', "runs", "foreign", "run.json")  # somebody else's
    with pytest.raises(StoreError, match=r"runs/foreign/run.json .* cannot be read"):
        unreachable(store, older=0.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b'{"a": 1}', b'"x"', b"1", b"[1]", b'["rollouts/short"]', b'[["rollouts", "x"]]', b"[" * 9**5],
)
def test_references_of_another_shape_free_nothing(store: Store, content: bytes) -> None:
    store.put_bytes(content, "runs", "begun", "references-diagnose.json")
    with pytest.raises(StoreError, match=r"^runs/begun/references-diagnose.json in .* cannot be read .*not known"):
        unreachable(store, older=0.0)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b'{"artefacts": null}', b'{"artefacts": {"q": [["rollouts", "x"]]}}']
)
def test_a_run_of_another_shape_frees_nothing(store: Store, content: bytes) -> None:
    store.put_bytes(content, "runs", "done", "run.json")
    with pytest.raises(StoreError, match=r"^runs/done/run.json in .* cannot be read .* not known"):
        unreachable(store, older=0.0)


@pytest.mark.parametrize(
    ("place", "instead"),
    [
        (place, instead)
        for place in ("runs", "runs/begun", "runs/begun/references-diagnose.json", "runs/done/run.json")
        for instead in ("dangling", "loop", "folder or file")
        if (place, instead) != ("runs/begun", "folder or file")  # a file among the runs is no run
    ],
)
def test_what_runs_need_behind_a_link_or_another_thing_frees_nothing(tmp_path: Path, place: str, instead: str) -> None:
    store = Store(str(tmp_path / "store"))
    store.check_writable()
    commit(store, KEPT)
    pin(store, "begun", "diagnose", [f"rollouts/{KEPT}"])
    store.put_bytes(json.dumps({"artefacts": {}}).encode(), "runs", "done", "run.json")
    there, moved = tmp_path / "store" / place, tmp_path / "moved"
    there.rename(moved)
    there.symlink_to(moved)  # on another disk: as good as here
    assert unreachable(store, older=0.0) == []
    there.unlink()
    if instead == "folder or file":
        there.mkdir() if moved.is_file() else there.write_bytes(b"")
    else:
        there.symlink_to(tmp_path / "unmounted" if instead == "dangling" else there)
    for arguments in (("gc", "--dry-run"), ("gc", "--yes")):
        code, out = call(tmp_path / "store", *arguments, "--older-than", "0")
        assert code == 2 and out.startswith(f"{place} in ") and "what runs need is not known" in out, out
    assert store.has("rollouts", KEPT)


def test_what_goes_while_runs_are_looked_at_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.check_writable()
    store.put_bytes(b"of somebody else", "runs", "notes.txt")
    monkeypatch.setattr(store, "names", lambda *parts: ["gone"] if len(parts) == 1 else ["run.json"])
    assert reachable(store) == set()
    (tmp_path / "runs" / "gone").mkdir()
    assert reachable(store) == set()


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


@pytest.mark.parametrize(
    "url", ["simplecache::file://{}", "filecache::{}", "dir::local://{}", "simplecache::dir::file://{}", "zip://x::{}"]
)
def test_a_folder_here_behind_another_protocol_is_no_store(tmp_path: Path, url: str) -> None:
    folder, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        Store(str(place)).check_writable()
        commit(Store(str(place)), FREE)
    shutil.rmtree(folder / "rollouts")
    (folder / "rollouts").symlink_to(elsewhere / "rollouts")
    done = CliRunner().invoke(app, ["store", "gc", "--older-than", "0", "--yes", "--store", url.format(folder)])
    assert done.exit_code == 2 and "give the folder itself" in done.output, done.output
    assert Store(str(elsewhere)).has("rollouts", FREE)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for arguments in (("ls",), ("verify",), ("gc", "--yes")):
        code, out = call(tmp_path / "file", *arguments)
        assert code == 2 and "is a file; give the folder of a store" in " ".join(out.split())


@pytest.mark.parametrize("error", LASTING)
def test_what_waiting_does_not_change_is_no_reason_to_run_again(
    error: type[OSError], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise error(1, "so it is", "/store/runs")

    assert guarded(fails) == 2
    told = capsys.readouterr().err
    assert told.strip() == "[Errno 1] so it is: '/store/runs'"


def test_a_url_of_no_host_is_wrong_and_not_away() -> None:
    with pytest.raises(StoreError, match="http://"):
        Store("http://").check_writable()


def test_only_the_first_names_are_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.check_writable()
    for i in range(25):
        store.put_bytes(b"x", "trees", digest(i), OBJECT)
    code, out = call(tmp_path, "gc", "--older-than", "0", "--dry-run")
    assert code == 0 and out.count(f"/{OBJECT}") == 20 and "and 5 more" in out


def outside(folder: Path) -> list[Path]:
    """Files that are not ours, in a folder that somebody uses as a store as well."""
    key = digest("anything")
    names = [
        "values/2019/measured.csv",
        "trees/oak/artefact.zarr.zip",
        f"trees/{key}/notes.txt",
        f"trees/{key}/round-0000.zarr.zip",  # a name of another stage's
        f"trees/{key}/deeper/artefact.zarr.zip",
        f"rounds/{key}/.hidden",
        f"rounds/{key.upper()}/round-0000.zarr.zip",
        f"rollouts/{key}.zip",
        f"calibration/{key}/rows.parquet.bak",
        f"calibration/{key}/.rows.parquet.swp",
    ]
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of somebody else")
    return paths


def test_only_what_is_ours_is_listed_verified_and_removed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    store = Store(str(folder))
    store.check_writable()
    foreign = outside(folder)
    real = Store(str(elsewhere))
    key, another = digest("linked"), digest("another")
    for stage in ("ideal", "prior"):
        commit(real, key)
        (elsewhere / stage / key).mkdir(parents=True)
        foreign.append(elsewhere / stage / key / OBJECT)
        foreign[-1].write_bytes(b"of somebody else")
    (folder / "ideal").symlink_to(elsewhere / "ideal")  # a stage, a key, an object
    (folder / "prior").mkdir()
    (folder / "prior" / another).symlink_to(elsewhere / "prior" / key)
    (folder / "alignment" / another).mkdir(parents=True)
    (folder / "alignment" / another / OBJECT).symlink_to(elsewhere / "prior" / key / OBJECT)

    left = folder / "rounds" / digest("anything") / f".round-0001.zarr.zip.{'0' * 32}"  # of a write that was killed
    left.write_bytes(b"half")
    commit(store, FREE)
    assert sum(held.objects for held in holdings(store)) == 2
    code, out = call(folder, "verify", "--repair")
    assert code == 0 and out.endswith("0 damaged\n")
    code, out = call(folder, "gc", "--older-than", "0", "--yes")
    assert code == 0 and out.startswith("2 artefacts")
    assert not left.exists() and not (folder / "rollouts" / FREE).exists()
    assert all(path.read_bytes() == b"of somebody else" for path in foreign)
    assert (folder / "alignment" / another / OBJECT).is_symlink()


def test_listing_beside_a_run_that_commits_and_removes(tmp_path: Path) -> None:
    store, over = Store(str(tmp_path)), threading.Event()
    store.check_writable()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in itertools.count():
                if over.is_set():
                    return
                key = digest([seed, i % 7])
                for name in ("round-0000.zarr.zip", "part-0001-000000000.zarr.zip"):
                    store.put_note(b"x", "rounds", key, name)
                remove(store, [Stored("rounds", key, "round-0000.zarr.zip", 1, 0.0)])
                remove(store, [Stored("rounds", key, "part-0001-000000000.zarr.zip", 1, 0.0)])
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=work, args=(0,)) for _ in range(2)]  # of the same keys
    for worker in workers:
        worker.start()
    try:
        listed, until = 0, time.monotonic() + 3.0
        while time.monotonic() < until:
            listed += 1
            assert holdings(store)[1].stage == "rounds"
            assert damaged(store) is not None
            unreachable(store, older=DAY)
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert errors == [] and listed > 10


def test_a_run_that_leaves_questions_out_tells_what_it_needs_then(store: Store) -> None:
    more = [f"rollouts/{FREE}"]
    pin_also(store, "begun", "diagnose", more)
    assert unreachable(store, older=0.0) == []
    pin(store, "begun", "diagnose", [f"rollouts/{KEPT}", f"trees/{COMING}"])  # the same run beside it, or again
    assert unreachable(store, older=0.0) == []
    pin(store, "begun", "diagnose", [f"rollouts/{KEPT}"])  # another configuration
    time.sleep(0.01)
    assert [item.key for item in unreachable(store, older=0.0)] == [FREE]


def test_what_a_run_has_come_to_need_since_is_not_removed(store: Store) -> None:
    time.sleep(0.01)
    free = unreachable(store, older=0.0)
    assert [item.key for item in free] == [FREE]
    pin(store, "later", "rank", [f"rollouts/{FREE}"])  # while somebody was asked whether to remove it
    assert sweep(store, free) == 0 and store.has("rollouts", FREE)


def test_a_store_of_another_format_is_refused(store: Store) -> None:
    assert store.format() == 1
    store.put_bytes(b'{"format": 2}', MARKER)
    with pytest.raises(StoreError, match="has format 2, this version of opdscope writes 1"):
        store.check_writable()
    for damage in (b"", b"[", b"[1]", b"null"):
        store.put_bytes(damage, MARKER)
        store.check_writable()
        assert store.format() == 1
