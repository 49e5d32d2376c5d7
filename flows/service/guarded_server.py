"""Prefect's server with its UI and services, as started by `prefect server start`, behind `flows.service.guard`.

python -m flows.service.guarded_server HOST PORT NAME [NAME ...]
"""

import argparse

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings

from flows.service.guard import guarded
from flows.service.retries import keep_retries


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(prog="python -m flows.service.guarded_server", description=__doc__)
    parser.add_argument("host", help="address to listen on")
    parser.add_argument("port", type=int)
    parser.add_argument("names", nargs="+", help="host names under which it answers")
    given = parser.parse_args()
    settings = get_current_settings().server
    keep_retries()
    uvicorn.run(
        guarded(create_app(final=True), given.names),
        host=given.host,
        port=given.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
