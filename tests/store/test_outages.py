"""Errors of remote file systems: what may pass is one error of ours whichever library raised it; the rest is not."""

import http.client
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import urllib3.exceptions
from botocore.exceptions import (  # type: ignore[import-untyped]
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from tasks.operations.errors import is_fatal, is_transient, patiently
from tasks.store.outages import StoreAwayError, translated
from tasks.store.store import Store, StoreError

URL = "memory://outages"


def answered(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "later"}}, "PutObject")


AWAY = [
    EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    ConnectionClosedError(endpoint_url="http://127.0.0.1:1"),
    ReadTimeoutError(endpoint_url="http://127.0.0.1:1"),
    ResponseParserError("no xml"),
    answered("InternalError"),
    answered("SlowDown"),
    aiohttp.ClientPayloadError("cut off"),
    aiohttp.ServerDisconnectedError(),
    urllib3.exceptions.ProtocolError("cut off"),
    http.client.IncompleteRead(b""),
    OSError(16, "reduce your request rate"),
    TimeoutError(),
]
CALLS: dict[str, Callable[[Store], Any]] = {
    "pipe_file": lambda store: store.put_bytes(b"1", "a"),
    "cat_file": lambda store: store.get_bytes("a"),
    "rm_file": lambda store: store.remove("a"),
    "ls": lambda store: store.names("a"),
    "find": lambda store: store.find("a"),
    "exists": lambda store: store.exists(),
}


class Broken:
    """A file system each call of which fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            raise self._error

        return call


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[[Exception], Any]:
    """Calls the store, while its file system raises an error."""

    def act(error: Exception) -> Any:
        store = Store(URL)
        store.fs = Broken(error)
        return CALLS[request.param](store)

    return act


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_an_outage_is_one_error_that_may_pass(call: Callable[[Exception], Any], error: Exception) -> None:
    with pytest.raises(StoreAwayError, match=f"store '{URL}' does not answer") as caught:
        call(error)
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)
    assert is_transient(caught.value) and is_fatal(caught.value)


def test_what_waiting_does_not_change_is_told_apart(call: Callable[[Exception], Any]) -> None:
    with pytest.raises(StoreError, match=r"cannot use the store .*credentials"):
        call(NoCredentialsError())
    with pytest.raises(PermissionError) as refused:
        call(PermissionError("Access Denied"))
    assert not is_transient(refused.value) and is_fatal(refused.value)
    with pytest.raises(KeyError):  # a fault of the program is no outage
        call(KeyError("x"))


@pytest.mark.parametrize(
    ("module", "name", "passes"),
    [
        ("gcsfs.retry", "HttpError", True),
        ("google.auth.exceptions", "TransportError", True),
        ("azure.core.exceptions", "ServiceRequestError", True),
        ("azure.core.exceptions", "AzureError", False),
    ],
)
def test_other_clouds(monkeypatch: pytest.MonkeyPatch, module: str, name: str, passes: bool) -> None:
    """Stand-ins by the names of the real ones, which are not installed here."""
    from tasks.store import outages

    fake = ModuleType(module)
    for known in (*outages._TRANSIENT.get(module, ()), *outages._PERMANENT.get(module, ())):
        setattr(fake, known, type(known, (Exception,), {}))
    monkeypatch.setitem(sys.modules, module, fake)
    with pytest.raises(StoreAwayError if passes else StoreError), translated("x://y"):
        raise getattr(fake, name)("later")


def test_at_its_start_a_store_that_is_away_is_not_a_wrong_one() -> None:
    store = Store(URL)
    store.fs = Broken(AWAY[0])
    with pytest.raises(StoreAwayError):
        store.check_writable()
    store.fs = Broken(PermissionError("Access Denied"))
    with pytest.raises(StoreError, match=f"cannot write to '{URL}': Access Denied"):
        store.check_writable()


def test_patience() -> None:
    errors: list[Exception] = [StoreAwayError("away"), OSError(28, "full")]

    def act() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(act, 2, 0.001) == "done"
    errors.extend([StoreAwayError("away")] * 3)
    with pytest.raises(StoreAwayError):
        patiently(act, 2, 0.001)
    errors[:] = [PermissionError("never")]
    with pytest.raises(PermissionError):
        patiently(act, 5, 60.0)
