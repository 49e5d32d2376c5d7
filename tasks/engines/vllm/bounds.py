"""Limits on a whole request: the network stream counts its time and bytes, from the connection to the last byte.

The timeouts of HTTP clients apply to each read, and so restart with each byte, including those of headers.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import httpcore

from tasks.engines.protocol import EngineError

_CONNECT_SECONDS = 10.0
_LONGEST = 1e8
"""Seconds; sockets take no more than a C integer of nanoseconds."""


class NoAnswerError(Exception):
    """A server is unreachable, overloaded or broken; it may answer later."""


class Bounds:
    """The time and bytes left to a request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seconds, self._end, self._limit, self.received = 0.0, 0.0, 0, 0
        self._stopped = False
        self.socket: socket.socket | None = None
        """The socket of the current connection."""

    def start(self, seconds: float, limit: int) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self._limit, self.received = limit, 0

    def left(self) -> float:
        """Seconds left.

        Raises:
            NoAnswerError: no time is left, or the request was stopped.
        """
        left = self._end - time.monotonic()
        if self._stopped:
            raise NoAnswerError(f"{self._url}: the request was stopped")
        if left <= 0:
            self.raise_timeout()
        return min(left, _LONGEST)

    def raise_timeout(self) -> NoReturn:
        raise NoAnswerError(f"{self._url}: no complete answer within {round(self._seconds, 1):g} s")

    def count(self, received: bytes) -> bytes:
        """Count received bytes.

        Raises:
            EngineError: there are more than an answer can have.
        """
        self.received += len(received)
        if self.received > self._limit:
            raise EngineError(
                f"{self._url} answers with more than {self._limit} bytes, the limit for an answer of vLLM"
            )
        return received

    def stop(self) -> None:
        self._stopped = True
        if (opened := self.socket) is not None:
            with contextlib.suppress(OSError):  # already closed
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # wakes the reading thread; TLS is not closed


class BoundedBackend(httpcore.NetworkBackend):
    """Opens streams that enforce the bounds of a request."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds, self._tcp = bounds, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the host's addresses in turn, with one timeout for all of them together."""
        addresses = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
        end = time.monotonic() + _CONNECT_SECONDS
        for left, (*_, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            seconds = min((end - time.monotonic()) / left, self._bounds.left())
            try:
                stream = self._tcp.connect_tcp(str(address[0]), port, max(seconds, 1e-3), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if left == 1:
                    raise
            else:
                return _Stream(stream, self._bounds)
        raise httpcore.ConnectError(f"{host} has no address")


class _Stream(httpcore.NetworkStream):
    """A stream that enforces the bounds of its request and ignores the timeouts of callers."""

    def __init__(self, stream: httpcore.NetworkStream, bounds: Bounds) -> None:
        self._stream, self._bounds = stream, bounds
        bounds.socket = stream.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._bounds.count(self._stream.read(max_bytes, self._bounds.left()))
        except httpcore.ReadTimeout:
            self._bounds.raise_timeout()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sock, rest = self._stream.get_extra_info("socket"), memoryview(buffer)
        while rest:
            sock.settimeout(self._bounds.left())
            try:
                rest = rest[sock.send(rest) :]
            except TimeoutError:
                self._bounds.raise_timeout()
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = min(self._bounds.left(), _CONNECT_SECONDS)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._bounds)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
