"""Outputs of runs in a browser: an index that follows runs while they go on, and their files. Nothing is written."""

import json
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flows.service.folders import can_be_requested, read_output
from flows.service.guard import Password, guarded
from flows.service.index import Index
from schemas.text import reason
from tasks.store.store import Store, StoreError

COLUMNS = (
    ("name", "name", False),
    ("when", "when, UTC", False),
    ("kinds", "kind", False),
    ("student", "student", False),
    ("questions", "questions", True),
    ("best", "best signal", False),
    ("state", "state", False),
    ("tokens", "tokens, time", True),
)
"""Columns of the index that sort: the key of a row, the title, and whether it holds numbers."""
_TYPES = {"html": "text/html; charset=utf-8", "json": "application/json", "parquet": "application/octet-stream"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-DNS-Prefetch-Control": "off",
}
_NOTHING = {**_HEADERS, "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox"}
_INDEX = {
    **_HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
}
_REPORT = {
    **_HEADERS,
    # These pages contain model output. Their own policy narrows scripts to theirs. The sandbox gives whatever runs all
    # the same an origin of its own: it reads no other page, nothing from this server or Prefect's, and fetches nothing.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
    ),
}


def reports(store: Store, hosts: list[str], login: str | None = None) -> ASGIApp:
    """The web application.

    Args:
        hosts: names under which it answers, so that no foreign web page can read it.
        login: `user:password` to require.
    """
    index = Index(store)
    page = Environment(
        loader=PackageLoader("flows.service", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("index.html.jinja")

    def answer(make: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(make, request)

        return endpoint

    def show(request: Request) -> Response:
        try:
            runs = json.loads(index.snapshot().body)["runs"]
        except (OSError, StoreError):  # the page asks again, and says so
            runs = []
        return HTMLResponse(page.render(store=store.url, columns=COLUMNS, runs=runs), headers=_INDEX)

    def rows(request: Request) -> Response:
        headers = {**_NOTHING, "Cache-Control": "no-cache"}
        try:
            found = index.snapshot()
        except (OSError, StoreError) as error:
            said = json.dumps({"error": f"{store.url!r} cannot be read: {reason(error)}"})
            return Response(said, status_code=503, media_type="application/json", headers=headers)
        headers["ETag"] = found.tag
        held = request.headers.get("if-none-match", "").split(",")
        if found.tag in (tag.strip().removeprefix("W/") for tag in held):  # weak where a proxy compresses
            return Response(status_code=304, headers=headers)
        return Response(found.body, media_type="application/json", headers=headers)

    def file(request: Request) -> Response:
        run, name = request.path_params["run"], request.path_params["file"]
        ending = name.rpartition(".")[2]
        known = ending in _TYPES and can_be_requested(run) and can_be_requested(name)
        data = read_output(store, run, name) if known else None
        if data is None:
            return Response("not found", status_code=404, media_type="text/plain", headers=_NOTHING)
        return Response(data, media_type=_TYPES[ending], headers=_REPORT if ending == "html" else _NOTHING)

    routes = [
        Route("/", answer(show)),
        Route("/runs.json", answer(rows)),
        *(Route(f"/{name}", _asset(name, kind)) for name, kind in _ASSETS.items()),
        Route("/{run}/{file}", answer(file)),
    ]
    app: ASGIApp = Starlette(routes=routes)
    return guarded(app if login is None else Password(app, login), hosts)


_ASSETS = {"index.js": "text/javascript", "index.css": "text/css"}


def _asset(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a file that belongs to the index page."""

    async def endpoint(request: Request) -> Response:
        return Response(_content(name), media_type=kind, headers={**_NOTHING, "Cache-Control": "no-cache"})

    return endpoint


@cache
def _content(name: str) -> bytes:
    return (files("flows.service") / "page" / name).read_bytes()
