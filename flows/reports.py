"""Outputs of runs in a browser: a list of runs, and the files of each, straight from the store."""

import re
from collections.abc import Awaitable, Callable
from html import escape

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tasks.store.artefact import Store
from tasks.store.collect import REFERENCES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TYPES = {"html": "text/html; charset=utf-8", "json": "application/json", "parquet": "application/octet-stream"}
_HEADERS = {
    # model output is in these pages: nothing in them runs or is fetched
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = "body{font:15px/1.5 system-ui;margin:3em auto;max-width:50em}td{padding:.2em 1em .2em 0}a{color:#1a5fb4}"


def reports(store: Store, hosts: list[str]) -> Starlette:
    """The web application.

    Args:
        hosts: names under which it may be asked for, else a web page elsewhere could read it.
    """

    def answer(make: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(make, request)

        return endpoint

    def listing(request: Request) -> Response:
        rows = "".join(
            f"<tr><td>{escape(run)}</td><td>{_links(run, store.names('runs', run))}</td></tr>"
            for run in store.names("runs")
        )
        body = f"<table>{rows}</table>" if rows else "<p>No runs yet.</p>"
        page = (
            f"<!doctype html><title>opdscope</title><style>{_STYLE}</style><h1>Runs in {escape(store.url)}</h1>{body}"
        )
        return HTMLResponse(page, headers=_HEADERS)

    def file(request: Request) -> Response:
        run, name = request.path_params["run"], request.path_params["file"]
        kind = _TYPES.get(name.rpartition(".")[2])
        known = kind is not None and _NAME.fullmatch(run) and _NAME.fullmatch(name)
        data = store.get_bytes("runs", run, name) if known else None
        if data is None:
            return Response("not there", status_code=404, media_type="text/plain")
        return Response(data, media_type=kind, headers=_HEADERS)

    return Starlette(
        routes=[Route("/", answer(listing)), Route("/{run}/{file}", answer(file))],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


def _links(run: str, files: list[str]) -> str:
    shown = [name for name in files if name.rpartition(".")[2] in _TYPES and not name.startswith(REFERENCES)]
    return " ".join(f'<a href="/{escape(run)}/{escape(name)}">{escape(name)}</a>' for name in shown)
