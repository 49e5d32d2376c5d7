"""Command line and environment of Prefect's server, for `opdscope serve` and commands that run a flow."""

import sys
from collections.abc import Sequence

LOOPBACK = ("127.0.0.1", "localhost")
"""Names under which programs and browsers of this machine reach a server."""


def server_command(host: str, port: int, names: Sequence[str]) -> list[str]:
    """The command line of Prefect's server behind `flows.service.guard`.

    Args:
        host: address to listen on.
        names: host names under which it answers.
    """
    return [sys.executable, "-m", "flows.service.guarded_server", host, str(port), *names]


def server_settings(port: int, names: Sequence[str]) -> dict[str, str]:
    """Environment of that server: its API serves its own UI, at whatever host name it is opened, and programs."""
    return {
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{names[0]}:{port}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
