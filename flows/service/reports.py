"""Outputs of runs in a browser: a list of runs and their files, read from the store."""

import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from html import escape

from fsspec.implementations.local import LocalFileSystem
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flows.service.guard import Password, guarded
from tasks.store.references import REFERENCES
from tasks.store.store import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_TYPES = {"html": "text/html; charset=utf-8", "json": "application/json", "parquet": "application/octet-stream"}
_HEADERS = {
    # these pages contain model output: nothing in them is executed or fetched
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = "body{font:15px/1.5 system-ui;margin:3em auto;max-width:50em}td{padding:.2em 1em .2em 0}a{color:#1a5fb4}"


def reports(store: Store, hosts: list[str], login: str | None = None) -> ASGIApp:
    """The web application.

    Args:
        hosts: names under which it answers, so that no foreign web page can read it.
        login: `user:password` to require.
    """

    def answer(make: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(make, request)

        return endpoint

    def listing(request: Request) -> Response:
        rows = "".join(
            f"<tr><td>{escape(run)}</td><td>{_links(run, output_names(store, run))}</td></tr>"
            for run in output_names(store)
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
        data = read_output(store, run, name) if known else None
        if data is None:
            return Response("not found", status_code=404, media_type="text/plain")
        return Response(data, media_type=kind, headers=_HEADERS)

    app: ASGIApp = Starlette(routes=[Route("/", answer(listing)), Route("/{run}/{file}", answer(file))])
    return guarded(app if login is None else Password(app, login), hosts)


def read_output(store: Store, run: str, name: str) -> bytes | None:
    """An output of a run, or None if there is no regular file of that name; symbolic links are not followed."""
    if not isinstance(store.fs, LocalFileSystem):
        try:
            return store.get_bytes("runs", run, name)
        except IsADirectoryError:
            return None
    try:
        with _opened(store.root, "runs", run) as folder:
            # opening a pipe must not wait for its other end
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None


def output_names(store: Store, *run: str) -> list[str]:
    """The runs, or the outputs of one, whose names can be requested; symbolic links are not followed."""
    if not isinstance(store.fs, LocalFileSystem):
        found = store.names("runs", *run)
    else:
        try:
            with _opened(store.root, "runs", *run) as folder, os.scandir(folder) as entries:
                found = sorted(e.name for e in entries if _is_plain(e, folder=not run))
        except OSError:
            found = []
    return [name for name in found if _NAME.fullmatch(name)]


def _is_plain(entry: "os.DirEntry[str]", *, folder: bool) -> bool:
    return entry.is_dir(follow_symlinks=False) if folder else entry.is_file(follow_symlinks=False)


@contextmanager
def _opened(root: str, *parts: str) -> Iterator[int]:
    """A descriptor of a subfolder, opened without following symbolic links.

    Raises:
        OSError: it does not exist, or a part of its path is a symbolic link.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            parent = descriptor
            descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
        yield descriptor
    finally:
        os.close(descriptor)


def _links(run: str, files: list[str]) -> str:
    linked = [name for name in files if name.rpartition(".")[2] in _TYPES and not name.startswith(REFERENCES)]
    return " ".join(f'<a href="/{escape(run)}/{escape(name)}">{escape(name)}</a>' for name in linked)
