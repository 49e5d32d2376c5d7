"""Suites: read with the runs that they name, refused by field, done and told of; and what is served."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.command import guarded as guarded_module
from flows.command.configuration import ConfigurationError
from flows.command.guarded import BAD_INPUT, FAILED, OK
from flows.command.places import absolute
from flows.command.suite import checked_suite, read_suite, run_nightly, serve_all
from tasks.store.leases import LeaseManager
from tasks.store.store import Store

RUN = {"name": "one", "questions": {"path": "q.jsonl"}, "student": {"path": "s"}, "teachers": [{"name": "t"}]}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a server nor files in the folder of the tests."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr("flows.service.own_server.server_of_command", nullcontext)
    monkeypatch.setattr(guarded_module, "prepare", lambda: None)
    monkeypatch.chdir(tmp_path)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_runs_are_read_beside_their_suite(tmp_path: Path) -> None:
    written(tmp_path / "suites" / "runs" / "one.yaml", RUN)
    suite = written(tmp_path / "suites" / "s.yaml", {"runs": ["runs/one.yaml", {**RUN, "name": "two"}]})
    assert [run["name"] for run in read_suite(suite)["runs"]] == ["one", "two"]
    checked_suite(read_suite(suite))
    with pytest.raises(ConfigurationError, match=r"runs\.0 of '.*s\.yaml': .*gone\.yaml' does not exist"):
        read_suite(written(tmp_path / "suites" / "s.yaml", {"runs": ["gone.yaml"]}))


@pytest.mark.parametrize(
    ("suite", "run", "given", "stores"),
    [
        ({}, {}, None, (".opdscope", ".opdscope")),
        ({"store": "a"}, {}, None, ("a", "a")),
        ({"store": "a"}, {"store": "b"}, None, ("a", "b")),
        ({}, {}, "c", ("c", "c")),
        ({"store": "a"}, {}, "c", ("a", "a")),
        ({}, {"store": "b"}, "c", ("c", "b")),
    ],
)
def test_the_nearest_store_counts(
    suite: dict[str, Any], run: dict[str, Any], given: str | None, stores: tuple[str, str], tmp_path: Path
) -> None:
    path = written(tmp_path / "s.yaml", {**suite, "runs": [{**RUN, **run}]})
    config = checked_suite(read_suite(path, given))
    assert (config.store, config.runs[0].store) == stores


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "runs: missing"),
        ({"runs": []}, "runs: list should have at least 1 item"),
        ({"runs": "one.yaml"}, "runs: input should be a valid list"),
        ({"runs": [3]}, "runs.0: "),
        ({"runs": [{**RUN, "seed": -1}]}, "runs.0.seed: "),
        ({"runs": [RUN, RUN]}, "runs: 'one' appears twice"),
        ({"runs": [RUN], "calibrate": {"name": "one"}}, "runs: 'one' appears twice"),
        ({"runs": [RUN], "calibrate": {"lengths": [39]}}, "calibrate.lengths: 39 is too short"),
        ({"runs": [RUN], "nights": 0}, "nights: "),
        ({"runs": [RUN], "slower": 1}, "slower: "),
        ({"runs": [RUN], "night": 3}, "night: unknown field, given 3; did you mean nights?"),
        ({"runs": [RUN], "name": "../x"}, "name: "),
    ],
)
def test_a_suite_that_cannot_be_is_refused_by_field(fields: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked_suite(read_suite(written(tmp_path / "s.yaml", fields)))
    assert str(error.value).startswith(told)


def test_a_store_means_the_same_wherever_a_run_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("store") == str(tmp_path / "store") and absolute("a/../b") == str(tmp_path / "b")
    assert absolute("~/x") == "/home/somebody/x" and absolute("s3://bucket/x") == "s3://bucket/x"
    with pytest.raises(ConfigurationError, match="--store: the URL contains a password"):
        absolute("s3://user:secret@bucket")


@pytest.mark.parametrize(
    ("result", "code", "out", "err"),
    [
        ({}, OK, ["computed: nothing, as nothing has changed"], ""),
        ({"computed": ["a", "b"]}, OK, ["computed: a, b"], ""),
        ({"computed": ["a"], "moved": ["a: [up] :on:"]}, OK, ["moved: a: [up] :on:"], ""),
        ({"regressions": ["a: [down]", "b: x"]}, FAILED, [], "opdscope s: 2 regressions\na: [down]\nb: x\n"),
    ],
)
def test_a_night_is_told_and_fails_where_something_got_worse(
    result: dict[str, Any], code: int, out: list[str], err: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    suite = written(tmp_path / "s.yaml", {"runs": [RUN]})
    plain: dict[str, Any] = {"name": "s", "computed": [], "moved": [], "regressions": []}
    monkeypatch.setattr("flows.nightly.nightly", lambda config: {**plain, **result})
    assert run_nightly(suite) == code
    told = capsys.readouterr()
    assert told.err == err and set(out) <= set(told.out.splitlines())


@pytest.mark.usefixtures("prefect_here")
def test_a_suite_that_is_already_running_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = written(tmp_path / "s.yaml", {"name": "s", "store": str(tmp_path / "store"), "runs": [RUN]})
    with LeaseManager(Store(str(tmp_path / "store")), 60.0).acquire("nightly-s") as acquired:
        assert acquired and run_nightly(suite) == FAILED
    assert "suite 's' is already running in another process\n" in capsys.readouterr().err


def test_a_suite_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_nightly(tmp_path / "gone.yaml") == BAD_INPUT
    assert "gone.yaml' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "suite", "options", "told"),
    [
        (None, None, {"cron": "0 3 * * *"}, "--cron: '0 3 * * *' given, but no suite; name one with --suite"),
        (None, None, {"store": "s3://user:secret@bucket"}, "--store: the URL contains a password"),
        (None, None, {"store": "file"}, "--store: "),
        ({**RUN, "seed": -1}, None, {}, "seed: "),
        (None, {"runs": []}, {}, "runs: "),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_server_is_started(
    config: Any, suite: Any, options: dict[str, Any], told: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("flows.service.serve.serve", lambda *_: pytest.fail("served"))
    (tmp_path / "file").write_text("x")
    paths = [
        None if content is None else written(tmp_path / name, content)
        for name, content in (("c.yaml", config), ("s.yaml", suite))
    ]
    arguments: dict[str, Any] = {"cron": None, "store": "store", **options}
    assert serve_all(*paths, **arguments) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith(told) and "secret" not in error
