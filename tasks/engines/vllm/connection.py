"""HTTP requests bounded in time and bytes, which return JSON or fail with a one-line error.

Nothing is decompressed, no redirect is followed, no cookie or proxy is used, and no message contains the key.
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
"""Connections idle for longer are not reused; vLLM closes them after 5 s."""
_PORTS = {"http": 80, "https": 443}
_RETRY_STATUS = {408, 409, 425, 429}
_EXCERPT_LENGTH = 300
_REQUEST_COPIES, _BYTES_PER_TOKEN, _BYTES_OVERHEAD = 2, 384, 2**20


def api_key(variable: str) -> SecretStr | None:
    """The key in an environment variable, without surrounding whitespace, which stems from the file it came from.

    Raises:
        EngineError: the key cannot be sent; the message names only the variable.
    """
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise EngineError(
            f"the key in {variable} contains a space, a control character or one outside ASCII; "
            "set it to printable ASCII characters without spaces"
        )
    return SecretStr(key) if key else None


def answer_limit(request: int, tokens: int) -> int:
    """Maximum size in bytes of a valid answer, including its headers.

    vLLM returns the prompt's ids, and errors quote the request, some twice. For each token that it scores or samples
    it returns the id, the text, the log-probability and the rank: about 100 bytes, but the longest tokens of
    vocabularies (128 spaces or line breaks, in JSON) take 256 on their own. The rest is for headers, usage, error pages
    of proxies and lists of models.

    Args:
        request: bytes of the request's body.
        tokens: number of tokens that are sampled or scored.
    """
    return _BYTES_OVERHEAD + _REQUEST_COPIES * request + _BYTES_PER_TOKEN * tokens


@dataclass(frozen=True)
class Answer:
    """The answer of a server; it can build errors that quote it."""

    url: str
    value: object
    key: SecretStr | None = None

    def wrong(self, what: str, part: object) -> EngineError:
        """An error for an answer that violates vLLM's contract; `part` of the answer is quoted."""
        try:
            quoted = repr(part)
        except RecursionError:
            quoted = "nested too deeply"
        return EngineError(f"{self.url} {what}: {excerpt(quoted, self.key)}")


def excerpt(text: str | bytes, key: SecretStr | None) -> str:
    """A server's text for use in a message: one short printable line, with the key masked, escaped or not."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if key is not None:
        text = re.sub(r"\\{0,4}".join(map(re.escape, key.get_secret_value())), "***", text)
    truncated = text[:_EXCERPT_LENGTH] + ("..." if len(text) > _EXCERPT_LENGTH else "")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in truncated)


class Connection:
    """A connection to one server, for one thread; opened by a request, and reopened if the server has closed it."""

    def __init__(self, url: str, key: SecretStr | None = None) -> None:
        """Parse the address; nothing is opened yet.

        Raises:
            EngineError: the URL is not a valid address.
        """
        self.url, self._key = url, key
        try:
            parts = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise EngineError(f"{url!r} is not a server address ({error}); write http://host:port") from None
        if parts.port is not None and not 0 < parts.port < 2**16:
            raise EngineError(f"{url!r} is not a server address (port {parts.port}); ports are 1 to 65535")
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
        """The JSON answer to a GET, or to a POST of `body`.

        Args:
            path: below the server's address, such as `/version`.
            seconds: time limit for all of it, from the connection to the last byte.
            tokens: number of tokens in the answer.

        Raises:
            EngineError: the server refuses, or gives a wrong answer that a retry would not change.
            NoAnswerError: it is unreachable, too slow, overloaded or broken.
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
            raise NoAnswerError(f"{self.url}: {reason}") from None  # the cause may quote the key
        self._check_status(path, response)
        return Answer(self.url, self._json(path, response), self._key)

    def stop(self) -> None:
        """Abort the current request, from another thread; all later requests fail with `NoAnswerError`."""
        self._bounds.stop()

    def close(self) -> None:
        """Close the connection; the next request reopens it."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _request(self, method: bytes, target: httpcore.URL, content: bytes) -> httpcore.Response:
        connection = self._open if self._open is not None and self._open.is_available() else None
        if fresh := connection is None or connection.has_expired():
            connection = self._reopen()
        try:
            return connection.request(method, target, headers=self._headers(), content=content)
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            if fresh or self._bounds.received:
                raise
        self.close()  # the server closed it just as it was reused
        return self._request(method, target, content)

    def _reopen(self) -> httpcore.HTTPConnection:
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
        if status in _RETRY_STATUS or status >= 500:
            quoted = excerpt(response.content, self._key)
            raise NoAnswerError(f"{self.url} answers {path} with status {status}: {quoted}")
        if status >= 400:
            raise EngineError(f"{self.url} refuses {path} (status {status}): {excerpt(response.content, self._key)}")
        if not 200 <= status < 300:
            raise EngineError(
                f"{self.url} answers {path} with status {status}; redirects are not followed, give vLLM's own address"
            )
        for name, value in response.headers:
            if name.lower() == b"content-encoding" and value.lower() != b"identity":
                encoding = excerpt(value, self._key)
                raise EngineError(f"{self.url} answers {path} compressed ({encoding}), which was not requested")

    def _json(self, path: str, response: httpcore.Response) -> object:
        try:
            return json.loads(response.content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            quoted = excerpt(response.content, self._key)
            raise NoAnswerError(f"{self.url} answers {path} with something other than JSON: {quoted}") from None
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self.url} answers {path} with JSON that cannot be read ({error})") from None


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
