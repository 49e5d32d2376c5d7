"""A run's outputs, loaded from its store for use in Python; tables are verified by their digests."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from schemas.tables import FORECASTS, HANDOVERS, RUN_TABLES, SUCCESS
from schemas.text import listed
from schemas.training_tables import VALIDATION_TABLES
from schemas.urls import store_of_run
from tasks.outputs.files import read_json, read_table
from tasks.stages.aggregate.tables import frame
from tasks.store.store import Store, StoreError

TABLES = (*RUN_TABLES, "ranks", *VALIDATION_TABLES)
"""The tables that runs write."""
_IN_RANKING = {"success": SUCCESS, "handover": HANDOVERS, "forecasts": FORECASTS}
"""Tables that a ranking without a diagnosis has in `rank.json`."""
_FILES = ("run", "rank", "validation")


class Tables(Mapping[str, pl.DataFrame]):
    """A run's tables by name, each read once it is asked for.

    Raises:
        StoreError: the one that is asked for is damaged, or does not match its digest.
    """

    def __init__(self, read: Mapping[str, Callable[[], pl.DataFrame]]) -> None:
        """Take what reads each table."""
        self._read = read
        self._kept: dict[str, pl.DataFrame] = {}

    def __getitem__(self, name: str) -> pl.DataFrame:
        if name not in self._kept:
            self._kept[name] = self._read[name]()
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """The outputs of a run; its tables are attributes too: `loaded.forecasts`.

    Attributes:
        name: name of the run.
        store: URL of its store.
        run: content of `run.json`; None without a diagnosis.
        rank: content of `rank.json`; None without a ranking.
        validation: content of `validation.json`; None without a validation, whose table is `tables["validation"]`.
        tables: those that the run has, as `schemas.tables` and `schemas.training_tables` declare them.
    """

    name: str
    store: str
    run: dict[str, Any] | None
    rank: dict[str, Any] | None
    validation: dict[str, Any] | None
    tables: Tables

    def __getattr__(self, name: str) -> pl.DataFrame:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            table: pl.DataFrame = tables[name]
            return table
        has = f"it has {listed(tables)}" if tables else "it has none"
        what = f"run {self.__dict__.get('name')!r} has no table {name!r}; {has}" if name in TABLES else f"no {name!r}"
        raise AttributeError(what, name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tables]

    def __repr__(self) -> str:
        return f"<run {self.name!r} in {self.store!r}: {listed(self.tables)}>"


def load_run(run: str | Path, store: str | Path = ".opdscope") -> LoadedRun:
    """The outputs of a run.

    Args:
        run: its name, or the path or URL of its folder, `<store>/runs/<name>`.
        store: path or URL of the store of a run that is given by name.

    Raises:
        StoreError: there is no such run, its outputs are damaged, or the store cannot be used.
    """
    url, name = _place(str(run), str(store))
    opened = Store(url)
    names = opened.names("runs", name)
    told = {file: _json(opened, name, file) if f"{file}.json" in names else None for file in _FILES}
    if not any(told.values()):
        there = [n for n in opened.names("runs") if not n.startswith(".")]
        others = f"there {'is' if len(there) == 1 else 'are'} {listed(there)}" if there else "there is none"
        if name in there:
            raise StoreError(f"run {name!r} in {url!r} has no outputs yet; finish it with the command that began it")
        raise StoreError(f"there is no run {name!r} in {url!r}; {others}")
    tables = {table: partial(read_table, opened, name, table) for table in TABLES if f"{table}.parquet" in names}
    ranking = told["rank"] or {}
    in_ranking = {table: columns for table, columns in _IN_RANKING.items() if table in ranking and table not in tables}
    tables |= {table: partial(frame, ranking[table], columns) for table, columns in in_ranking.items()}
    return LoadedRun(name, url, told["run"], told["rank"], told["validation"], Tables(tables))


def _json(store: Store, run: str, file: str) -> dict[str, Any]:
    content = read_json(store, run, f"{file}.json")
    if content is None:
        raise StoreError(f"{file}.json of run {run!r} in {store.url!r} is damaged; run again, or restore it")
    return content


def _place(run: str, store: str) -> tuple[str, str]:
    """URL of the store and name of the run."""
    if "/" not in run.rstrip("/"):
        return store, run
    found = store_of_run(run)
    if found is None:
        raise StoreError(f"{run!r} is not the folder of a run; give its name, or <store>/runs/<name>")
    return found
