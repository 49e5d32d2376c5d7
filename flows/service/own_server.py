"""Prefect's server for the flow of one command."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, get_current_settings

from flows.command.signals import signals_held
from flows.service.children import end_orphans, record, start
from flows.service.server import LOOPBACK, server_command, server_settings

_NAME = "command-server"
_DRAIN_SECONDS = 5.0
"""Seconds to deliver pending events and logs to the server when a command ends."""


class OwnServer(SubprocessASGIServer):
    """The server that Prefect's clients start if none is configured.

    It rejects web pages, Ctrl-C does not reach it before the flow has reported its end, and the next command ends it if
    this one is killed.
    """

    _record: Path | None = None

    def _run_uvicorn_command(self) -> "subprocess.Popen[Any]":
        port, home = int(self.port or 0), Path(os.environ["PREFECT_HOME"])
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        quiet = {
            "PREFECT_UI_ENABLED": "false",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        }
        command = server_command(LOOPBACK[0], port, LOOPBACK)
        with signals_held(), (home / f"{_NAME}.log").open("ab") as log:
            self.server_process = start(command, {**settings, **server_settings(port, LOOPBACK), **quiet}, log)
            self._record = record(home, _NAME, self.server_process)
        return self.server_process

    def stop(self) -> None:
        """End it, then remove its record."""
        super().stop()
        if self._record is not None:
            self._record.unlink(missing_ok=True)


@contextmanager
def server_of_command() -> Iterator[None]:
    """Provides Prefect's clients with a server: that of PREFECT_API_URL, else one that ends with the block."""
    end_orphans(Path(os.environ["PREFECT_HOME"]), _NAME)
    if PREFECT_API_URL.value():
        yield
        return
    server = OwnServer()  # clients start this instance
    try:
        try:
            yield
        finally:
            for worker in (EventsWorker, APILogWorker):
                worker.drain_all(timeout=_DRAIN_SECONDS)
    finally:
        with signals_held():
            server.stop()
