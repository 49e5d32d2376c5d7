"""`opdscope store`: what it lists, what it calls damaged, and that it removes only what it was told to."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flows.command.store import collect, show, verify
from tasks.store.keys import digest
from tasks.store.references import pin
from tasks.store.store import MARKER, Store, StoreError

OBJECT = "round-0000.zarr.zip"
KEYS = [digest(n) for n in range(25)]


def commit(store: Store, key: str) -> None:
    made = {"success": np.ones(3, dtype=bool), "truncated": np.zeros(3, dtype=bool), "length": np.ones(3, "int32")}
    store.commit("rounds", key, made, {}, name=OBJECT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three artefacts, the first of which a run needs."""
    made = Store(str(tmp_path / "[store]"))
    made.check_writable()
    for key in KEYS[:3]:
        commit(made, key)
    pin(made, "[run]", "diagnose", [f"rounds/{KEYS[0]}"])
    time.sleep(0.01)
    return made


class Told(Console):
    """A console that keeps what is printed, and has nobody to ask."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=200, highlight=False, emoji=False)

    @property
    def text(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


def there(store: Store) -> list[bool]:
    return [store.get_bytes("rounds", key, OBJECT) is not None for key in KEYS[:3]]


def damage(store: Store, key: str) -> None:
    store.put_bytes((store.get_bytes("rounds", key, OBJECT) or b"")[:-9], "rounds", key, OBJECT)


def test_what_is_held_is_counted_and_names_are_shown_as_they_are(store: Store) -> None:
    told = Told()
    assert show(store, told) == 0
    assert "[store]" in told.text and "runs: [run]\n" in told.text and "at work now: 0\n" in told.text
    row = next(line for line in told.text.splitlines() if " rounds " in line)
    assert row.replace("│", " ").split()[:3] == ["rounds", "3", "3"]


def test_an_empty_store_holds_nothing(tmp_path: Path) -> None:
    store, told = Store(str(tmp_path)), Told()
    assert show(store, told) == 0 and "runs: none\n" in told.text
    assert verify(store, told, repair=False) == 0 and "0 damaged\n" in told.text
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told_and_stays_unless_it_is_to_be_repaired(store: Store) -> None:
    damage(store, KEYS[1])
    told = Told()
    assert verify(store, told, repair=False) == 1 and there(store) == [True] * 3
    assert f"damaged: rounds/{KEYS[1]}/{OBJECT}\n1 damaged\n" in told.text
    told = Told()
    assert verify(store, told, repair=True) == 0 and there(store) == [True, False, True]
    assert "1 damaged, removed: the next run makes them again\n" in told.text
    told = Told()
    assert verify(store, told, repair=True) == 0 and told.text.endswith("0 damaged\n")


@pytest.mark.parametrize("yes", [True, False])
def test_only_what_no_run_needs_goes_and_only_with_leave(
    yes: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(question: str, **_: object) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr("flows.command.store.Confirm.ask", ask)
    told = Told()
    assert collect(store, told, days=0.0, yes=yes, dry_run=False) == 0
    assert there(store) == ([True, False, False] if yes else [True] * 3) and bool(asked) != yes
    assert "2 artefacts (0.0 MB) that no run in runs/ refers to, older than 0 days\n" in told.text
    assert ("removed 2 artefacts\n" in told.text) == yes and KEYS[0] not in told.text


def test_a_dry_run_and_young_artefacts_remove_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.command.store.Confirm.ask", lambda *_, **__: pytest.fail("asked"))
    told = Told()
    assert collect(store, told, days=0.0, yes=True, dry_run=True) == 0
    assert "2 artefacts" in told.text and KEYS[2] in told.text
    told = Told()
    assert collect(store, told, days=1.0, yes=False, dry_run=False) == 0
    assert told.text == "0 artefacts (0.0 MB) that no run in runs/ refers to, older than 1 days\n"
    assert there(store) == [True] * 3


def test_of_very_many_the_first_are_named(store: Store) -> None:
    for key in KEYS[3:]:
        commit(store, key)
    time.sleep(0.01)
    told = Told()
    collect(store, told, days=0.0, yes=False, dry_run=True)
    assert told.text.count("  rounds/") == 20 and told.text.endswith("  and 4 more\n")


def test_a_folder_that_nothing_marks_as_a_store_is_left_alone(store: Store) -> None:
    store.remove(MARKER)
    damage(store, KEYS[1])
    with pytest.raises(StoreError, match="so it may not be a store and nothing is removed"):
        collect(store, Told(), days=0.0, yes=True, dry_run=False)
    with pytest.raises(StoreError, match="so it may not be a store and nothing is removed"):
        verify(store, Told(), repair=True)
    assert there(store) == [True] * 3
    assert verify(store, Told(), repair=False) == 1


def test_unreadable_references_remove_nothing(store: Store) -> None:
    store.put_bytes(b"{", "runs", "[run]", "references-diagnose.json")
    with pytest.raises(StoreError):
        collect(store, Told(), days=0.0, yes=True, dry_run=False)
    assert there(store) == [True] * 3
