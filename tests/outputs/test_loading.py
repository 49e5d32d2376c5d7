"""A run's outputs in Python: every table by name, verified, and errors that say what there is."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import opdscope
from opdscope import StoreError, load_run
from schemas.tables import FORECASTS, RANKS
from tasks.outputs.files import digested, parquet_bytes
from tasks.store.references import pin
from tasks.store.store import Store

TABLES = {"tokens": pl.DataFrame({"a": [1, 2]}), "forecasts": pl.DataFrame({"b": [0.5]})}


def write(store: Store, run: str, file: str, tables: dict[str, pl.DataFrame], **more: Any) -> None:
    files = digested(store, run, [(f"{name}.parquet", parquet_bytes(table)) for name, table in tables.items()])
    store.put_bytes(json.dumps({"name": run, "files": files, **more}).encode(), "runs", run, file)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    write(store, "first", "run.json", TABLES, advice="train")
    row = {name: "x" if column.dtype == "String" else 1 for name, column in FORECASTS.items()}
    write(
        store, "ranked", "rank.json", {"ranks": pl.DataFrame({"rank": [1]})}, forecasts=[row], success=[], handover=[]
    )
    return store


def test_tables_by_name_and_as_attributes(store: Store) -> None:
    run = load_run("first", store.url)
    assert list(run.tables) == ["tokens", "forecasts"] and run.tokens.equals(TABLES["tokens"])
    assert run.tables["forecasts"] is run.forecasts and run.run is not None and run.run["advice"] == "train"
    assert run.rank is None and run.validation is None and "tokens" in dir(run) and "tokens" in repr(run)
    for place in (f"{store.url}/runs/first", Path(store.url, "runs", "first"), f"{store.url}/runs/first/"):
        assert load_run(place).forecasts.equals(TABLES["forecasts"])
    with pytest.raises(AttributeError, match="run 'first' has no table 'ranks'; it has tokens, forecasts"):
        _ = run.ranks
    with pytest.raises(AttributeError, match="no 'nothing'"):
        _ = run.nothing


def test_a_ranking_has_tables_in_its_file(store: Store) -> None:
    run = load_run("ranked", store.url)
    assert list(run.tables) == ["ranks", "success", "handover", "forecasts"]
    assert run.forecasts.columns == list(FORECASTS) and run.forecasts["forecast"].to_list() == [1.0]
    assert run.success.is_empty() and run.rank is not None and set(RANKS) > {*run.ranks.columns}


def test_a_place_relative_to_the_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.url)
    assert load_run("runs/first").store == "." and load_run("first", ".").name == "first"
    monkeypatch.chdir(Path(store.url).parent)
    Path("store").rename(".opdscope")
    assert load_run("first").tokens.height == 2


def test_what_is_not_there_or_damaged_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no run 'none' in .*; there are first, ranked"):
        load_run("none", store.url)
    with pytest.raises(StoreError, match=r"there is no run 'first' in .*elsewhere'; there is none"):
        load_run("first", tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="'a/b' is not the folder of a run; give its name, or <store>/runs/<name>"):
        load_run("a/b")
    pin(store, "begun", "diagnose", [])
    with pytest.raises(StoreError, match=r"run 'begun' in .* has no outputs yet"):
        load_run("begun", store.url)
    store.put_bytes(parquet_bytes(TABLES["forecasts"]), "runs", "first", "tokens.parquet")
    with pytest.raises(StoreError, match=r"tokens\.parquet of run 'first' .* does not match its digest"):
        _ = load_run("first", store.url).tokens
    store.put_bytes(b"{", "runs", "first", "run.json")
    with pytest.raises(StoreError, match=r"run\.json of run 'first' in .* is damaged"):
        load_run("first", store.url)


def test_other_stores_are_read_alike(store: Store) -> None:
    other = Store("memory://loading")
    write(other, "first", "run.json", TABLES)
    assert opdscope.load_run("memory://loading/runs/first").tokens.height == 2
