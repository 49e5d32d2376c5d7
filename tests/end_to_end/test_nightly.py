"""A suite over several nights: what moved is marked, what did not change costs nothing."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import polars as pl
import pytest
import yaml
from prefect.logging import disable_run_logger

from flows import nightly as nights
from flows.command.configuration import ConfigurationError, checked
from flows.command.suite import checked_suite, read_suite
from tasks.outputs.files import write_run
from tasks.outputs.history import SCHEMA, compared, no_history, slower, unchanged
from tasks.run.session import start_session
from tasks.store.outages import StoreAwayError
from tasks.store.store import Store, StoreError
from tests.helpers.command import Command

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def rows(
    night: int, value: float | None, *, key: str = "", half: float = 0.1, speed: float | None = None
) -> pl.DataFrame:
    row = {
        "night": FIRST + timedelta(days=night),
        "run": "run",
        "key": key or str(night),
        **dict.fromkeys(("teacher", "context", "loss"), "x"),
        "rollouts": "all",
        "alignment": value,
        "alignment_low": None if value is None else value - half,
        "alignment_high": None if value is None else value + half,
        "tokens_per_second": speed,
        "machine": "here",
    }
    return pl.DataFrame([row], schema=SCHEMA)


def history(*values: float | None, **options: Any) -> pl.DataFrame:
    out = no_history()
    for night, value in enumerate(values):
        out = pl.concat([out, compared(out, rows(night, value, **options), 7)])
    return out


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ((), 0.5, "new"),
        ((0.5,), 0.6, "steady"),  # by less than .1 * sqrt(2)
        ((0.5,), 0.65, "up"),
        ((0.5,), 0.35, "down"),
        ((0.5, 0.5, 0.5, 0.1), 0.39, "steady"),  # the reference is the mean of the nights
        ((0.5,), None, "lost"),
        ((None,), 0.5, "new"),
        ((0.5, None), 0.5, "steady"),
    ],
)
def test_what_moved_beyond_its_interval_is_marked(
    before: tuple[float | None, ...], now: float | None, change: str
) -> None:
    done = compared(history(*before), rows(9, now), 7)
    assert done["change"].to_list() == [change]


def test_only_the_last_measurements_count() -> None:
    done = compared(history(0.9, 0.9, 0.5, 0.5), rows(9, 0.5), 2)
    assert done["reference"][0] == pytest.approx(0.5) and done["change"][0] == "steady"


def test_a_night_that_computes_nothing_is_no_measurement() -> None:
    before = history(0.5)
    again = unchanged(before, "run", "0", FIRST + timedelta(days=1))
    assert again is not None and again["change"].to_list() == ["unchanged"]
    assert unchanged(before, "run", "other", FIRST) is None and unchanged(before, "other", "0", FIRST) is None
    both = pl.concat([before, again])
    assert unchanged(both, "run", "0", FIRST + timedelta(days=2)) is not None
    assert compared(both, rows(3, 0.65), 1)["change"].to_list() == ["up"]


def test_speed_is_compared_with_the_median_of_the_same_machine() -> None:
    before = history(0.5, 0.5, 0.5, speed=100.0)
    assert slower(before, rows(5, 0.5, speed=80.0), 7, 0.25) is None
    assert "70 tokens/s on here, 30 % below" in str(slower(before, rows(5, 0.5, speed=70.0), 7, 0.25))
    elsewhere = rows(5, 0.5, speed=10.0).with_columns(machine=pl.lit("there"))
    assert slower(before, elsewhere, 7, 0.25) is None
    assert slower(before, rows(5, 0.5), 7, 0.25) is None


def test_a_suite_that_cannot_be_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="runs: 'small' appears twice"):
        checked_suite({"runs": [settings, settings]})
    with pytest.raises(ConfigurationError, match=r"runs\.0\.tree\.nodes: input should be a valid integer"):
        checked_suite({"runs": [{**settings, "tree": {**settings["tree"], "nodes": "x"}}]})
    (tmp_path / "suite.yaml").write_text("runs: [missing.yaml]")
    with pytest.raises(ConfigurationError, match=r"missing\.yaml' does not exist"):
        read_suite(tmp_path / "suite.yaml")


def test_three_nights(settings: dict[str, Any], cli: Command, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "store"}))
    store = tmp_path / "store"
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"name": "suite", "store": str(store), "runs": ["small.yaml"]}))

    def night() -> tuple[int, str, str]:
        done = cli("nightly", str(suite))
        return done.exit_code, done.stdout, done.stderr

    code, out, err = night()
    assert code == 0 and "computed: small" in out, err
    code, out, err = night()
    assert code == 0 and "nothing has changed" in out, err
    found = pl.read_parquet(store / "nightly" / "suite" / "history.parquet")
    assert dict(found.group_by("change").len().iter_rows()).keys() == {"new", "unchanged"}

    # as if the nights before had seen other scores
    other = {"alignment": 9.0, "alignment_low": 8.99, "alignment_high": 9.01, "key": "other"}
    found.with_columns(**{name: pl.lit(value) for name, value in other.items()}).write_parquet(
        store / "nightly" / "suite" / "history.parquet"
    )
    code, out, err = night()
    assert code == 1 and "moved: small: large/none by reverse_kl" in out and "regressions" in err, out + err
    told = json.loads((store / "nightly" / "suite" / "nightly.json").read_text())
    assert told["regressions"] and told["computed"] == ["small"] and not told["failed"]


def test_a_run_that_cannot_begin_does_not_end_the_night(settings: dict[str, Any], cli: Command, tmp_path: Path) -> None:
    lost = {**settings, "name": "lost", "questions": {"path": str(tmp_path / "gone.jsonl")}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"name": "suite", "store": settings["store"], "runs": [lost, settings]}))
    done = cli("nightly", str(suite))
    assert done.exit_code == 1 and "computed: small" in done.stdout, done.stderr
    assert "lost: InputError: questions.path:" in done.stderr and "gone.jsonl" in done.stderr
    told = json.loads((Path(settings["store"]) / "nightly" / "suite" / "nightly.json").read_text())
    assert list(told["failed"]) == ["lost"] and told["computed"] == ["small"]


def night_of(runs: list[dict[str, Any]], store: str) -> dict[str, Any]:
    with (
        disable_run_logger(),
        patch.multiple(
            nights,
            runtime=Mock(),
            table_artifact=Mock(),
            markdown_artifact=Mock(),
            emit_event=Mock(),
            get_run_logger=Mock(),
        ),
    ):
        return nights._nightly(checked_suite({"name": "suite", "store": store, "runs": runs}), Store(store))


def test_a_store_that_is_away_for_a_moment_costs_no_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that cannot be read at once is waited for; one that is gone fails its run, and the others have rows."""
    summary = pl.DataFrame(
        [
            {
                "group": "all",
                "bin": "all",
                **dict.fromkeys(("teacher", "context", "loss"), "x"),
                "alignment": 0.5,
                "alignment_low": 0.4,
                "alignment_high": 0.6,
            }
        ]
    )
    tried: list[str] = []

    def read(store: Store, run: str, name: str) -> pl.DataFrame:
        tried.append(run)
        if run == "gone":
            raise StoreError("the outputs are gone")
        if run == "away" and tried.count(run) < 3:
            raise StoreAwayError("away")
        return summary

    monkeypatch.setattr(nights, "finished_key", lambda _: None)
    monkeypatch.setattr(nights, "_diagnosed", lambda run: ({"aggregate": run.name, "stages": {}}, None))
    monkeypatch.setattr(nights, "read_table", read)
    runs = [{**settings, "name": name, "execution": {"retry_seconds": 0.0}} for name in ("one", "away", "gone", "last")]
    told = night_of(runs, settings["store"])
    assert told["failed"] == {"gone": "StoreError: the outputs are gone"}
    assert told["computed"] == ["away", "last", "one"]
    kept = pl.read_parquet(Path(settings["store"]) / "nightly" / "suite" / "history.parquet")
    assert kept["run"].to_list() == ["one", "away", "last"]


def test_a_question_that_is_no_longer_asked_is_something_new(
    settings: dict[str, Any], questions: Path, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(questions.read_text().splitlines(keepends=True)[:-1]))
    before = start_session(checked(settings))
    with disable_run_logger():
        write_run(before, before.keys.questions, {}, [], {"files": {}, "why_unresolved": None}, {})
    assert nights.finished_key(checked(settings)) is not None
    assert nights.finished_key(checked({**settings, "questions": {"path": str(fewer)}})) is None
