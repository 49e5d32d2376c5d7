"""What our web servers answer: requests by their names, from no page of elsewhere, with the password."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from flows.service.guard import Password, guarded

NAMES = ["gpu7.example.org", "127.0.0.1", "localhost", "[::1]"]


def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done")


async def events(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("event")
    await socket.close()


APP = Starlette(routes=[Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/events", events)])


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:4200", None, 200),
        ("LOCALHOST:4200", None, 200),
        ("[::1]:4200", "http://[::1]:4200", 200),
        ("127.0.0.1:4200", "http://127.0.0.1:4200", 200),
        ("gpu7.example.org", "https://gpu7.example.org", 200),  # behind a proxy that ends TLS
        ("127.0.0.1:4200", "http://localhost:4200", 403),
        ("127.0.0.1:4200", "http://127.0.0.1:4201", 403),
        ("127.0.0.1:4200", "http://127.0.0.1", 403),
        ("127.0.0.1:4200", "http://127.0.0.1:4200.elsewhere.example", 403),
        ("127.0.0.1:4200", "http://elsewhere.example", 403),
        ("127.0.0.1:4200", "null", 403),
        ("127.0.0.1:4200", "", 403),
        ("127.0.0.1:4200", "http://[", 403),
        ("elsewhere.example:4200", None, 400),
        ("elsewhere.example:4200", "http://elsewhere.example:4200", 400),
        ("127.0.0.1.elsewhere.example", None, 400),
        ("", None, 400),
    ],
)
def test_only_asked_for_by_name_and_from_its_own_pages(host: str, origin: str | None, status: int) -> None:
    headers = {"Host": host, **({} if origin is None else {"Origin": origin})}
    client = TestClient(guarded(APP, NAMES))
    assert client.get("/", headers=headers).status_code == client.post("/", headers=headers).status_code == status
    if status == 200:
        with client.websocket_connect("/events", headers=headers) as socket:
            assert socket.receive_text() == "event"
    else:
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/events", headers=headers):
            pass
        assert refused.value.status_code == status


def test_the_password() -> None:
    client = TestClient(Password(APP, "me:sécret:x"))
    assert client.get("/").headers["www-authenticate"].startswith("Basic realm=")
    assert client.get("/", auth=("me", "sécret:x")).status_code == 200
    for wrong in (("me", "secret:x"), ("", ""), ("me", "")):
        assert client.get("/", auth=wrong).status_code == 401
    for header in ("Basic", "Basic !", "Bearer x", "Basic " + "A" * 10_000, "\xff"):
        assert client.get("/", headers={b"Authorization": header.encode("latin-1")}).status_code == 401
