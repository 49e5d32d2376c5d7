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
import yaml

from flows.configuration import ConfigurationError
from flows.deployments import lost_runs
from flows.serve import check_port, check_version, parse_schedule
from schemas.config import RunConfig
from tests.ports import free_port

HERE = Path(__file__).parents[1]


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
    with pytest.raises(ConfigurationError, match=r"--cron: 'tonight' is not a schedule's"):
        parse_schedule("tonight", "UTC")
    with pytest.raises(ConfigurationError, match=r"--timezone: 'Mars/Olympus' is not a schedule's"):
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
    monkeypatch.setattr("flows.serve.httpx.get", lambda *args, **options: other)
    with pytest.raises(ConfigurationError, match=r"is Prefect 2\.20\.4, and 3\."):
        check_version("http://127.0.0.1:4200/api")


class Served:
    """`opdscope serve` in a folder of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.port, self.reports = free_port(), free_port()
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=30)
        self.store = folder / "store"
        (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "store"}))
        (folder / "suite.yaml").write_text(yaml.safe_dump({"runs": ["config.yaml"], "store": str(self.store)}))
        command = [sys.executable, "-m", "flows.cli", "serve", "config.yaml", "--store", "store"]
        command += ["--suite", "suite.yaml", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"]
        command += ["--port", str(self.port), "--reports-port", str(self.reports)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**environment, "PYTHONPATH": str(HERE)}, stdout=log, stderr=log
            )
        for _ in range(360):
            if "Ctrl-C stops" in self._log.read_text():
                break
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.5)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.api.get(f"/deployments/name/{name}/{name}").raise_for_status().json())

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self, config: dict[str, Any]) -> str:
        place = f"/deployments/{self.deployment('diagnose')['id']}/create_flow_run"
        return str(self.api.post(place, json={"parameters": {"config": config}}).raise_for_status().json()["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.api.get(f"/flow_runs/{run}").raise_for_status().json()["state"])

    def wait(self, run: str, *types: str, seconds: int = 120) -> dict[str, Any]:
        for _ in range(5 * seconds):
            state = self.state(run)
            if state["type"] in types:
                return state
            time.sleep(0.2)
        raise AssertionError(f"{state}\n{self._log.read_text()[-2000:]}")

    def retry(self, run: str) -> None:
        """As the button does."""
        state = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": False}
        self.api.post(f"/flow_runs/{run}/set_state", json=state).raise_for_status()

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        found = self.api.post("/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 100})
        return {a["key"]: a for a in found.raise_for_status().json()}


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
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)
            one.process.wait(90)


def tables(store: Path, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "runs" / name).glob("*.parquet")}


def test_a_run_from_the_ui_and_one_that_is_killed_and_retried(served: Served, folder: Path) -> None:
    assert len(served.children) == 2  # a server and a worker, and nothing that was started by mistake

    # the deployments, filled in and scheduled
    config = served.deployment("diagnose")["parameters"]["config"]
    assert config["name"] == "small" and config["losses"] == [{"kind": "reverse_kl"}, {"kind": "forward_kl"}]
    (schedule,) = served.deployment("nightly")["schedules"]
    assert schedule["schedule"]["cron"] == "0 3 * * *" and schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert served.deployment("rank")["parameters"]["config"]["store"] == str(folder / "store")
    served.deployment("calibrate")
    assert served.api.get(f"http://127.0.0.1:{served.port}/").status_code == 200

    # a run, its artifacts and its report
    config["tree"]["draws"] = 48
    run = served.start({**config, "name": "whole", "store": "store"})
    assert served.wait(run, "COMPLETED", "FAILED", "CRASHED")["type"] == "COMPLETED"
    artifacts = served.artifacts(run)
    assert {a["type"] for a in artifacts.values()} == {"progress", "table", "markdown"}  # links are of this type
    assert artifacts["progress-trees"]["data"] == 100.0
    link = re.search(r"\((http[^)]+)\)", artifacts["whole-report-html"]["data"])
    assert link is not None and link[1] == f"http://127.0.0.1:{served.reports}/whole/report.html"
    report = httpx.get(link[1])
    assert "alignment" in report.text and "sandbox" in report.headers["content-security-policy"]
    assert "whole" in httpx.get(f"http://127.0.0.1:{served.reports}/").text
    for missing in ("whole/nothing.html", "whole/..%2f..%2fconfig.yaml", "..%2fconfig/run.json"):
        assert httpx.get(f"http://127.0.0.1:{served.reports}/{missing}").status_code == 404
    assert httpx.get(link[1], headers={"Host": "elsewhere.example"}).status_code == 400

    # kill -9 in the middle of the trees, then Retry
    run = served.start({**config, "name": "killed", "store": "other"})
    in_trees(folder / "other")
    (victim,) = processes(run)
    victim.kill()
    assert served.wait(run, "CRASHED", "FAILED", "COMPLETED")["type"] == "CRASHED"
    served.retry(run)
    served.wait(run, "COMPLETED")
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
    (worker,) = [p for p in served.children if "worker" in p.cmdline()]
    for process in (worker, *processes(run)):
        process.kill()
    assert served.state(run)["type"] == "RUNNING"
    state = served.wait(run, "CRASHED", seconds=180)
    assert "Retry goes on" in state["message"]
    server = [p for p in served.children if p.is_running() and "server" in " ".join(p.cmdline())]
    assert server
    again = Served(folder, settings)
    try:
        assert "ended a server that a killed `opdscope serve` had left" in again.log
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in server)
        again.retry(run)
        assert again.wait(run, "COMPLETED", "FAILED")["type"] == "COMPLETED"
        stages = json.loads((folder / "lost" / "runs" / "lost" / "run.json").read_text())["stages"]
        assert stages["rollouts"]["made"] == 0
    finally:
        again.process.send_signal(signal.SIGINT)
        again.process.wait(90)


def in_trees(store: Path) -> None:
    """Wait until a run has committed draws."""
    for _ in range(1200):
        if len(list(store.glob("rounds/*/*"))) > 1:
            return
        time.sleep(0.05)
    raise AssertionError("no draws were committed")


def processes(run: str) -> list[psutil.Process]:
    """Those of a flow run."""
    return [p for p in psutil.process_iter() if _flow_run(p) == run.replace("-", "")]


def _flow_run(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("PREFECT__FLOW_RUN_ID", "")).replace("-", "")
    except (psutil.Error, OSError):
        return ""
