"""Middleware of the web servers: rejects foreign origins, foreign host names and missing passwords."""

import base64
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_REQUESTS = ("http", "websocket")


def guarded(app: ASGIApp, names: Sequence[str]) -> ASGIApp:
    """An application that no foreign web page can use through a browser on this machine.

    A page of another origin is recognised by `Origin`, which browsers send with every request that could change
    something and with every WebSocket; a page whose own name resolves to this machine (DNS rebinding) by `Host`.

    Args:
        names: host names and addresses under which the application answers.
    """
    return TrustedHostMiddleware(_SameOrigin(app), allowed_hosts=names, www_redirect=False)


class _SameOrigin:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in _REQUESTS:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and _host_of(origin) != headers.get("host", "").lower():
                await PlainTextResponse("Foreign origin", status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _host_of(origin: str) -> str:
    """Host and port of an origin; empty for `null` and for invalid origins."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


class Password:
    """HTTP basic authentication with one user."""

    def __init__(self, app: ASGIApp, login: str) -> None:
        """Wrap an application.

        Args:
            login: `user:password`.
        """
        self.app = app
        self.expected = b"Basic " + base64.b64encode(login.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in _REQUESTS:
            given = Headers(scope=scope).get("authorization", "")
            if not hmac.compare_digest(given.encode("latin-1"), self.expected):
                headers = {"WWW-Authenticate": 'Basic realm="opdscope", charset="UTF-8"'}
                await PlainTextResponse("Unauthorized", status_code=401, headers=headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)
