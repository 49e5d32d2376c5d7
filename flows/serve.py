"""`opdscope serve`: Prefect's server, the deployments, a worker and the reports, as one command."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from flows.children import child, end_orphans, last_lines
from flows.configuration import ConfigurationError

_START = 180.0
"""Seconds that a server may take to answer; the first start makes its database."""
_STOP = 30.0
"""Seconds that the reports may take to end."""


@dataclass(frozen=True)
class ServeSettings:
    """What is served.

    Attributes:
        host: address that everything listens on.
        port: of Prefect's server and UI.
        reports_port: of the reports.
        store: whose runs are shown, and where runs write that name no store.
        config: fields of a run that the form is filled with.
        suite: the same of a nightly suite.
        cron: when the suite is run, with its time zone.
        runs: runs at a time.
    """

    host: str
    port: int
    reports_port: int
    store: str
    config: dict[str, Any]
    suite: dict[str, Any]
    cron: str | None
    timezone: str
    runs: int


def serve(settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, or until a part ends by itself.

    Args:
        say: shows a line.

    Raises:
        ConfigurationError: a port in use, a server that does not answer or is of another major version, a schedule
            that does not parse; or a part that has ended.
    """
    schedule = parse_schedule(settings.cron, settings.timezone)
    configured, home = os.environ.get("PREFECT_API_URL"), Path(os.environ["PREFECT_HOME"])
    for name in end_orphans(home):
        say(f"ended a {name} that a killed `opdscope serve` had left")
    check_port("--reports-port", settings.host, settings.reports_port)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with ExitStack() as stack:
        parts: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        if configured is None:
            check_port("--port", settings.host, settings.port)
            url = f"http://{settings.host}:{settings.port}"
            command = [sys.executable, "-m", "prefect", "server", "start"]
            command += ["--host", settings.host, "--port", str(settings.port)]
            environment = {"PREFECT_UI_API_URL": f"{url}/api", "PREFECT_SERVER_UI_API_URL": f"{url}/api"}
            server, log = stack.enter_context(child(home, "server", command, environment))
            parts.append(("Prefect's server", server, log))
            os.environ["PREFECT_API_URL"] = f"{url}/api"
            say(f"Prefect's server is starting (log: {log})")
            wait_for(f"{url}/api", server, log, stopped)
        if stopped.is_set():
            return
        api = os.environ["PREFECT_API_URL"].rstrip("/")
        check_version(api)
        shown = stack.enter_context(shown_reports(settings))
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from flows.artifacts import REPORTS_URL
        from flows.deployments import POOL, deploy, lost_runs, offers, watch

        os.environ[REPORTS_URL] = shown  # for the worker's runs
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))  # Prefect may have been imported before
        offered = offers(settings.config, settings.suite, settings.store)
        names = deploy(offered, Path.cwd(), schedule)
        watch(lost_runs())
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        command += ["--limit", str(settings.runs), "--name", f"{socket.gethostname()}-{os.getpid()}"]
        worker, log = stack.enter_context(child(home, "worker", command, {}))
        parts.append(("the worker", worker, log))
        say(f"UI           {api.removesuffix('/api')}/deployments")
        say(f"reports      {shown}")
        say(f"deployments  {', '.join(names)}")
        say(f"worker       pool {POOL}, {settings.runs} runs at a time (log: {log})")
        if schedule is not None:
            say(f"nightly      {settings.cron} ({settings.timezone})")
        say("Ctrl-C stops all of them")
        while not stopped.wait(0.5):
            for name, process, log in parts:
                if process.poll() is not None:
                    raise ConfigurationError(f"{name} has ended by itself: {last_lines(log)}")
        say("stopping")


def parse_schedule(cron: str | None, timezone: str) -> Any:
    """A schedule of Prefect.

    Raises:
        ConfigurationError: it does not parse.
    """
    if cron is None:
        return None
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        option = "--timezone" if any("timezone" in d["loc"] for d in error.errors()) else "--cron"
        given = timezone if option == "--timezone" else cron
        right = "a name such as Europe/Berlin" if option == "--timezone" else "five fields such as '0 3 * * *'"
        raise ConfigurationError(f"{option}: {given!r} is not a schedule's; give {right}") from error
    return Cron(cron, timezone=timezone)


def check_port(option: str, host: str, port: int) -> None:
    """Refuse a port that is taken.

    Raises:
        ConfigurationError: it is, or the address is not this machine's.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = f"choose another with {option}"
            if option == "--port":
                hint += f", or set PREFECT_API_URL=http://{host}:{port}/api to use a Prefect server that runs there"
            raise ConfigurationError(f"{option}: {host}:{port} cannot be used ({error.strerror}); {hint}") from error


def check_version(api: str) -> None:
    """Refuse a server that this Prefect does not go with.

    Raises:
        ConfigurationError: it does not answer, or is of another major version.
    """
    own = version("prefect")
    try:
        answer = httpx.get(f"{api}/admin/version", timeout=10, headers=_authorization()).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigurationError(
            f"PREFECT_API_URL: {api!r} does not answer as a Prefect server ({type(error).__name__}: {error})"
        ) from error
    if str(answer).split(".")[0] != own.split(".")[0]:
        raise ConfigurationError(
            f"PREFECT_API_URL: {api!r} is Prefect {answer}, and {own} is installed here; the major versions must agree"
        )


def _authorization() -> dict[str, str]:
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def wait_for(api: str, process: "subprocess.Popen[bytes]", log: Path, stopped: threading.Event) -> None:
    """Wait until a server answers.

    Raises:
        ConfigurationError: it ends, or takes too long.
    """
    began = time.monotonic()
    while not stopped.is_set():
        if process.poll() is not None:
            raise ConfigurationError(f"Prefect's server has not started: {last_lines(log)}")
        try:
            if httpx.get(f"{api}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() - began > _START:
            raise ConfigurationError(f"Prefect's server has not answered for {_START:.0f} s: {last_lines(log)}")
        stopped.wait(0.3)


@contextmanager
def shown_reports(settings: ServeSettings) -> Iterator[str]:
    """Reports on their own port while the block runs; gives their address."""
    import uvicorn

    from flows.reports import reports
    from tasks.store.artefact import Store

    app = reports(Store(settings.store), [settings.host, "localhost"])
    config = uvicorn.Config(app, host=settings.host, port=settings.reports_port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"http://{settings.host}:{settings.reports_port}"
    finally:
        server.should_exit = True
        thread.join(_STOP)
