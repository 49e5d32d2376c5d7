"""`opdscope serve`: Prefect's server, the deployments, a worker and the reports, as one command."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flows.command.configuration import ConfigurationError
from flows.command.signals import ENDING
from flows.service.access import address, check_access, check_port, known_as
from flows.service.children import child, end_orphans, last_lines
from flows.service.probe import check_version, wait_for
from flows.service.server import server_command, server_settings

_ON_SQLITE = (
    "--runs above 1 on SQLite: Prefect may answer 503 (database is locked) and fail to start runs; "
    "set PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
)

_STOP = 30.0
"""Seconds that the reports server may take to end."""


@dataclass(frozen=True)
class ServeSettings:
    """Settings of `opdscope serve`.

    Attributes:
        host: address that everything listens on.
        public_hosts: names under which users and workers reach it; links use the first.
        port: of Prefect's server and UI.
        reports_port: of the reports.
        store: whose reports are served; the default store of runs.
        config: fields of a run that fill the form.
        suite: fields of a nightly suite that fill the form.
        cron: schedule of the suite, in `timezone`.
        runs: concurrent runs.
        allow_code: whether runs may execute code that their configuration names.
    """

    host: str
    public_hosts: list[str]
    port: int
    reports_port: int
    store: str
    config: dict[str, Any]
    suite: dict[str, Any]
    cron: str | None
    timezone: str
    runs: int
    allow_code: bool


def serve(settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, or until a part exits on its own.

    Args:
        say: prints a line.

    Raises:
        ConfigurationError: another command that serves in this folder,
            a port in use, an address beyond this machine without a password, a server that does not
            answer or has another major version, an invalid schedule, or a part that has exited.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_SERVER_API_AUTH_STRING,
        temporary_settings,
    )

    schedule = parse_schedule(settings.cron, settings.timezone)
    configured, home = os.environ.get("PREFECT_API_URL"), Path(os.environ["PREFECT_HOME"])
    login = PREFECT_SERVER_API_AUTH_STRING.value()
    check_access(settings.host, settings.public_hosts, login)
    if configured is None and settings.port == settings.reports_port:
        raise ConfigurationError(f"--port and --reports-port: both are {settings.port}; give two different ports")
    check_port("--reports-port", settings.host, settings.reports_port)
    stopped = threading.Event()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stopped.set())
    with ExitStack() as stack:
        stack.enter_context(only_one(home))
        for name in end_orphans(home):
            say(f"ended a {name} left by a killed command")
        parts: list[_Part] = []
        if configured is None:
            parts.append(_started_server(settings, login, home, stopped, stack, say))
        if stopped.is_set():
            return
        api = os.environ["PREFECT_API_URL"].rstrip("/")
        check_version(api)
        stack.enter_context(served_reports(settings, login))

        from flows.orchestration.artifacts import REPORTS_URL
        from flows.orchestration.deployments import deploy, lost_runs, offers, watch

        os.environ[REPORTS_URL] = f"http://{public(settings)}:{settings.reports_port}"  # for the worker's runs
        # Prefect is already imported
        client = {PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: os.environ.get("PREFECT_API_AUTH_STRING")}
        stack.enter_context(temporary_settings(client))
        deployed = deploy(offers(settings.config, settings.suite, settings.store), Path.cwd(), schedule)
        watch(lost_runs())
        parts.append(_started_worker(settings, home, stack))
        ui = f"http://{public(settings)}:{settings.port}" if configured is None else api.removesuffix("/api")
        for line in _summary(settings, ui, os.environ[REPORTS_URL], deployed, parts[-1].log, login):
            say(line)
        while not stopped.wait(0.5):
            for part in parts:
                if part.process.poll() is not None:
                    raise ConfigurationError(f"{part.name} exited unexpectedly: {last_lines(part.log)}")
        say("stopping")


class _Part(NamedTuple):
    """A child process with its log."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path


def _started_server(
    settings: ServeSettings,
    login: str | None,
    home: Path,
    stopped: threading.Event,
    stack: ExitStack,
    say: Callable[[str], None],
) -> _Part:
    """Start Prefect's server until the stack closes, wait until it answers, and set the environment for its clients."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    check_port("--port", settings.host, settings.port)
    names = known_as(settings.host, settings.public_hosts)
    command = server_command(settings.host, settings.port, names)
    server, log = stack.enter_context(child(home, "server", command, server_settings(settings.port, names)))
    os.environ["PREFECT_API_URL"] = f"http://{address(settings.host)}:{settings.port}/api"
    if login is not None:
        os.environ["PREFECT_API_AUTH_STRING"] = login
    say(f"Prefect's server is starting (log: {log})")
    wait_for(os.environ["PREFECT_API_URL"], server, log, stopped)
    if settings.runs > 1 and PREFECT_API_DATABASE_CONNECTION_URL.value().startswith("sqlite"):
        say(_ON_SQLITE)
    return _Part("Prefect's server", server, log)


def _started_worker(settings: ServeSettings, home: Path, stack: ExitStack) -> _Part:
    """Start a worker of the pool until the stack closes."""
    from flows.orchestration.deployments import POOL
    from tasks.operations.user_code import ALLOW_CODE

    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--limit", str(settings.runs), "--name", f"{socket.gethostname()}-{os.getpid()}"]
    os.environ[ALLOW_CODE] = "1" if settings.allow_code else "0"  # whatever allows it to commands
    return _Part("the worker", *stack.enter_context(child(home, "worker", command, {})))


def _summary(
    settings: ServeSettings, ui: str, reports: str, deployed: Sequence[str], log: Path, login: str | None
) -> Iterator[str]:
    """Lines that list what is served and where."""
    from flows.orchestration.deployments import POOL

    yield f"UI           {ui}/deployments"
    yield f"reports      {reports}"
    if login is not None:
        yield "password     the one of PREFECT_SERVER_API_AUTH_STRING, for both"
    yield f"deployments  {', '.join(deployed)}"
    yield f"worker       pool {POOL}, {settings.runs} {'run' if settings.runs == 1 else 'runs'} at a time (log: {log})"
    if settings.cron is not None:
        yield f"nightly      {settings.cron} ({settings.timezone})"
    yield "Ctrl-C stops all of them"


def public(settings: ServeSettings) -> str:
    """The host used in links."""
    return known_as(settings.host, settings.public_hosts)[0]


def parse_schedule(cron: str | None, timezone: str) -> Any:
    """A Prefect schedule.

    Raises:
        ConfigurationError: it is invalid.
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
        raise ConfigurationError(f"{option}: {given!r} is not valid; give {right}") from error
    return Cron(cron, timezone=timezone)


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Keep others from serving in the same folder, whose database, logs and worker they would share.

    Raises:
        ConfigurationError: another command serves there.
    """
    with (home / "serve.lock").open("ab") as lock:  # given back by the system if this command is killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another `opdscope serve` runs in {str(home)!r}; end it, or set PREFECT_HOME to another folder"
            ) from error
        yield


@contextmanager
def served_reports(settings: ServeSettings, login: str | None) -> Iterator[None]:
    """Serve reports on their own port while the block runs.

    Args:
        login: `user:password` to require.
    """
    import uvicorn

    from flows.service.reports import reports
    from tasks.store.store import Store

    app = reports(Store(settings.store), known_as(settings.host, settings.public_hosts), login)
    config = uvicorn.Config(app, host=settings.host, port=settings.reports_port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_STOP)
