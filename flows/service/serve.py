"""`opdscope serve`: Prefect's server, the deployments, a worker and the reports, as one command."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import httpx

from flows.command.configuration import ConfigurationError
from flows.command.signals import ENDING
from flows.service.children import child, end_orphans, last_lines
from flows.service.server import LOOPBACK, server_command, server_settings

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ON_SQLITE = (
    "--runs above 1 on SQLite: Prefect may answer 503 (database is locked) and lose starts of runs; "
    "set PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
)
_START = 180.0
"""Seconds that a server may take to answer; the first start makes its database."""
_STOP = 30.0
"""Seconds that the reports may take to end."""


@dataclass(frozen=True)
class ServeSettings:
    """What is served.

    Attributes:
        host: address that everything listens on.
        public_hosts: names under which people and workers reach it; links show the first.
        port: of Prefect's server and UI.
        reports_port: of the reports.
        store: whose runs are shown, and where runs write that name no store.
        config: fields of a run that the form is filled with.
        suite: the same of a nightly suite.
        cron: when the suite is run, with its time zone.
        runs: runs at a time.
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


def serve(settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, or until a part ends by itself.

    Args:
        say: shows a line.

    Raises:
        ConfigurationError: a port in use, an address beyond this machine without a password, a server that does not
            answer or is of another major version, a schedule that does not parse; or a part that has ended.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_DATABASE_CONNECTION_URL,
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
    for name in end_orphans(home):
        say(f"ended a {name} that a killed command had left")
    check_port("--reports-port", settings.host, settings.reports_port)
    stopped = threading.Event()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stopped.set())
    with ExitStack() as stack:
        parts: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        if configured is None:
            check_port("--port", settings.host, settings.port)
            names = known_as(settings.host, settings.public_hosts)
            command = server_command(settings.host, settings.port, names)
            server, log = stack.enter_context(child(home, "server", command, server_settings(settings.port, names)))
            parts.append(("Prefect's server", server, log))
            os.environ["PREFECT_API_URL"] = f"http://{address(settings.host)}:{settings.port}/api"
            if login is not None:
                os.environ["PREFECT_API_AUTH_STRING"] = login
            say(f"Prefect's server is starting (log: {log})")
            wait_for(os.environ["PREFECT_API_URL"], server, log, stopped)
            if settings.runs > 1 and PREFECT_API_DATABASE_CONNECTION_URL.value().startswith("sqlite"):
                say(_ON_SQLITE)
        if stopped.is_set():
            return
        api = os.environ["PREFECT_API_URL"].rstrip("/")
        check_version(api)
        stack.enter_context(served_reports(settings, login))

        from flows.orchestration.artifacts import REPORTS_URL
        from flows.orchestration.deployments import POOL, deploy, lost_runs, offers, watch

        shown = f"http://{public(settings)}:{settings.reports_port}"
        os.environ[REPORTS_URL] = shown  # for the worker's runs
        # Prefect has been imported before
        client = {PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: os.environ.get("PREFECT_API_AUTH_STRING")}
        stack.enter_context(temporary_settings(client))
        offered = offers(settings.config, settings.suite, settings.store)
        deployed = deploy(offered, Path.cwd(), schedule)
        watch(lost_runs())
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        command += ["--limit", str(settings.runs), "--name", f"{socket.gethostname()}-{os.getpid()}"]
        worker, log = stack.enter_context(child(home, "worker", command, {}))
        parts.append(("the worker", worker, log))
        ui = f"http://{public(settings)}:{settings.port}" if configured is None else api.removesuffix("/api")
        say(f"UI           {ui}/deployments")
        say(f"reports      {shown}")
        if login is not None:
            say("password     the one of PREFECT_SERVER_API_AUTH_STRING, for both")
        say(f"deployments  {', '.join(deployed)}")
        say(f"worker       pool {POOL}, {settings.runs} runs at a time (log: {log})")
        if schedule is not None:
            say(f"nightly      {settings.cron} ({settings.timezone})")
        say("Ctrl-C stops all of them")
        while not stopped.wait(0.5):
            for name, process, log in parts:
                if process.poll() is not None:
                    raise ConfigurationError(f"{name} has ended by itself: {last_lines(log)}")
        say("stopping")


def check_access(host: str, public_hosts: list[str], login: str | None) -> None:
    """Refuse to listen beyond this machine without a password, or without a name to be reached under.

    Args:
        login: `user:password` that the UI, the API and the reports ask for.

    Raises:
        ConfigurationError: one is missing, or is none; the host is none.
    """
    if not addresses(host):
        raise ConfigurationError(f"--host: {host!r} is no address; give one of this machine's, such as 127.0.0.1")
    for name in public_hosts:
        if not _HOST_NAME.fullmatch(name):
            right = "a host name such as gpu7.example.org, without scheme and port"
            raise ConfigurationError(f"--public-host: {name!r} is no host name; give {right}")
    if login is not None and not re.fullmatch(r"[^:]+:.+", login):  # shown nowhere: it is a password
        raise ConfigurationError("PREFECT_SERVER_API_AUTH_STRING: what it is set to is not of the form user:password")
    if login is None and (public_hosts or not is_loopback(host)):
        option = f"--host: {host!r}" if not is_loopback(host) else f"--public-host: {public_hosts[0]!r}"
        raise ConfigurationError(
            f"{option} lets other machines in, and whoever reaches Prefect's API can run commands here; "
            "set a password: PREFECT_SERVER_API_AUTH_STRING=user:password"
        )
    if is_wildcard(host) and not public_hosts:
        raise ConfigurationError(
            f"--host: {host!r} is every address of this machine; name the one that people open with --public-host"
        )


def addresses(host: str) -> list[IPv4Address | IPv6Address]:
    """What servers that are told to listen on a host listen on; none where it is no host."""
    if not host:  # which servers take for every address
        return []
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return []
    return [_unmapped(ip_address(str(place[0]))) for *_, place in found]


def _unmapped(found: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return found if isinstance(found, IPv4Address) else found.ipv4_mapped or found


def is_loopback(host: str) -> bool:
    """True for a host that only this machine reaches."""
    found = addresses(host)
    return bool(found) and all(place.is_loopback for place in found)


def is_wildcard(host: str) -> bool:
    """True for a host that means all addresses of this machine."""
    return any(place.is_unspecified for place in addresses(host))


def address(host: str) -> str:
    """Where programs of this machine reach what listens on a host, as a URL has it."""
    if is_wildcard(host):
        return "[::1]" if ":" in host else LOOPBACK[0]
    return f"[{host}]" if ":" in host else host


def known_as(host: str, public_hosts: list[str]) -> list[str]:
    """Names under which servers answer; the one that links show comes first."""
    return list(dict.fromkeys([*public_hosts, address(host), *LOOPBACK]))


def public(settings: ServeSettings) -> str:
    """The host that links show."""
    return known_as(settings.host, settings.public_hosts)[0]


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
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = f"choose another with {option}"
            if option == "--port":
                hint += f", or set PREFECT_API_URL=http://{address(host)}:{port}/api to use a Prefect server there"
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
    key, login = os.environ.get("PREFECT_API_KEY"), os.environ.get("PREFECT_API_AUTH_STRING")
    if login:
        return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
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
def served_reports(settings: ServeSettings, login: str | None) -> Iterator[None]:
    """Reports on their own port while the block runs.

    Args:
        login: `user:password` that they ask for.
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
