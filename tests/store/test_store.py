"""The store: what is written comes back, and what is damaged is not there."""

import errno
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import ZipStore

from schemas.arrays import DISTILLATION, ROUNDS, check_layout
from schemas.pipeline import PIPELINE, layout_of
from tasks.store.codec import decode, encode, is_whole
from tasks.store.keys import canonical, digest
from tasks.store.store import FORMAT, MARKER, OBJECT, Store, StoreError

KEY = "k" * 64


def rounds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 99, size=n, dtype=np.int32)
    return {"success": rng.random(n) < 0.5, "truncated": rng.random(n) < 0.1, "length": length}


@given(st.integers(0, 5000), st.integers(0, 9), st.dictionaries(st.text(), st.integers() | st.text()))
@settings(max_examples=30, deadline=None)
def test_what_is_encoded_is_decoded(n: int, seed: int, meta: dict[str, object]) -> None:
    meta = {f"m-{name}": value for name, value in meta.items()}
    found = decode("rounds", KEY, encode("rounds", KEY, rounds(n, seed), meta))
    assert found.meta == meta
    assert {name: a.tolist() for name, a in found.arrays.items()} == {
        name: a.tolist() for name, a in rounds(n, seed).items()
    }


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_is_seen(data: st.DataObject) -> None:
    whole = encode("rounds", KEY, rounds(300), {"seconds": 1.5})
    assert is_whole(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
    for damaged in (flipped, whole[:place]):
        assert not is_whole(damaged)
        with pytest.raises(ValueError, match="damaged"):
            decode("rounds", KEY, damaged)


def test_encoding_is_the_same_every_time() -> None:
    assert encode("rounds", KEY, rounds(100), {"a": 1}) == encode("rounds", KEY, rounds(100), {"a": 1})


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_commit_load_and_recovery(kind: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "deep" / "store") if kind == "local" else f"memory://{tmp_path.name}")
    store.check_writable()
    assert not store.has("rounds", KEY) and store.load("rounds", KEY) is None
    store.commit("rounds", KEY, rounds(10), {"seconds": 0.1})
    assert store.has("rounds", KEY)
    found = store.need("rounds", KEY)
    assert found["success"].tolist() == rounds(10)["success"].tolist() and found.meta["seconds"] == 0.1

    path = store.path("rounds", KEY, OBJECT)
    data = store.fs.cat_file(path)
    store.fs.pipe_file(path, data[:-70])  # a torn write
    assert not store.has("rounds", KEY)
    assert not store.fs.exists(path)  # what does not verify is removed
    with pytest.raises(StoreError, match="missing"):
        store.need("rounds", KEY)

    store.fs.pipe_file(path, encode("rounds", "x" * 64, rounds(10), {}))  # somebody else's artefact
    assert store.load("rounds", KEY) is None


@pytest.mark.parametrize("tokens", [0, 1, 7, 5000], ids=["none", "one", "few", "compressed"])
def test_zarr_reads_what_is_written_and_it_is_read_back(tokens: int, tmp_path: Path) -> None:
    """Also of numbers that compare as zero, or as nothing."""
    numbers, sizes = np.array([-0.0, 0.0, np.nan, -np.inf, 1e-320, 1.5]), {"T": tokens, "N": 1, "B": 2, "E": 2}
    arrays = {name: np.resize(numbers, sizes[a.dims[0]]) for name, a in DISTILLATION.items()}
    arrays["kl"][:] = 0.0  # has no chunk
    data = encode("distillation", KEY, arrays, {"seconds": 1.5})
    (tmp_path / "x.zip").write_bytes(data)
    group = zarr.open_group(ZipStore(tmp_path / "x.zip", mode="r"), mode="r")
    read = decode("distillation", KEY, data)
    assert read.meta == {"seconds": 1.5} == {k: v for k, v in group.attrs.items() if k not in ("stage", "key")}
    for name, array in arrays.items():
        of_zarr = group[name]
        assert isinstance(of_zarr, zarr.Array) and of_zarr.metadata.dimension_names == DISTILLATION[name].dims  # type: ignore[union-attr]
        for other in (read.arrays[name], np.asarray(of_zarr[...])):
            assert other.tobytes() == array.tobytes() and other.dtype == array.dtype
        read.arrays[name][...] = 0  # it may be written to
    assert encode("distillation", KEY, arrays, {"seconds": 1.5}) == data


def test_an_artefact_is_an_ordinary_zarr_group(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.commit("rounds", KEY, rounds(5000), {"seconds": 1.0})
    group = zarr.open_group(ZipStore(tmp_path / "rounds" / KEY / OBJECT, mode="r"), mode="r")
    assert group.attrs["stage"] == "rounds" and group.metadata.zarr_format == 3
    array = group["success"]
    assert isinstance(array, zarr.Array)
    assert array.metadata.dimension_names == ("D",)  # type: ignore[union-attr]
    assert array[...].tolist() == rounds(5000)["success"].tolist()  # type: ignore[union-attr]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    blocker = tmp_path / "rounds"
    blocker.write_text("a file where a folder should be")
    with pytest.raises(OSError, match="rounds"):
        store.commit("rounds", KEY, rounds(5), {})
    assert [p.name for p in tmp_path.iterdir()] == ["rounds"]


def test_layout_is_checked() -> None:
    good = rounds(5)
    check_layout("rounds", ROUNDS, good)
    for bad, message in (
        ({"success": good["success"]}, "not the declared"),
        ({**good, "success": good["success"].astype(np.int8)}, "dtype int8"),
        ({**good, "success": good["success"][:3]}, "along D"),
        ({**good, "success": good["success"][None]}, "dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            check_layout("rounds", ROUNDS, bad)
    for layout in map(layout_of, [*PIPELINE, "rounds", "continuations"]):
        assert all(np.dtype(a.dtype).kind in "bif" and a.meaning and a.dims for a in layout.values())


def test_canonical_json_has_one_form_and_no_nan() -> None:
    assert canonical({"b": 1.0, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1.0}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_an_unknown_protocol_is_a_clear_error() -> None:
    with pytest.raises(StoreError, match="nosuch://place"):
        Store("nosuch://place")


@pytest.mark.parametrize("protocol", sorted({*fsspec.available_protocols()} - {"hdfs", "arrow_hdfs"}))
def test_a_url_is_opened_or_refused_whatever_its_protocol_needs(protocol: str) -> None:
    """Of no host, so that nobody is asked; each file system fails in a way of its own."""
    try:
        Store(f"{protocol}://")
    except StoreError as error:
        assert str(error).startswith(f"cannot open '{protocol}://': ") and len(str(error).splitlines()) == 1


@pytest.mark.parametrize("url", ["{}", "memory://{}"])
def test_a_folder_of_somebody_elses_is_not_made_a_store(tmp_path: Path, url: str) -> None:
    store = Store(url.format(tmp_path))
    store.put_bytes(b"x", "passwd")
    with pytest.raises(StoreError, match=r"is not a store and contains other files \(passwd\); give a folder in it"):
        store.check_writable()
    assert store.names() == ["passwd"]
    store.put_bytes(b"{}", "runs", "small", "run.json")  # made before there were markers
    store.check_writable()
    assert store.format() == FORMAT


@pytest.mark.parametrize("name", ["prefect", "demo", "models", ".git", "rollouts"])
def test_what_stands_beside_a_new_store_is_no_hindrance(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    Store(str(tmp_path)).check_writable()
    assert Store(str(tmp_path)).format() == FORMAT


def test_a_full_disk_is_told_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.store.store.os.fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/runs/small/run.json'"):
        Store(str(tmp_path)).put_bytes(b"x", "runs", "small", "run.json")


def test_a_store_of_another_format_is_refused_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.put_bytes(b'{"format": 2}', MARKER)
    monkeypatch.setattr(Store, "put_bytes", lambda *_: pytest.fail("something was written"))
    with pytest.raises(StoreError, match="has format 2, this version of opdscope writes 1"):
        store.check_writable()


@pytest.mark.parametrize("url", ["{}", "memory://{}"])
def test_what_killed_writers_left_of_some_objects_is_removed(tmp_path: Path, url: str) -> None:
    store = Store(url.format(tmp_path))
    left, others = f".run.json.{'0' * 32}", (f".references.json.{'1' * 32}", "run.json", ".run.json.0", "x" * 40)
    for name in (left, *others):
        store.put_bytes(b"x", "runs", "small", name)
    store.remove_temporary(("runs", "small"), ["run.json", "gone.json"])
    assert set(store.names("runs", "small")) == set(others)
    store.remove_temporary(("runs", "missing"), ["run.json"])
