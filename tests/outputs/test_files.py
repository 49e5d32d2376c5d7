"""Files of a run's folder, and the tasks that write them: what is damaged is not there, what is there is not made."""

import hashlib
import io
import json
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from prefect.logging import disable_run_logger

from flows.command.configuration import checked
from schemas.pipeline import diagnosis_stages
from schemas.tables import RANKS, RUN_TABLES, SUMMARY
from tasks.operations.progress import capture_progress
from tasks.outputs import diagnosis
from tasks.outputs import tasks as output_tasks
from tasks.outputs.diagnosis import load_scores, make_outputs
from tasks.outputs.files import PACKAGES, parquet_bytes, read_json, read_run, read_table, write_files, write_run
from tasks.outputs.tasks import aggregate_task, rank_task
from tasks.run.session import RunSession, close_sessions, start_session
from tasks.run.shells import TaskSummary, run_stage
from tasks.stages.no_signal import Endings
from tasks.store.references import pin
from tasks.store.store import StoreError


@pytest.fixture
def session(settings: dict[str, Any]) -> RunSession:
    return start_session(checked(settings))


TABLE = pl.DataFrame({"a": [1, None, 3], "سؤال": ["x", "😀", None], "c": [0.1, float("nan"), None]})


def put_run(session: RunSession, *tables: str) -> dict[str, Any]:
    files = write_files(session, ((f"{name}.parquet", parquet_bytes(TABLE)) for name in tables))
    stages = {"trees": TaskSummary(made=2, cached=1, decoded_tokens=30, seconds=1.5, model_seconds=1.25)}
    outputs = {"files": files, "why_unresolved": None}
    ids = session.keys.questions
    return write_run(session, ids[1:], {ids[0]: "all hit the limit"}, [], outputs, stages)


def test_a_run_that_was_written_is_read_with_its_tables(session: RunSession) -> None:
    run = put_run(session, "one", "two")
    assert read_run(session) == json.loads(json.dumps(run)) == run
    assert read_table(session.store, "small", "two").equals(TABLE, null_equal=True)
    figures: dict[str, float] = {"made": 2, "cached": 1, "decoded_tokens": 30, "scored_tokens": 0}
    figures |= {"seconds": 1.5, "model_seconds": 1.25, "waiting_seconds": 0.0}
    assert run["stages"] == {"trees": figures}
    assert set(run["versions"]) == set(PACKAGES) and all(run["versions"].values())
    assert [len(run["artefacts"][i]) for i in run["questions"]] == [4 + 2 * 6] * (len(session.keys.questions) - 1)
    assert checked(run["configuration"]) == session.config


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"3", b"\xff"])
def test_a_damaged_run_is_not_there(content: bytes, session: RunSession) -> None:
    put_run(session, "one")
    session.store.put_bytes(content, "runs", "small", "run.json")
    assert read_run(session) is None and read_json(session.store, "small", "run.json") is None
    assert read_table(session.store, "small", "one").height == 3  # nothing says that it is another's
    session.store.put_bytes(b"PAR1", "runs", "small", "one.parquet")
    with pytest.raises(
        StoreError, match=r"one\.parquet of run 'small' in '.*' is damaged \(.*\); remove it, or restore"
    ):
        read_table(session.store, "small", "one")


def test_a_run_whose_files_are_gone_or_others_is_not_read(session: RunSession) -> None:
    put_run(session, "one", "two")
    session.store.put_bytes(parquet_bytes(TABLE.head(1)), "runs", "small", "two.parquet")
    assert read_run(session) is None and read_table(session.store, "small", "one").height == 3
    with pytest.raises(StoreError, match=r"two\.parquet of run 'small' .*run again under another name \(--name\)"):
        read_table(session.store, "small", "two")
    session.store.remove("runs", "small", "two.parquet")
    assert read_run(session) is None
    with pytest.raises(StoreError, match="the outputs of run 'small' are missing from"):
        read_table(session.store, "small", "two")


def test_files_are_written_one_after_the_other_as_they_are_made(session: RunSession) -> None:
    def files() -> Any:
        yield "first", b"1"
        assert session.store.get_bytes("runs", "small", "first") == b"1"
        yield "second", b""
        raise ValueError("the third cannot be made")

    with pytest.raises(ValueError, match="the third"):
        write_files(session, files())
    assert session.store.get_bytes("runs", "small", "second") == b""
    assert write_files(session, [("a", b"x")]) == {"a": hashlib.sha256(b"x").hexdigest()}
    assert write_files(session, []) == {}


def test_ranks_and_tables_are_verified_by_what_was_written_last(session: RunSession) -> None:
    put_run(session, "one")
    ranks = parquet_bytes(TABLE.head(2))
    digests = write_files(session, [("ranks.parquet", ranks)])
    session.store.put_bytes(json.dumps({"files": digests}).encode(), "runs", "small", "rank.json")
    assert (
        read_table(session.store, "small", "ranks").height == 2
        and read_table(session.store, "small", "one").height == 3
    )
    session.store.put_bytes(parquet_bytes(TABLE), "runs", "small", "ranks.parquet")
    with pytest.raises(StoreError, match=r"ranks\.parquet of run 'small'"):
        read_table(session.store, "small", "ranks")


def test_the_same_table_is_the_same_bytes() -> None:
    assert parquet_bytes(TABLE) == parquet_bytes(TABLE.clone())
    assert pl.read_parquet(io.BytesIO(parquet_bytes(TABLE.clear()))).schema == TABLE.schema


def diagnosed(session: RunSession, *stages: str) -> list[str]:
    ids = session.keys.questions
    for name in stages:
        run_stage(session, name, ids)
    return ids


@pytest.fixture
def opened(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> RunSession:
    """The session that tasks open, of few questions and one teacher."""
    fewer = {"questions": {**settings["questions"], "limit": 3}, "teachers": settings["teachers"][:1]}
    session = start_session(checked({**settings, **fewer}))
    monkeypatch.setattr(output_tasks, "open_session", lambda config: session)
    return session


def aggregated(session: RunSession, ids: list[str], left_out: dict[str, str]) -> Any:
    with disable_run_logger():
        return aggregate_task.fn(session.config, ids, left_out, [])


def test_outputs_are_made_once_and_again_where_something_changed(opened: RunSession) -> None:
    ids = diagnosed(opened, *diagnosis_stages())
    outputs, summary = aggregated(opened, ids, {})
    assert summary.made == 1 and set(outputs["files"]) == {*(f"{name}.parquet" for name in RUN_TABLES), "report.html"}
    for name, columns in RUN_TABLES.items():
        table = pl.read_parquet(io.BytesIO(opened.store.get_bytes("runs", "small", f"{name}.parquet") or b""))
        assert dict(table.schema) == {column: getattr(pl, declared.dtype)() for column, declared in columns.items()}
    write_run(opened, ids, {}, [], outputs, {})
    with capture_progress() as told:
        again = aggregated(opened, ids, {})
    assert again.name == "Cached" and again.data[0] == outputs and again.data[1].cached == 1
    assert told == {"aggregate": (len(ids), 0)}
    assert aggregated(opened, ids, {"x": "y"})[1].made == 1  # another page
    assert aggregated(opened, ids[:-1], {})[1].made == 1  # other tables
    opened.store.remove("runs", "small", "summary.parquet")
    made, summary = aggregated(opened, ids, {})
    assert summary.made == 1 and made == outputs


def test_tables_of_artefacts_that_are_gone_are_an_error(opened: RunSession) -> None:
    ids = diagnosed(opened, *diagnosis_stages())
    opened.store.remove("ideal", opened.keys.key("ideal", ids[2]), "artefact.zarr.zip")
    load_scores(opened, ids)  # nothing is read before it is looked at
    with pytest.raises(StoreError, match=r"ideal/[0-9a-f]{64} is missing; run again to make it"):
        make_outputs(opened, ids, {})


def test_a_ranking_is_written_whole(opened: RunSession) -> None:
    ids = diagnosed(opened, "rollouts", "ranking")
    pin(opened.store, "small", "rank", [])
    result = rank_task.fn(opened.config, ids, {"rollouts": {"made": 6}}, {}, [])
    assert result["stages"] == {"rollouts": {"made": 6}}
    assert result["references"] == hashlib.sha256(b"[]").hexdigest()
    assert json.loads(opened.store.get_bytes("runs", "small", "rank.json") or b"") == result
    ranks = read_table(opened.store, "small", "ranks")
    assert list(ranks.columns) == list(RANKS) and ranks.height == 2 and result["questions"] == ids
    assert result["files"].keys() == {"ranks.parquet"} and (result["why_unresolved"] is None) == (
        ranks["carrying"][0] >= 5
    )
    known = ranks.filter(pl.col("gain").is_not_null())
    assert known["gain"].is_sorted(descending=True) and known["rank"].to_list() == sorted(known["rank"].to_list())


def test_sessions_are_closed() -> None:
    close_sessions()
    close_sessions()  # of none


def unresolved(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    table = pl.DataFrame(rows, schema={name: getattr(pl, c.dtype) for name, c in SUMMARY.items()})
    facts: Any = [SimpleNamespace(endings=Endings(4, 0, 0, 10, 0), nodes=1)]
    return diagnosis._why_unresolved(checked(settings), table, facts)


def test_why_scores_are_unresolved_is_said_only_where_some_are(settings: dict[str, Any]) -> None:
    known = {"group": "all", "d_sq": 1.0, "alignment": 0.5, "carrying": 9}
    lost = {**known, "alignment": None}
    always_wrong = "the student is always wrong on 1 of 1 questions"
    assert unresolved(settings, [known]) is None
    assert unresolved(settings, [known, {**lost, "group": "outcome"}]) is None  # one group of several
    assert unresolved(settings, [known, {**lost, "d_sq": 0.0}]) is None  # a teacher that teaches nothing
    assert always_wrong in str(unresolved(settings, [known, lost]))
    assert always_wrong in str(unresolved(settings, []))
