"""A night, piece by piece: which runs are done, what is told of each, and what a failure of one costs the others."""

import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import polars as pl
import pytest
from markdown_it import MarkdownIt
from prefect.states import Completed, Failed

from flows import nightly as module
from flows.command.configuration import checked
from flows.command.suite import checked_suite
from flows.diagnose import QuestionsFailedError, batches
from flows.nightly import finished_key, message, night_page, read_history, sentence
from schemas.config import NightlyConfig
from tasks.calibration.figure import Figure, Range
from tasks.outputs.files import parquet_bytes, write_run
from tasks.outputs.history import SCHEMA, compared, no_history
from tasks.run.session import start_session
from tasks.store.store import Store, StoreError
from tests.outputs.test_history import rows

RUN: dict[str, Any] = {"questions": {"path": "q.jsonl"}, "student": {"path": "s"}, "teachers": [{"name": "t"}]}


def row(**change: Any) -> dict[str, Any]:
    plain = {"run": "r", "teacher": "t", "context": "none", "loss": "kl", "rollouts": "all", "alignment": 0.5}
    return {**plain, "alignment_low": 0.4, "alignment_high": 0.6, "reference": 0.25, "reference_error": 0.125, **change}


def test_a_move_is_told_with_both_half_widths() -> None:
    assert sentence(row()) == "r: t/none by kl, all rollouts: 0.500 ± 0.100, was 0.250 ± 0.125"
    assert sentence(row(alignment=None)) == "r: t/none by kl, all rollouts: no longer defined, was 0.250"


def test_every_move_that_can_be_marked_can_be_told() -> None:
    """Scores without an interval among them."""
    for before in (0.1, None):
        for half in (0.01, None):
            old = rows(0, ("kl", before, half or 0.0))
            old = old if half else old.with_columns(pl.lit(None, pl.Float64).alias("alignment_low"))
            history = compared(no_history(), old, 7)
            for now in (0.9, -0.9, None):
                found = compared(history, rows(1, ("kl", now, 0.01)), 7)
                for moved in found.filter(pl.col("change").is_in(["up", "down", "lost"])).iter_rows(named=True):
                    assert sentence(moved).startswith("run: t/none by kl")


def result(**change: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": "s", "computed": [], "moved": [], "slower": [], "calibration": [], "failed": {}}
    return {**plain, "regressions": [], **change}


def test_a_page_of_a_night_without_runs_or_scores() -> None:
    assert night_page(result(), no_history()) == "0 of 0 runs had something to compute.\n\nNo scores."


def test_a_page_counts_changes_and_shows_errors_as_they_are() -> None:
    new = pl.concat(
        [rows(0, ("kl", 0.1, 0.1), ("jsd", 0.1, 0.1)), rows(0, ("kl", 0.2, 0.1)).with_columns(run=pl.lit("x"))]
    )
    new = new.with_columns(change=pl.Series(["new", "up", "new"]))
    hostile = "<img src=x> `a` *b* [c](d)\n# e"
    text = night_page(result(computed=["run"], failed={"y_z": hostile}, slower=["slow_er"]), new)
    assert text.startswith("1 of 2 runs had something to compute.\n\n2 new, 1 up\n")
    assert "Moved" not in text and "Calibration" not in text
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "<li>y_z: &lt;img src=x&gt; `a` *b* [c](d) # e</li>" in page and "<li>slow_er</li>" in page


def test_a_message_holds_every_regression() -> None:
    assert message(result(regressions=["a", "b"])) == "opdscope s: 2 regressions\na\nb"


def test_nights_before_the_first_are_none_and_later_ones_are_read(tmp_path: Any) -> None:
    store = Store(str(tmp_path))
    assert read_history(store, "s").equals(no_history())
    kept = compared(no_history(), rows(0, ("kl", 0.1, 0.1)), 7)
    store.put_bytes(parquet_bytes(kept), "nightly", "s", "history.parquet")
    assert read_history(store, "s").equals(kept) and read_history(store, "other").is_empty()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"garbage", "is damaged"),
        (parquet_bytes(no_history().drop("machine")), "other columns than this version writes"),
    ],
)
def test_a_history_that_cannot_be_read_is_told_with_its_file(content: bytes, problem: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put_bytes(content, "nightly", "s", "history.parquet")
    with pytest.raises(StoreError, match=f"history.parquet of suite 's' in '.*' .*{problem}"):
        read_history(store, "s")


class Night(NamedTuple):
    """A suite's night with its parts put in the place of flows."""

    store: Store
    events: list[tuple[str, dict[str, Any]]]
    patch: pytest.MonkeyPatch

    def of(self, *names: str, **suite: Any) -> dict[str, Any]:
        config = self.suite(*names, **suite)
        return module._nightly(config, self.store)

    def suite(self, *names: str, **suite: Any) -> NightlyConfig:
        runs = [{**RUN, "name": name, "execution": {"retries": 0}} for name in names]
        return checked_suite({"name": "s", "store": self.store.url, "runs": runs, **suite})


@pytest.fixture
def night(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Night:
    events: list[tuple[str, dict[str, Any]]] = []

    def emit(name: str, resource: object, payload: dict[str, Any]) -> None:
        events.append((name, payload))

    monkeypatch.setattr(module, "emit_event", emit)
    for name in ("table_artifact", "markdown_artifact", "get_run_logger"):
        monkeypatch.setattr(module, name, Mock())
    monkeypatch.setattr(module, "finished_key", lambda run: None)
    monkeypatch.setattr(module, "_diagnosed", lambda run: ({"aggregate": run.name, "stages": {}}, None))
    monkeypatch.setattr(module, "read_table", lambda store, run, name: SUMMARY)
    monkeypatch.setattr(module, "_PATIENCE", (0, 0.0))
    return Night(Store(str(tmp_path)), events, monkeypatch)


SUMMARY = pl.DataFrame(
    [
        {
            "group": "all",
            "bin": "all",
            "teacher": "t",
            "context": "none",
            "loss": "kl",
            "alignment": 0.5,
            "alignment_low": 0.4,
            "alignment_high": 0.6,
        }
    ]
)


def test_an_ordinary_night_sends_one_event_and_writes_what_it_tells(night: Night) -> None:
    told = night.of("a", "b")
    assert told["computed"] == ["a", "b"] and told["regressions"] == told["moved"] == []
    assert [name for name, _ in night.events] == [module.FINISHED]
    assert json.loads(night.store.get_bytes("nightly", "s", "nightly.json") or b"") == told
    kept = read_history(night.store, "s")
    assert kept["run"].to_list() == ["a", "b"] and kept.schema == pl.Schema(SCHEMA)
    assert kept["change"].to_list() == ["new", "new"]


def test_a_run_without_anything_new_costs_nothing_and_stays_in_the_history(night: Night) -> None:
    night.of("a")
    night.patch.setattr(module, "finished_key", lambda run: run.name)
    night.patch.setattr(module, "_diagnosed", lambda run: pytest.fail("it was done again"))
    told = night.of("a")
    assert told["computed"] == [] and read_history(night.store, "s")["change"].to_list() == ["new", "unchanged"]


@pytest.mark.parametrize("error", [StoreError("[x]"), OSError("disk"), ValueError("a mistake")])
def test_a_run_that_cannot_be_done_costs_the_others_nothing_but_mistakes_are_not_hidden(
    error: Exception, night: Night
) -> None:
    def diagnosed(run: Any) -> Any:
        if run.name == "bad":
            raise error
        return {"aggregate": run.name, "stages": {}}, None

    night.patch.setattr(module, "_diagnosed", diagnosed)
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="a mistake"):
            night.of("a", "bad", "b")
        assert read_history(night.store, "s")["run"].to_list() == ["a"]  # what was done is kept
        return
    told = night.of("a", "bad", "b")
    assert told["computed"] == ["a", "b"] and told["failed"] == {"bad": f"{type(error).__name__}: {error}"}
    assert [name for name, _ in night.events] == [module.FINISHED, module.REGRESSION]
    assert night.events[1][1]["message"].startswith("opdscope s: 1 regressions\nbad: ")


def test_a_run_of_which_some_questions_failed_has_rows_and_an_error(night: Night) -> None:
    night.patch.setattr(module, "_diagnosed", lambda run: ({"aggregate": "k", "stages": {}}, "1 questions failed"))
    told = night.of("a")
    assert told["failed"] == {"a": "1 questions failed"} and told["computed"] == ["a"]


def test_what_got_better_is_no_regression_and_what_got_worse_or_slower_is(night: Night) -> None:
    before = compared(no_history(), rows(0, ("kl", 0.9, 0.01), machine="m", tokens_per_second=100.0), 7)
    before = before.with_columns(run=pl.lit("down"))
    up = before.with_columns(
        run=pl.lit("up"), alignment=pl.lit(0.1), alignment_low=pl.lit(0.1), alignment_high=pl.lit(0.1)
    )
    night.store.put_bytes(parquet_bytes(pl.concat([before, up])), "nightly", "s", "history.parquet")
    night.patch.setattr("flows.nightly.platform.node", lambda: "m")
    trees = {"trees": {"decoded_tokens": 100, "seconds": 2.0}}
    night.patch.setattr(module, "_diagnosed", lambda run: ({"aggregate": "k", "stages": trees}, None))
    told = night.of("down", "up")
    assert len(told["moved"]) == 2 and len(told["slower"]) == 2
    assert [r.partition(":")[0] for r in told["regressions"]] == ["down", "down", "up"]  # moved, slower, slower
    assert "50 tokens/s on m, 50 % below" in told["slower"][0]


def test_a_calibration_that_fails_or_errs_is_told(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    states: Any = iter([Completed(data="rows"), Failed(data=ValueError("no rows"))])
    monkeypatch.setattr(module, "calibrate", lambda config, return_state: next(states))
    bad = [Figure("bias", 0.5, 0.01, 3, Range(-0.01, 0.01, "within .01")), Figure("fine", 0.0, 0.0, 3)]
    monkeypatch.setattr(module, "figures", lambda rows: bad)
    told = night.of("a", calibrate={"name": "c"})
    assert told["calibration"] == told["regressions"] == ["bias: 0.500 ± 0.010, must be within .01"]
    told = night.of("a", calibrate={"name": "c"})
    assert told["calibration"] == [] and told["failed"] == {"c": "ValueError: no rows"}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ValueError("x"), (None, "ValueError: x")),
        (QuestionsFailedError({"q": "e"}), (None, "1 questions failed, run again to try them: q: e")),
        (
            QuestionsFailedError({"q": "e"}, {"name": "r"}),
            ({"name": "r"}, "1 questions failed, run again to try them: q: e"),
        ),
        ({"name": "r"}, ({"name": "r"}, None)),
    ],
)
def test_what_a_diagnosis_gives(data: Any, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = (Failed if isinstance(data, Exception) else Completed)(data=data)
    monkeypatch.setattr(module, "diagnose", lambda run, return_state: state)
    run: Any = None
    assert module._diagnosed(run) == found


def test_a_run_is_finished_where_its_tables_are_those_of_its_artefacts(settings: dict[str, Any]) -> None:
    config = checked(settings)
    assert finished_key(config) is None
    session = start_session(config)
    ids = session.keys.questions
    outputs: dict[str, Any] = {"files": {}, "why_unresolved": None}
    session.keys.leave_out(ids[:1])
    write_run(session, ids[1:], {ids[0]: "all hit the limit"}, [], outputs, {})
    assert finished_key(config) == session.keys.aggregate(ids[1:])
    assert finished_key(checked({**settings, "seed": 3})) is None
    assert finished_key(checked({**settings, "execution": {"questions_per_task": 1}})) is not None
    write_run(session, ids[1:], {ids[0]: "all hit the limit"}, [ids[0]], outputs, {})
    assert finished_key(config) is None  # one that failed is tried again
    write_run(session, ids[1:], {}, [], {"files": {"report.html": "0" * 64}}, {})
    assert finished_key(config) is None


@pytest.mark.parametrize(("questions", "size"), [(0, 8), (1, 8), (24, 8), (201, 8), (10_000, 8), (10_000, 5000)])
def test_batches_hold_every_question_once_and_are_few(questions: int, size: int) -> None:
    ids = [str(i) for i in range(questions)]
    found = batches(ids, size)
    assert [i for batch in found for i in batch] == ids and len(found) <= 25
    assert all(len(batch) >= min(size, questions) for batch in found[:-1])
