"""Artefacts that are read when they are looked at, those of one question at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.store.codec import Artefact, decode, encode
from tasks.store.lazy import Loaded, OneQuestion
from tasks.store.store import Store, StoreError

KEYS = {name: name * 64 for name in "abcd"}


def rounds(n: int) -> dict[str, Any]:
    return {
        "success": np.arange(n) % 2 == 0,
        "truncated": np.zeros(n, dtype=bool),
        "length": np.arange(n, dtype=np.int32),
    }


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Counts what is read of it."""
    made = Store(str(tmp_path))
    for n, key in enumerate(KEYS.values()):
        made.commit("rounds", key, rounds(n), {})
    need, read = Store.need, []

    def counted(self: Store, stage: str, key: str) -> Artefact:
        read.append(key[0])
        return need(self, stage, key)

    monkeypatch.setattr(Store, "need", counted)
    made.read = read  # type: ignore[attr-defined]
    return made


def read(store: Any) -> str:
    return "".join(store.read)


def test_nothing_is_read_before_it_is_looked_at(store: Store) -> None:
    held = OneQuestion(store)
    found = [held.loaded("q", "rounds", key) for key in KEYS.values()]
    assert read(store) == ""
    assert found[3]["length"].tolist() == [0, 1, 2]
    assert read(store) == "d"


def test_artefacts_of_one_question_are_read_once_and_those_of_the_last_are_let_go(store: Store) -> None:
    held = OneQuestion(store)
    a, b, c = (held.loaded(q, "rounds", KEYS[name]) for q, name in (("q", "a"), ("q", "b"), ("r", "c")))
    for _ in range(3):
        assert (len(a["length"]), len(b["length"])) == (0, 1)
    assert read(store) == "ab"
    assert len(c["length"]) == 2 and len(a["length"]) == 0
    assert read(store) == "abca"


def test_what_is_not_there_is_said_when_it_is_looked_at(store: Store) -> None:
    lost = OneQuestion(store).loaded("q", "rounds", "e" * 64)
    with pytest.raises(StoreError, match=r"rounds/e{64} is missing; run again to make it"):
        lost["length"]
    store.commit("rounds", "e" * 64, rounds(2), {})
    assert len(lost["length"]) == 2


def test_what_is_read_is_a_mapping() -> None:
    loaded = Loaded(lambda: rounds(3))
    assert set(loaded) == {"success", "truncated", "length"} and len(loaded) == 3 and "other" not in loaded
    with pytest.raises(KeyError):
        loaded["other"]


@pytest.mark.parametrize(("stage", "key"), [("rounds", "b" * 64), ("continuations", "a" * 64)])
def test_an_artefact_of_another_place_is_not_taken(stage: str, key: str) -> None:
    data = encode("rounds", "a" * 64, rounds(2), {})
    with pytest.raises(ValueError, match="holds another artefact"):
        decode(stage, key, data)


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_arrays_of_any_length_come_back_with_their_types(n: int) -> None:
    found = decode("rounds", "a" * 64, encode("rounds", "a" * 64, rounds(n), {"unicode": "سؤال 😀", "none": None}))
    assert found.meta == {"unicode": "سؤال 😀", "none": None}
    for name, values in rounds(n).items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name], values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": np.arange(3, dtype=np.int64)}, "dtype int64"),
        ({"length": np.arange(4, dtype=np.int32)}, "4 along D, elsewhere 3"),
        ({"more": np.arange(3)}, "are not the declared"),
    ],
)
def test_what_is_not_laid_out_as_declared_is_not_written(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Store(str(tmp_path)).commit("rounds", "a" * 64, {**rounds(3), **change}, {})
    assert list(tmp_path.iterdir()) == []
