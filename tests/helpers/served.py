"""`opdscope serve` as a user has it, and what tests do to it."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.helpers.places import ROOT
from tests.helpers.ports import free_port


class Served:
    """`opdscope serve` in a folder of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any], *options: str, login: str | None = None) -> None:
        self.port, self.reports = free_port(), free_port()
        auth = None if login is None else httpx.BasicAuth(*login.split(":"))
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=30, auth=auth)
        self.store = folder / "store"
        (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "store"}))
        (folder / "suite.yaml").write_text(yaml.safe_dump({"runs": ["config.yaml"], "store": str(self.store)}))
        command = [sys.executable, "-m", "flows.cli", "serve", "config.yaml", "--store", "store"]
        command += ["--suite", "suite.yaml", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"]
        command += ["--port", str(self.port), "--reports-port", str(self.reports), *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
        environment["OPDSCOPE_ALLOW_CODE"] = "1"
        if login is not None:
            environment["PREFECT_SERVER_API_AUTH_STRING"] = login
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
            )
        for _ in range(360):
            if "Ctrl-C stops" in self._log.read_text():
                break
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.5)
        self.api.headers.update(csrf(self.api))
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(90)

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.api.get(f"/deployments/name/{name}/{name}").raise_for_status().json())

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self, config: dict[str, Any]) -> str:
        place = f"/deployments/{self.deployment('diagnose')['id']}/create_flow_run"
        return str(self.api.post(place, json={"parameters": {"config": config}}).raise_for_status().json()["id"])

    def state(self, run: str) -> dict[str, Any]:
        for _ in range(20):  # SQLite is locked now and then, which Prefect's own clients wait for
            answer = self.api.get(f"/flow_runs/{run}")
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        return dict(answer.raise_for_status().json()["state"])

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


def csrf(api: httpx.Client) -> dict[str, str]:
    """Headers with which the API takes what changes something, as Prefect's own clients send them."""
    client = uuid.uuid4().hex
    token = api.get("/csrf-token", params={"client": client}).raise_for_status().json()["token"]
    return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}


def tables(store: Path, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "runs" / name).glob("*.parquet")}


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
