"""HTTP requests that end: within a time, within a number of bytes, and with JSON or with one line that says why not.

Nothing is decompressed, no redirect is followed, no cookie or proxy is used, and the key is in no message.
"""

import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

import httpcore
import httpx
from pydantic import SecretStr

from tasks.engines.protocol import EngineError
from tasks.engines.vllm.bounds import BoundedBackend, Bounds, NoAnswerError

_IDLE_SECONDS = 2.0
"""A connection is not used again later; vLLM closes it after 5 s."""
_PORTS = {"http": 80, "https": 443}
_TRY_AGAIN = {408, 409, 425, 429}
_SHOWN = 300
_REQUEST_COPIES, _BYTES_A_TOKEN, _BYTES_BESIDE = 2, 384, 2**20


def api_key(variable: str) -> SecretStr | None:
    """The key that an environment variable holds; whitespace around it belongs to the file it came from.

    Raises:
        EngineError: it cannot be sent; the message names the variable alone.
    """
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise EngineError(
            f"the key in {variable} holds a space, a control character or one outside ASCII; "
            "set it to printable ASCII characters without spaces"
        )
    return SecretStr(key) if key else None


def answer_limit(request: int, tokens: int) -> int:
    """Most bytes that an answer, its headers included, can rightly have.

    vLLM returns the prompt's ids, and errors quote the request, some twice. Of each token that it scores or samples it
    gives the id, the text, the log-probability and the rank: about 100 bytes, but the longest tokens of vocabularies
    (128 spaces or line breaks, in JSON) take 256 alone. The rest is for headers, usage, proxies' pages of errors and
    lists of models.

    Args:
        request: bytes of the request's body.
        tokens: that are sampled, and scored.
    """
    return _BYTES_BESIDE + _REQUEST_COPIES * request + _BYTES_A_TOKEN * tokens


@dataclass(frozen=True)
class Answer:
    """What a server answered, and how to complain of it."""

    url: str
    value: object
    key: SecretStr | None = None

    def wrong(self, what: str, part: object) -> EngineError:
        """The error that tells where an answer breaks vLLM's contract; `part` of it is shown."""
        try:
            shown = repr(part)
        except RecursionError:
            shown = "nested too deeply"
        return EngineError(f"{self.url} {what}: {excerpt(shown, self.key)}")


def excerpt(text: str | bytes, key: SecretStr | None) -> str:
    """A server's text as a part of a message: one printable line, not long, without the key, escaped or not."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if key is not None:
        text = re.sub(r"\\{0,4}".join(map(re.escape, key.get_secret_value())), "***", text)
    cut = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


class Connection:
    """A connection to one server, for one thread; opened with a request, and again where the server has closed it."""

    def __init__(self, url: str, key: SecretStr | None = None) -> None:
        """Note the address.

        Raises:
            EngineError: it is none.
        """
        self.url, self._key = url, key
        try:
            parts = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise EngineError(f"{url!r} is no server's address ({error}); write http://host:port") from None
        if parts.port is not None and not 0 < parts.port < 2**16:
            raise EngineError(f"{url!r} is no server's address (port {parts.port}); ports are 1 to 65535")
        self._host_header, self._path = parts.netloc, parts.raw_path.rstrip(b"/")
        self._origin = httpcore.Origin(parts.raw_scheme, parts.raw_host, parts.port or _PORTS[parts.scheme])
        self._bounds = Bounds(url)
        self._open: httpcore.HTTPConnection | None = None

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float, tokens: int = 0) -> Answer:
        """The JSON that answers a GET, or the POST of `body`.

        Args:
            path: below the server's address, such as `/version`.
            seconds: for all of it, from the connection to the last byte.
            tokens: that the answer tells of.

        Raises:
            EngineError: the server refuses, or answers what it would answer again.
            NoAnswerError: it is away, too slow, overloaded or broken.
        """
        content = b"" if body is None else json.dumps(body).encode()
        self._bounds.start(seconds, answer_limit(len(content), tokens))
        target = httpcore.URL(
            scheme=self._origin.scheme,
            host=self._origin.host,
            port=self._origin.port,
            target=self._path + path.encode(),
        )
        try:
            response = self._request(b"GET" if body is None else b"POST", target, content)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            self.close()
            reason = excerpt(f"{type(error).__name__}: {error}".rstrip(": "), self._key)
            raise NoAnswerError(f"{self.url}: {reason}") from None  # the cause may quote the server, and it our key
        self._check_status(path, response)
        return Answer(self.url, self._json(path, response), self._key)

    def stop(self) -> None:
        """End what is under way, from another thread; every request from now on has no answer."""
        self._bounds.stop()

    def close(self) -> None:
        """Close; the next request opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _request(self, method: bytes, target: httpcore.URL, content: bytes) -> httpcore.Response:
        connection = self._open if self._open is not None and self._open.is_available() else None
        if fresh := connection is None or connection.has_expired():
            connection = self._opened()
        try:
            return connection.request(method, target, headers=self._headers(), content=content)
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            if fresh or self._bounds.received:
                raise
        self.close()  # by the server too, just as it was used again
        return self._request(method, target, content)

    def _opened(self) -> httpcore.HTTPConnection:
        self.close()
        self._open = httpcore.HTTPConnection(
            self._origin,
            ssl_context=_certificates() if self._origin.scheme == b"https" else None,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=BoundedBackend(self._bounds),
        )
        return self._open

    def _headers(self) -> list[tuple[bytes, bytes]]:
        key = [] if self._key is None else [(b"Authorization", f"Bearer {self._key.get_secret_value()}".encode())]
        return [
            (b"Host", self._host_header),
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"Content-Type", b"application/json"),
            *key,
        ]

    def _check_status(self, path: str, response: httpcore.Response) -> None:
        status = response.status
        if status in _TRY_AGAIN or status >= 500:
            said = excerpt(response.content, self._key)
            raise NoAnswerError(f"{self.url} answers {path} with status {status}: {said}")
        if status >= 400:
            raise EngineError(f"{self.url} refuses {path} (status {status}): {excerpt(response.content, self._key)}")
        if not 200 <= status < 300:
            raise EngineError(
                f"{self.url} answers {path} with status {status}; redirects are not followed, give vLLM's own address"
            )
        for name, value in response.headers:
            if name.lower() == b"content-encoding" and value.lower() != b"identity":
                shown = excerpt(value, self._key)
                raise EngineError(f"{self.url} answers {path} compressed ({shown}), which was not asked for")

    def _json(self, path: str, response: httpcore.Response) -> object:
        try:
            return json.loads(response.content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            said = excerpt(response.content, self._key)
            raise NoAnswerError(f"{self.url} answers {path} with something else than JSON: {said}") from None
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self.url} answers {path} with JSON that cannot be read ({error})") from None


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
