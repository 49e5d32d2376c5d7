"""Prefect's server for tests."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.ports import free_port


class Server:
    """Prefect's server on loopback, which can be killed and started again on its port and database."""

    def __init__(self, home: Path, database: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = {
            **clean,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            **({} if database is None else {"PREFECT_API_DATABASE_CONNECTION_URL": database}),
        }
        self._log = home / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*command, "--no-ui"], env=self.environment, stdout=log, stderr=log)
        for _ in range(360):
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise RuntimeError(self._log.read_text()[-2000:])

    @property
    def client_environment(self) -> dict[str, str]:
        """Of processes that use the server."""
        return {**self.environment, "PREFECT_API_URL": self.url}

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """The latest artifact of each key."""
        found = httpx.post(f"{self.url}/artifacts/filter", json={"sort": "UPDATED_DESC", "limit": 200})
        return {a["key"]: a for a in reversed(found.raise_for_status().json())}

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
