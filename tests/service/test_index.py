"""The index of runs: what the store tells of each, whatever lies there and whoever was killed."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import uvicorn
from s3fs import S3FileSystem
from starlette.testclient import TestClient

from flows.command.terminal import estimate
from flows.service import facts as facts_module
from flows.service import index as index_module
from flows.service.folders import Entry, read_output, run_folders
from flows.service.index import Index
from flows.service.reports import reports
from schemas.tables import FORECASTS, RANKS, SUMMARY
from tasks.outputs.files import parquet_bytes
from tasks.outputs.names import name_lease
from tasks.stages.aggregate.tables import frame
from tasks.store.keys import digest
from tasks.store.leases import FOLDER, LeaseManager
from tasks.store.references import pin, pin_also, pinned
from tasks.store.store import OBJECT, Store
from tests.helpers.browser import chromium
from tests.helpers.places import ROOT
from tests.helpers.s3 import Gate, s3_server

HOSTILE = "</script><img src=x onerror=document.title='pwned'>"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(index_module, "_PAUSE", 0.0)


def told(**more: Any) -> dict[str, Any]:
    """The content of a run's last file, as far as the index reads it."""
    stages = {"rollouts": {"decoded_tokens": 1000, "seconds": 1.5}, "trees": {"decoded_tokens": 234, "seconds": 2.0}}
    student = {"student": {"path": "models/Qwen3-1.7B"}}
    return {"configuration": student, "questions": ["a", "b"], "stages": stages, "files": {}, **more}


def forecast(value: float | None, place: int) -> dict[str, Any]:
    names = {"place": place, "teacher": "large", "context": "none", "loss": f"kl-{place}", "verdict": "", "remark": ""}
    rest = dict.fromkeys(set(FORECASTS) - names.keys(), 0.5)
    ends = {"forecast": value, "forecast_low": value and value - 0.1, "forecast_high": value and value + 0.05}
    return {**names, **rest, **ends}


def write(store: Store, run: str, file: str = "run.json", tables: Mapping[str, pl.DataFrame] = {}, **more: Any) -> None:
    files = {f"{name}.parquet": parquet_bytes(table) for name, table in tables.items()}
    for name, data in files.items():
        store.put_bytes(data, "runs", run, name)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    store.put_bytes(json.dumps(told(files=digests, **more)).encode(), "runs", run, file)


def only(store: Store, index: Index | None = None) -> dict[str, Any]:
    (row,) = (index or Index(store)).rows()
    return row


def artefacts(*stages: str) -> list[str]:
    return [f"{stage}/{digest([stage, i])}" for stage in stages for i in range(4)]


def make(store: Store, listed: list[str]) -> None:
    for artefact in listed:
        store.put_bytes(b"", *artefact.split("/"), OBJECT)


def test_a_finished_run_has_the_numbers_of_its_files(store: Store) -> None:
    rows = [forecast(0.93, 1), forecast(0.5, 2), forecast(None, 3)]
    write(store, "first", tables={"forecasts": frame(rows, FORECASTS)})
    row = only(store)
    assert (row["name"], row["kinds"], row["student"]) == ("first", ["diagnosis"], "Qwen3-1.7B")
    assert (row["questions"], row["tokens"], row["seconds"], row["state"]) == (2, 1234, 3.5, "finished")
    assert row["best"]["signal"] == "large/none by kl-1" and row["best"]["quantity"] == "forecast"
    assert row["best"]["text"] == estimate(rows[0], "forecast") == ".93 [.83, .98]"
    assert row["progress"] is None and row["remarks"] == [] and row["pages"] == []
    assert row["files"] == ["forecasts.parquet", "run.json"]
    assert abs(time.mktime(time.strptime(row["when"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time()) < 60


@pytest.mark.parametrize(
    ("file", "table", "columns"), [("run.json", "summary", SUMMARY), ("rank.json", "ranks", RANKS)]
)
def test_without_forecasts_the_best_is_by_gain(file: str, table: str, columns: Any, store: Store) -> None:
    blank = {name: "all" if column.dtype == "String" else None for name, column in columns.items()}
    rows = [{**blank, "loss": loss, "gain": gain} for loss, gain in (("kl", 0.01), ("jsd", 0.02), ("tv", None))]
    if table == "summary":
        rows.append({**rows[0], "group": "position", "gain": 0.9})
    write(store, "first", file, {table: frame(rows, columns), "forecasts": frame([forecast(None, 1)], FORECASTS)})
    best = only(store)["best"]
    assert (best["signal"], best["quantity"], best["text"]) == ("all/all by jsd", "gain", "0.0200")


def test_a_ranking_has_its_forecasts_in_its_file_and_a_validation_its_figures(store: Store) -> None:
    write(store, "first", "rank.json", forecasts=[forecast(0.25, 1)])
    figures = [{"verdict": "pass"}, {"verdict": "fail"}, {"verdict": None}]
    write(store, "first", "validation.json", questions=None, students=["a", "b"], figures=figures)
    row = only(store)
    assert row["kinds"] == ["ranking", "validation"] and row["best"]["value"] == 0.25
    assert row["remarks"] == ["validation of 2 students: 1 of 3 figures pass"]


def test_what_was_left_out_or_failed_is_said(store: Store) -> None:
    write(store, "first", left_out={"c": "no answer"})
    row = only(store)
    assert (row["state"], row["remarks"]) == ("questions left out", ["diagnosis: 1 question left out"])
    write(store, "first", left_out={"c": "no answer", "d": "error", "e": "error"}, failed=["d", "e"])
    row = only(store)
    assert row["state"] == "questions failed"
    assert row["remarks"] == [
        "diagnosis: 2 questions failed; run again to retry",
        "diagnosis: 1 question left out",
    ]


def test_a_run_goes_on_while_its_lease_is_held(store: Store) -> None:
    needed = artefacts("rollouts", "trees", "rounds")
    index, leases = Index(store), LeaseManager(store, 60.0)
    with leases.acquire(name_lease("diagnose", "first"), "need"):
        pin(store, "first", "diagnose", needed)
        row = only(store, index)
        assert (row["state"], row["kinds"]) == ("running", ["diagnosis"])
        expected = {"flow": "diagnosis", "stage": "rollouts", "made": 0, "needed": 4, "made_in_all": 0}
        assert row["progress"] == {**expected, "needed_in_all": 8}  # rounds may be cleared away
        make(store, needed[:6])
        assert only(store, index)["progress"] == {
            **{"flow": "diagnosis", "stage": "trees", "made": 2, "needed": 4},
            **{"made_in_all": 6, "needed_in_all": 8},
        }
        pin_also(store, "first", "diagnose", artefacts("prior"))
        make(store, needed[6:])
        assert only(store, index)["progress"]["stage"] == "prior"
        make(store, artefacts("prior"))
        assert only(store, index)["progress"]["stage"] == ""  # writes its outputs
        write(store, "first")
        assert only(store, index)["state"] == "running"
    assert only(store, index)["state"] == "finished" == only(store)["state"]


def test_a_killed_run_is_interrupted(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from tasks.store.leases import LeaseManager\n"
        "from tasks.store.store import Store\n"
        "from tasks.store.references import pin\n"
        "store = Store(sys.argv[1])\n"
        "with LeaseManager(store, 60.0).acquire(sys.argv[2], 'need'):\n"
        "    pin(store, 'first', 'diagnose', ['trees/' + 'a' * 64])\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path), name_lease("diagnose", "first")]
    store, index = Store(str(tmp_path)), Index(Store(str(tmp_path)))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert only(store, index)["state"] == "running"
        holder.send_signal(signal.SIGKILL)
    assert store.names(FOLDER) != []
    row = only(store, index)
    assert row["state"] == "interrupted" and row["progress"]["stage"] == "trees" and "resumes it" in row["remarks"][0]


def test_a_holder_elsewhere_is_believed_once_it_renews(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tasks.store.leases.time.monotonic", lambda: now[0])
    there, index = LeaseManager(store, 100.0), Index(store)
    monkeypatch.setattr(there, "_process", {**there._process, "machine": "another"})
    pin(store, "first", "rank", artefacts("rollouts"))
    lease = there.take(name_lease("rank", "first"))
    assert lease is not None
    row = only(store, index)
    assert row["state"] == "running or lost" and "another machine" in row["remarks"][0]
    there.renew(lease)
    assert only(store, index)["state"] == "running"
    now[0] += 90  # longer than the usual lease, shorter than its own
    assert only(store, index)["state"] == "running"
    now[0] += 20
    assert only(store, index)["state"] == "interrupted"


def test_references_that_are_newer_than_outputs_are_those_of_a_later_run(tmp_path: Path) -> None:
    store, needed = Store(str(tmp_path)), artefacts("rollouts")
    pin(store, "first", "diagnose", needed)
    write(store, "first")
    make(store, needed)
    folder, soon = tmp_path / "runs" / "first", time.time() + 100
    pin(store, "first", "diagnose", needed)  # again the same: not written
    assert only(store)["state"] == "finished"
    os.utime(folder / "references-diagnose.json", (soon, soon))  # as a copy of the store may have it
    assert only(store)["state"] == "finished"
    pin(store, "first", "diagnose", artefacts("trees"))
    os.utime(folder / "references-diagnose.json", (soon, soon))
    row = only(store)
    assert row["state"] == "interrupted" and row["questions"] == 2  # of the outputs that are there


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "run.json is damaged or half written"),
        (json.dumps(told()).encode()[:-20], "run.json is damaged or half written"),
        (b"[" * 100_000, "run.json is damaged or half written"),
        (b"\xff\xfe\x00", "run.json is damaged or half written"),
        (b"[1, 2]", "run.json is damaged or half written"),
        (json.dumps(told(questions=7)).encode(), "(questions: "),
        (json.dumps(told(stages={"trees": {"seconds": 1e999}})).encode(), "(stages.trees.seconds: "),
        (json.dumps(told(stages={"trees": {"seconds": 1e308}})).encode(), "(stages.trees.seconds: "),
        (json.dumps(told(stages={"trees": {"decoded_tokens": -3}})).encode(), "(stages.trees.decoded_tokens: "),
        (json.dumps(told(files={"forecasts.parquet": "0"})).encode(), "forecasts.parquet is missing"),
        (json.dumps(told(files={"summary.parquet": "0"})).encode(), "summary.parquet is damaged, or being written"),
    ],
)
def test_damaged_outputs_are_said_to_be_so(content: bytes, said: str, store: Store) -> None:
    store.put_bytes(content, "runs", "first", "run.json")
    store.put_bytes(b"PAR1", "runs", "first", "summary.parquet")
    pin(store, "first", "diagnose", artefacts("trees"))
    write(store, "second")
    web = TestClient(reports(store, ["testserver"]))
    first, second = web.get("/runs.json").json()["runs"]
    assert first["state"] == "damaged" and said in first["remarks"][0] and first["tokens"] is None
    assert second["state"] == "finished" and web.get("/").status_code == 200


def test_tables_that_no_run_writes_are_said_to_be_so(store: Store) -> None:
    for number, table in enumerate(
        (pl.DataFrame({"a": [1]}), frame([forecast(float("inf"), 1)], FORECASTS), pl.DataFrame({"forecast": ["x"]}))
    ):
        write(store, f"run-{number}", tables={"forecasts": table})
    for row in Index(store).rows():
        assert row["state"] == "damaged" and row["best"] is None and "a table of run.json" in row["remarks"][0]


def test_files_too_large_and_times_of_no_calendar(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "MOST_BYTES", 10)
    write(store, "first")

    def late(store: Store) -> dict[str, dict[str, Entry]]:
        return {
            run: {n: e._replace(changed=1e18) for n, e in entries.items()}
            for run, entries in run_folders(store).items()
        }

    monkeypatch.setattr(index_module, "run_folders", late)
    row = only(store)
    assert row["state"] == "damaged" and "too many" in row["remarks"][0] and row["when"] is None


@pytest.mark.parametrize(
    ("flow", "file", "kind"),
    [
        ("diagnose", "run.json", "diagnosis"),
        ("rank", "rank.json", "ranking"),
        ("validate", "validation.json", "validation"),
    ],
)
def test_outputs_of_an_earlier_configuration_are_said_to_be_so(flow: str, file: str, kind: str, store: Store) -> None:
    needed, later = artefacts("rollouts", "trees"), artefacts("rollouts")
    make(store, needed)
    index, leases = Index(store), LeaseManager(store, 60.0)
    pin(store, "first", flow, needed)
    write(store, "first", file, references=pinned(store, "first", flow))
    assert only(store, index)["state"] == "finished"
    with leases.acquire(name_lease(flow, "first"), "other"):
        pin(store, "first", flow, later)
        assert only(store, index)["state"] == "running"
    for row in (only(store, index), only(store)):  # every artefact is there: it was killed while it wrote its outputs
        assert row["state"] == "interrupted" and row["progress"]["flow"] == kind and row["progress"]["stage"] == ""
        assert row["remarks"][1] == f"{kind}: what is shown is of an earlier run with another configuration"
    pin_also(store, "first", flow, artefacts("prior"))  # questions were left out
    write(store, "first", file, references=pinned(store, "first", flow))
    assert (only(store, index)["state"], only(store)["remarks"]) == ("finished", [])
    pin(store, "first", flow, needed)
    assert only(store, index)["state"] == "interrupted"
    pin(store, "first", flow, later)  # back to the configuration of the outputs
    assert only(store, index)["state"] == "finished"


def test_the_copy_of_a_finished_run_is_finished(tmp_path: Path) -> None:
    store, folder = Store(str(tmp_path / "one")), tmp_path / "one" / "runs" / "first"
    pin(store, "first", "diagnose", artefacts("trees"))  # which are not copied
    write(store, "first", references=pinned(store, "first", "diagnose"))
    shutil.copytree(folder, tmp_path / "two" / "runs" / "first")
    soon = time.time() + 100
    os.utime(tmp_path / "two" / "runs" / "first" / "references-diagnose.json", (soon, soon))
    assert only(Store(str(tmp_path / "two")))["state"] == "finished"


def test_what_a_run_made_last_is_counted_once_it_has_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    needed, now = artefacts("rollouts"), [0.0]
    index, leases = Index(store), LeaseManager(store, 60.0)
    with leases.acquire(name_lease("diagnose", "first"), "need"):
        pin(store, "first", "diagnose", needed)
        assert only(store, index)["progress"]["made"] == 0
        make(store, needed[:2])  # nobody looks meanwhile
    row = only(store, index)
    assert row["state"] == "interrupted" and row["progress"]["made"] == 2
    monkeypatch.setattr(index_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    index.snapshot()
    make(store, needed[:3])  # by a run that came and went
    now[0] += 1.0
    assert json.loads(index.snapshot().body)["runs"][0]["progress"]["made"] == 2
    now[0] += 61.0
    assert json.loads(index.snapshot().body)["runs"][0]["progress"]["made"] == 3


def test_the_reward_itself_is_not_the_best_signal(store: Store) -> None:
    reward = {"teacher": "reward", "context": "none"}
    rows = [{**forecast(0.9, 1), **reward}, forecast(0.6, 2)]
    write(store, "first", tables={"forecasts": frame(rows, FORECASTS)})
    write(store, "second", "rank.json", forecasts=rows)
    blank = {name: "x" if column.dtype == "String" else None for name, column in RANKS.items()}
    ranks = [{**blank, **reward, "gain": 0.5}, {**blank, "gain": 0.1}]
    write(store, "third", "rank.json", {"ranks": frame(ranks, RANKS)}, forecasts=rows[:1])
    write(store, "fourth", "rank.json", forecasts=rows[:1])
    best = {row["name"]: row["best"] and row["best"]["value"] for row in Index(store).rows()}
    assert best == {"first": 0.6, "second": 0.6, "third": 0.1, "fourth": None}


def test_a_run_that_ends_during_a_look_is_not_interrupted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index, leases = Index(store), LeaseManager(store, 60.0)
    pin(store, "first", "diagnose", artefacts("trees"))
    lease, holders = leases.take(name_lease("diagnose", "first")), LeaseManager.holders
    assert lease is not None

    def late(self: LeaseManager, wanted: Any) -> Any:
        write(store, "first", references=pinned(store, "first", "diagnose"))
        leases.release(lease)
        return holders(self, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(LeaseManager, "holders", late)
        assert only(store, index)["state"] == "running"
    assert only(store, index)["state"] == "finished"


def test_a_process_that_is_stopped_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tasks.store.leases.time.monotonic", lambda: now[0])
    index, leases = Index(store), LeaseManager(store, 60.0)
    pin(store, "first", "diagnose", artefacts("trees"))
    assert leases.take(name_lease("diagnose", "first")) is not None  # and is not renewed
    for _ in range(3):
        assert only(store, index)["state"] == "running"
        now[0] += 100.0


@pytest.mark.parametrize("content", [b"[", b"{}", b"7", b'[1, null, "trees", "../../x/y", "trees/../z", "none/abc"]'])
def test_references_that_are_none_need_nothing(content: bytes, store: Store) -> None:
    store.put_bytes(content, "runs", "first", "references-diagnose.json")
    row = only(store)
    assert row["state"] == "interrupted" and row["progress"]["needed_in_all"] == 0


def test_files_are_read_again_only_once_they_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("first", "second"):
        write(store, run)
    read: list[str] = []

    def counted(store: Store, run: str, name: str) -> bytes | None:
        read.append(run)
        return read_output(store, run, name)

    monkeypatch.setattr(index_module, "read_output", counted)
    index = Index(store)
    index.rows()
    index.rows()
    assert read == ["first", "second"]
    write(store, "second", questions=["a", "b", "c"])
    assert [row["questions"] for row in index.rows()] == [2, 3] and read == ["first", "second", "second"]


def test_a_store_that_does_not_answer_is_asked_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "first")
    web = TestClient(reports(store, ["testserver"]))

    def fail(*args: Any) -> Any:
        raise OSError("no answer <b>")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "run_folders", fail)
        answer = web.get("/runs.json")
        assert answer.status_code == 503 and "no answer <b>" in answer.json()["error"]
        assert web.get("/").status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "read_output", fail)
        assert web.get("/runs.json").json()["runs"][0]["remarks"] == ["run.json cannot be read now"]
    assert web.get("/runs.json").json()["runs"][0]["state"] == "finished"


def test_an_answer_is_sent_once(store: Store) -> None:
    web = TestClient(reports(store, ["testserver"]))
    first = web.get("/runs.json")
    assert first.json()["runs"] == [] and "No runs yet" in web.get("/").text
    again = web.get("/runs.json", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for held in (f"W/{first.headers['etag']}", f'"x", {first.headers["etag"]}'):  # as a proxy that compresses sends it
        assert web.get("/runs.json", headers={"If-None-Match": held}).status_code == 304
    write(store, "first")
    assert web.get("/runs.json", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_nothing_can_be_written(store: Store) -> None:
    web = TestClient(reports(store, ["testserver"]), raise_server_exceptions=False)
    write(store, "first")
    before = web.get("/runs.json").content
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/", "/runs.json", "/index.js", "/first/run.json"):
            assert web.request(method, path).status_code == 405
    assert web.get("/runs.json").content == before


def policy(web: TestClient, path: str) -> dict[str, list[str]]:
    answer = web.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    parts = [part.split() for part in answer.headers["content-security-policy"].split(";")]
    return {name: values for name, *values in parts}


def test_every_answer_has_a_policy_of_its_own(store: Store) -> None:
    write(store, "first")
    store.put_bytes(b"<script>1</script>", "runs", "first", "report.html")
    store.put_bytes(b"<svg/>", "runs", "first", "x.svg")
    web = TestClient(reports(store, ["testserver"]))
    index = policy(web, "/")
    assert index["default-src"] == ["'none'"] and index["script-src"] == index["connect-src"] == ["'self'"]
    assert "sandbox" not in index and "'unsafe-inline'" not in str(index)
    page = web.get("/").text
    assert (
        page.count("<script") == 1
        and "style=" not in page
        and "<style" not in page
        and " on" not in page.split("<main>")[0]
    )
    report = policy(web, "/first/report.html")
    assert report["default-src"] == ["'none'"] and report["script-src"] == ["'unsafe-inline'"]
    assert report["sandbox"] == ["allow-scripts", "allow-downloads"]  # not its server's origin, forms, windows, frames
    assert not {"connect-src", "frame-src", "font-src", "object-src", "worker-src"} & report.keys()
    for path in ("/first/run.json", "/runs.json", "/none/none.html", "/first/x.svg", "/index.js"):
        assert policy(web, path)["default-src"] == ["'none'"] and policy(web, path)["sandbox"] == []
    assert web.get("/first/x.svg").status_code == 404


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Callable[[Store], str]]:
    """Serves a store on a port of its own."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(store: Store) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = uvicorn.Config(reports(store, ["127.0.0.1"]), host="127.0.0.1", port=port, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}"

    yield serve
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_a_browser_shows_hostile_texts_as_texts(tmp_path: Path, address: Callable[[Store], str]) -> None:
    store = Store(str(tmp_path))
    write(store, "first", configuration={"student": {"path": HOSTILE}}, left_out={HOSTILE: HOSTILE})
    write(store, "second")
    store.put_bytes(
        b"<title>kept</title><script>fetch('/runs.json').catch(() => document.title = 'kept out')</script>",
        "runs",
        "second",
        "report.html",
    )

    served = address(store)
    with chromium() as browser:
        tab = browser.new_page()

        def shown(path: str) -> str:
            tab.goto(f"{served}{path}")
            tab.wait_for_timeout(3000)
            return str(tab.content())

        page = shown("/")
        assert "img&gt;" in page or "&lt;img src=x onerror=" in page
        assert "<img" not in page and "<title>Runs - opdscope</title>" in page and page.count('<tr role="row">') == 3
        assert 'href="/second/report.html"' in page and "2 runs" in page
        page = shown("/?run=second")
        assert page.count('<tr role="row">') == 2 and "1 of 2 runs" in page
        assert "<title>kept out</title>" in shown("/second/report.html")


def test_on_s3_a_look_takes_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as url:
        gate = Gate(url)
        for name, value in gate.environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        try:
            store = Store("s3://bucket/index")
            needed = artefacts("rollouts", "trees")
            make(store, needed[:6])
            for i in range(5):
                write(store, f"run-{i}", tables={"forecasts": frame([forecast(0.9, 1)], FORECASTS)})
            with LeaseManager(store, 60.0).acquire(name_lease("diagnose", "run-9"), "need"):
                pin(store, "run-9", "diagnose", needed)
                index = Index(store)
                assert [row["state"] for row in index.rows()] == ["finished"] * 5 + ["running"]
                gate.requests.clear()
                rows = index.rows()
                assert rows[0]["best"]["text"] == ".90 [.80, .95]" and rows[-1]["progress"]["made_in_all"] == 6
                # folders, leases, the lease of the one that goes on, and the folder of its unfinished stage
                assert gate.requests.total() <= 6
        finally:
            gate.shutdown()
