"""`opdscope serve` as a user has it: one command, forms, a run from the UI's API, a kill and a retry, a clean end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from flows.command.configuration import ConfigurationError
from flows.orchestration.deployments import lost_runs
from flows.service.access import address, check_access, check_port, known_as
from flows.service.probe import check_version
from flows.service.serve import only_one, parse_schedule
from schemas.config import RunConfig
from tests.helpers.places import ROOT
from tests.helpers.ports import free_port
from tests.helpers.served import Served, csrf, in_trees, processes, tables

ELSEWHERE = Origin("http://elsewhere.example")


def test_every_field_of_the_form_has_something_to_fill_in() -> None:
    schema = RunConfig.model_json_schema()

    def walk(place: str, part: dict[str, Any]) -> None:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        assert "oneOf" not in part and "discriminator" not in part, place  # which the form shows as bare JSON
        assert {"type", "anyOf", "enum"} & set(part), place
        assert "<" not in part.get("description", ""), place  # which the form takes for HTML
        for name, inner in part.get("properties", {}).items():
            walk(f"{place}.{name}", inner)
        for inner in part.get("anyOf", []):
            walk(place, inner)
        if "items" in part:
            assert "anyOf" not in part["items"], place
            walk(f"{place}[]", part["items"])

    walk("config", schema)
    losses = schema["properties"]["losses"]["items"]
    assert "total_variation" in losses["properties"]["kind"]["enum"]
    assert losses["properties"]["beta"]["description"].startswith("jsd: ") and losses["required"] == ["kind"]
    assert schema["properties"]["teachers"]["items"]["required"] == ["kind", "name"]
    titles = [schema["$defs"][m["$ref"].rsplit("/", 1)[-1]]["title"] for m in schema["properties"]["tree"]["anyOf"]]
    assert titles == ["adaptive", "forced", "windows", "recorded"]


def test_what_cannot_be_served_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"--cron: 'tonight' is not valid"):
        parse_schedule("tonight", "UTC")
    with pytest.raises(ConfigurationError, match=r"--timezone: 'Mars/Olympus' is not valid"):
        parse_schedule("0 3 * * *", "Mars/Olympus")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--port: 127.0.0.1:{port} cannot be used"):
            check_port("--port", "127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="does not answer as a Prefect server"):
        check_version(f"http://127.0.0.1:{free_port()}/api")
    other = httpx.Response(200, json="2.20.4", request=httpx.Request("GET", "http://127.0.0.1"))
    monkeypatch.setattr("flows.service.probe.httpx.get", lambda *args, **options: other)
    with pytest.raises(ConfigurationError, match=r"is Prefect 2\.20\.4, but 3\."):
        check_version("http://127.0.0.1:4200/api")


@pytest.mark.parametrize(
    ("host", "names", "login", "message"),
    [
        ("0.0.0.0", [], None, "--host: '0.0.0.0' accepts other machines"),  # noqa: S104
        ("192.0.2.7", [], None, "PREFECT_SERVER_API_AUTH_STRING=user:password"),
        ("127.0.0.1", ["gpu7.example.org"], None, "--public-host: 'gpu7.example.org' accepts other machines"),
        ("::", [], "me:secret", "--host: '::' means all addresses of this machine"),
        ("0.0.0.0", ["http://gpu7"], "me:secret", "--public-host: 'http://gpu7' is not a host name"),  # noqa: S104
        ("0.0.0.0", ["*"], "me:secret", "--public-host: '\\*' is not a host name"),  # noqa: S104
        ("192.0.2.7", [], "secret", "PREFECT_SERVER_API_AUTH_STRING: .* user:password"),
        ("", [], "me:secret", "--host: '' is not an address; give one of this machine, such as 127.0.0.1"),
        ("", ["gpu7.example.org"], "me:secret", "--host: '' is not an address"),
        (" ", [], "me:secret", "--host: ' ' is not an address"),
        ("a..b", [], "me:secret", "--host: 'a..b' is not an address"),
        ("0", [], None, "--host: '0' accepts other machines"),
        ("0", [], "me:secret", "--host: '0' means all addresses of this machine"),
        ("0x0", [], "me:secret", "--host: '0x0' means all addresses of this machine"),
        ("::ffff:0.0.0.0", [], "me:secret", "--host: '::ffff:0.0.0.0' means all addresses of this machine"),
    ],
)
def test_beyond_this_machine_a_password_and_a_name_are_needed(
    host: str, names: list[str], login: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        check_access(host, names, login)
    assert login is None or login not in str(refused.value).replace("user:password", "")


def test_names_that_servers_answer_to() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "127.1", "localhost", "::1"):
        check_access(host, [], None)
    check_access("192.0.2.7", [], "me:secret")
    check_access("0.0.0.0", ["gpu7.example.org", "10.0.0.7"], "me:secret")  # noqa: S104
    assert known_as("127.0.0.1", []) == ["127.0.0.1", "localhost"]
    assert known_as("0.0.0.0", ["gpu7", "10.0.0.7"]) == ["gpu7", "10.0.0.7", "127.0.0.1", "localhost"]  # noqa: S104
    assert known_as("192.0.2.7", [])[0] == "192.0.2.7"
    assert [address(host) for host in ("0.0.0.0", "::", "::1", "gpu7")] == ["127.0.0.1", "[::1]", "[::1]", "gpu7"]  # noqa: S104


def test_equal_ports_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", "4321", "--reports-port", "4321"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "--port and --reports-port: both are 4321; give two different ports"


def test_one_command_serves_in_a_folder(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    message = "another `opdscope serve` runs in .*set PREFECT_HOME"
    with only_one(tmp_path):
        with pytest.raises(ConfigurationError, match=message), only_one(tmp_path):
            pytest.fail("two serve")
        with only_one(other):
            pass
    with only_one(tmp_path):  # and later again
        pass


def test_a_host_is_what_its_name_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*places: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 0)) for place in places]
        monkeypatch.setattr("flows.service.access.socket.getaddrinfo", lambda *args, **options: found)

    resolved("127.0.0.1", "192.0.2.7")
    with pytest.raises(ConfigurationError, match="--host: 'localhost' accepts other machines"):
        check_access("localhost", [], None)
    resolved("127.0.1.1")
    check_access("gpu7", [], None)


def test_a_store_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "flows.cli", "serve", "--store", "file/store", "--port", str(free_port())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("--store: cannot write to ") and done.stdout == ""
    assert not list(tmp_path.rglob("server.log"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def served(folder: Path, settings: dict[str, Any]) -> Iterator[Served]:
    settings["execution"] = {"questions_per_task": 3, "round_draws": 24, "round_seconds": 0.0}
    one = Served(folder, settings)
    try:
        yield one
    finally:
        one.stop()


def is_refused_from_elsewhere(served: Served) -> None:
    """What a web page in the machine's browser, or one whose name was pointed at this machine, may try."""
    place = f"/api/deployments/{served.deployment('diagnose')['id']}/create_flow_run"
    token, base = csrf(served.api), f"http://127.0.0.1:{served.port}"
    command = {"job_variables": {"command": "touch made"}}
    elsewhere, rebound = {"Origin": "http://elsewhere.example"}, {"Host": f"elsewhere.example:{served.port}"}
    with httpx.Client(base_url=base, timeout=30) as browser:
        for kind in ("application/json", "text/plain"):
            for headers, status in (
                (elsewhere, 403),
                ({**elsewhere, **token}, 403),
                ({"Origin": "null", **token}, 403),
                ({"Origin": f"http://127.0.0.1:{served.reports}", **token}, 403),
                ({**rebound, **token}, 400),
                ({**rebound, "Origin": f"http://elsewhere.example:{served.port}", **token}, 400),
                ({}, 403),  # no token
                ({**token, "Prefect-Csrf-Token": "guessed"}, 403),
            ):
                answer = browser.post(place, content=json.dumps(command), headers={"Content-Type": kind, **headers})
                assert answer.status_code == status, headers
        assert browser.patch("/api/work_pools/opdscope", json={"base_job_template": {}}).status_code == 403
        asked = {**elsewhere, "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in browser.options(place, headers=asked).headers
        for headers in (elsewhere, rebound):
            assert browser.get("/api/csrf-token?client=elsewhere", headers=headers).status_code in (400, 403)
        for name, value in (("command", "touch made"), ("env", {"PYTHONPATH": "."}), ("working_dir", "/")):
            answer = browser.post(place, json={"job_variables": {name: value}}, headers=token)
            assert answer.status_code == 422, (name, answer.text)  # not even with a token
        assert browser.get("/ui-settings").json()["api_url"] == "/api"
    for path in ("/api/events/in", "/api/events/out", "/api/logs/out"):
        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(f"ws://127.0.0.1:{served.port}{path}", origin=ELSEWHERE),
        ):
            pass
    with connect(f"ws://127.0.0.1:{served.port}/api/events/in", origin=Origin(base)):
        pass
    found = served.api.post("/flow_runs/filter", json={}).raise_for_status().json()
    assert [run["name"] for run in found if not run["auto_scheduled"]] == []


def is_kept_waiting(served: Served) -> None:
    """A late report of a crash does not take back a retry, but ends a run that is only scheduled."""
    place = f"/deployments/{served.deployment('diagnose')['id']}/create_flow_run"
    for name, status in (("AwaitingRetry", "ABORT"), ("Scheduled", "ACCEPT")):
        details = {"scheduled_time": "2100-01-01T00:00:00Z"}
        state = {"type": "SCHEDULED", "name": name, "state_details": details}
        run = served.api.post(place, json={"state": state}).raise_for_status().json()["id"]
        crash = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": False}
        answer = served.api.post(f"/flow_runs/{run}/set_state", json=crash).raise_for_status().json()
        assert answer["status"] == status
        served.api.delete(f"/flow_runs/{run}").raise_for_status()


def test_a_run_from_the_ui_and_one_that_is_killed_and_retried(served: Served, folder: Path) -> None:
    assert len(served.children) == 2  # a server and a worker, and nothing that was started by mistake
    is_refused_from_elsewhere(served)

    # the deployments, filled in and scheduled
    config = served.deployment("diagnose")["parameters"]["config"]
    assert config["name"] == "small"
    assert [loss["kind"] for loss in config["losses"]] == ["reverse_kl", "forward_kl"]
    (schedule,) = served.deployment("nightly")["schedules"]
    assert schedule["schedule"]["cron"] == "0 3 * * *" and schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert served.deployment("rank")["parameters"]["config"]["store"] == str(folder / "store")
    served.deployment("calibrate")
    assert served.api.get(f"http://127.0.0.1:{served.port}/").status_code == 200

    # a run, its artifacts and its report
    config["tree"]["draws"] = 48
    run = served.start({**config, "name": "whole", "store": "store"})
    index, seen = f"http://127.0.0.1:{served.reports}/runs.json", set()
    for _ in range(600):
        seen |= {row["state"] for row in httpx.get(index).json()["runs"]}
        if "finished" in seen:
            break
        time.sleep(0.1)
    assert seen == {"running", "finished"}
    assert served.wait(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED"
    artifacts = served.artifacts(run)
    assert {a["type"] for a in artifacts.values()} == {"progress", "table", "markdown"}  # links are of this type
    assert artifacts["progress-trees"]["data"] == 100.0
    assert f"(http://127.0.0.1:{served.reports}/?run=whole)" in artifacts["whole-run"]["data"]
    link = re.search(r"\((http[^)]+)\)", artifacts["whole-report-html"]["data"])
    assert link is not None and link[1] == f"http://127.0.0.1:{served.reports}/whole/report.html"
    report = httpx.get(link[1])
    assert "alignment" in report.text and "sandbox" in report.headers["content-security-policy"]
    assert "whole" in httpx.get(f"http://127.0.0.1:{served.reports}/").text
    for missing in ("whole/nothing.html", "whole/..%2f..%2fconfig.yaml", "..%2fconfig/run.json"):
        assert httpx.get(f"http://127.0.0.1:{served.reports}/{missing}").status_code == 404
    assert httpx.get(link[1], headers={"Host": "elsewhere.example"}).status_code == 400

    # code that a form names is not run, whatever the environment of `serve` allows to commands
    code = {"kind": "python", "function": "tests.helpers.users:reverse_kl"}
    run = served.start({**config, "name": "code", "store": "store", "losses": [code]})
    refused = served.wait(run, "COMPLETED", "FAILED", "CRASHED")
    assert refused["type"] == "FAILED" and "OPDSCOPE_ALLOW_CODE=1" in refused["message"]

    # kill -9 in the middle of the trees, then Retry
    run = served.start({**config, "name": "killed", "store": "other"})
    in_trees(folder / "other")
    (victim,) = processes(run)
    victim.kill()
    assert served.wait(run, "CRASHED", "FAILED", "COMPLETED")["type"] == "CRASHED"
    served.retry(run)
    served.wait(run, "COMPLETED")
    is_kept_waiting(served)
    assert tables(folder / "other", "killed") == tables(folder / "store", "whole")
    stages = json.loads((folder / "other" / "runs" / "killed" / "run.json").read_text())["stages"]
    assert stages["rollouts"]["made"] == 0

    # one signal ends it all
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(90) == 0
    assert not [child for child in served.children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (folder / ".prefect").exists() and (folder / ".opdscope" / "prefect").is_dir()


@pytest.mark.slow
def test_everything_but_the_server_is_killed(served: Served, settings: dict[str, Any], folder: Path) -> None:
    """As when a machine dies: the run is marked as crashed; a new `serve` clears what is left, and Retry goes on."""
    quick = lost_runs(45).model_copy(update={"name": "quick"}).model_dump(mode="json")
    served.api.post("/automations/", json=quick).raise_for_status()
    config = served.deployment("diagnose")["parameters"]["config"]
    config["tree"]["draws"] = 48
    run = served.start({**config, "name": "lost", "store": "lost"})
    in_trees(folder / "lost")
    served.process.kill()
    (worker,) = [p for p in served.children if p.status() != psutil.STATUS_ZOMBIE and "worker" in p.cmdline()]
    for process in (worker, *processes(run)):
        process.kill()
    assert served.state(run)["type"] == "RUNNING"
    state = served.wait(run, "CRASHED", seconds=180)
    assert "Retry resumes the run" in state["message"]
    server = [p for p in served.children if p.is_running() and "server" in " ".join(p.cmdline())]
    assert server
    again = Served(folder, settings)
    try:
        assert "ended a server left by a killed command" in again.log
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in server)
        again.retry(run)
        assert again.wait(run, "COMPLETED", "FAILED")["type"] == "COMPLETED"
        stages = json.loads((folder / "lost" / "runs" / "lost" / "run.json").read_text())["stages"]
        assert stages["rollouts"]["made"] == 0
    finally:
        again.stop()


@pytest.mark.slow
def test_for_other_machines_with_a_password(settings: dict[str, Any], tmp_path: Path) -> None:
    options = ("--host", "0.0.0.0", "--public-host", "gpu7.example.org", "--runs", "2")  # noqa: S104
    served = Served(tmp_path, settings, *options, login="me:secret")
    try:
        assert f"http://gpu7.example.org:{served.port}/deployments" in served.log and "secret" not in served.log
        assert "--runs above 1 on SQLite" in served.log
        for port, path in ((served.port, "/api/admin/version"), (served.reports, "/")):
            place, name = f"http://127.0.0.1:{port}{path}", {"Host": f"gpu7.example.org:{port}"}
            assert httpx.get(place).status_code == 401
            assert httpx.get(place, auth=("me", "wrong")).status_code == 401
            assert httpx.get(place, auth=("me", "secret"), headers=name).status_code == 200
            assert httpx.get(place, auth=("me", "secret"), headers={"Host": "elsewhere.example"}).status_code == 400
        config = served.deployment("diagnose")["parameters"]["config"]
        run = served.start(config)
        assert served.wait(run, "COMPLETED", "FAILED", "CRASHED", seconds=240)["type"] == "COMPLETED"
        link = served.artifacts(run)["small-report-html"]["data"]
        assert f"(http://gpu7.example.org:{served.reports}/small/report.html)" in link
        served.process.send_signal(signal.SIGHUP)
        assert served.process.wait(90) == 0
    finally:
        served.stop()
