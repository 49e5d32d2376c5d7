"""Checks whether Prefect's server answers, and its version."""

import os
import subprocess
import threading
import time
from base64 import b64encode
from importlib.metadata import version
from pathlib import Path

import httpx

from flows.command.configuration import ConfigurationError
from flows.service.children import last_lines

_START = 180.0
"""Seconds that a server may take to answer; the first start creates its database."""


def check_version(api: str) -> None:
    """Refuse a server that is incompatible with the installed Prefect.

    Raises:
        ConfigurationError: it does not answer, or has another major version.
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
            f"PREFECT_API_URL: {api!r} is Prefect {answer}, but {own} is installed here; the major versions must agree"
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
    start = time.monotonic()
    while not stopped.is_set():
        if process.poll() is not None:
            raise ConfigurationError(f"Prefect's server did not start: {last_lines(log)}")
        try:
            if httpx.get(f"{api}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() - start > _START:
            raise ConfigurationError(f"Prefect's server did not answer within {_START:.0f} s: {last_lines(log)}")
        stopped.wait(0.3)
