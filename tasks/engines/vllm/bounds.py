"""Bounds of a whole request: the network stream counts its time and its bytes, from the connection to the last byte.

The time limits of HTTP clients hold for each read, and so start anew with each byte, of headers too.
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
    """A server is away, overloaded or broken; it may answer another time."""


class Bounds:
    """Time and bytes that are left to a request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seconds, self._end, self._limit, self.received = 0.0, 0.0, 0, 0
        self._stopped = False
        self.socket: socket.socket | None = None
        """The one that requests go through."""

    def start(self, seconds: float, limit: int) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self._limit, self.received = limit, 0

    def left(self) -> float:
        """Seconds.

        Raises:
            NoAnswerError: none.
        """
        left = self._end - time.monotonic()
        if self._stopped:
            raise NoAnswerError(f"{self._url}: the request was stopped")
        if left <= 0:
            self.late()
        return min(left, _LONGEST)

    def late(self) -> NoReturn:
        raise NoAnswerError(f"{self._url}: no whole answer within {round(self._seconds, 1):g} s")

    def count(self, received: bytes) -> bytes:
        """Note bytes that came.

        Raises:
            EngineError: they are more than an answer can have.
        """
        self.received += len(received)
        if self.received > self._limit:
            raise EngineError(
                f"{self._url} answers with more than {self._limit} bytes, the most that vLLM's answer has"
            )
        return received

    def stop(self) -> None:
        self._stopped = True
        if (opened := self.socket) is not None:
            with contextlib.suppress(OSError):  # closed meanwhile
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # wakes the thread that reads; TLS is left as it is


class BoundedBackend(httpcore.NetworkBackend):
    """Opens streams whose requests end."""

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
        """Try the host's addresses in turn, all of them within the time for one."""
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
    """A stream that keeps to its request's bounds, whatever time its callers name."""

    def __init__(self, stream: httpcore.NetworkStream, bounds: Bounds) -> None:
        self._stream, self._bounds = stream, bounds
        bounds.socket = stream.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._bounds.count(self._stream.read(max_bytes, self._bounds.left()))
        except httpcore.ReadTimeout:
            self._bounds.late()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sock, rest = self._stream.get_extra_info("socket"), memoryview(buffer)
        while rest:
            sock.settimeout(self._bounds.left())
            try:
                rest = rest[sock.send(rest) :]
            except TimeoutError:
                self._bounds.late()
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
