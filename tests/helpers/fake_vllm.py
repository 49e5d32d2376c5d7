"""A server on loopback that answers as vLLM does, or as badly as a test wants, and a student to go with it."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tasks.engines.protocol import EngineError

VOCABULARY, ROWS, STOP, LENGTH = 30, 34, frozenset([1]), 4096
LOG_PROB = -1.5

Reply = dict[str, Any] | list[Any] | bytes | Iterator[bytes]
"""JSON for a proper answer; bytes, at once or in pieces, for whatever is sent before the connection is closed."""
Behaviour = Callable[[str, dict[str, Any]], Reply]


class Student:
    """As much of the student as a sampler on servers needs."""

    vocabulary, rows = VOCABULARY, ROWS

    def probe(self) -> list[int]:
        return [7, 3, 2, 9, 1, 0]

    def probe_scores(self) -> torch.Tensor:
        return torch.full((len(self.probe()) - 1,), LOG_PROB)

    def compare(self, what: str, own: torch.Tensor, other: torch.Tensor) -> None:
        assert own.shape == other.shape
        if not torch.allclose(own, other):
            raise EngineError(f"log-probabilities {what} differ")


def tokens(seed: int, limit: int) -> list[int]:
    """What the honest server samples: half of its draws end with the stop token."""
    body = [2 + (seed + i) % (VOCABULARY - 2) for i in range(limit)]
    return [*body[: limit // 2], 1] if seed % 2 else body


def honest(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """vLLM's answer."""
    if path == "/version":
        return {"version": "0.32.0"}
    if path == "/v1/models":
        return {"object": "list", "data": [{"id": "student", "object": "model", "max_model_len": LENGTH}]}
    if "prompt_logprobs" in body:
        steps = [{str(t): {"logprob": LOG_PROB, "rank": 3, "decoded_token": "x"}} for t in body["prompt"][1:]]
        return completion(token_ids=[5], prompt_logprobs=[None, *steps])
    return completion(prompt_token_ids=body["prompt"], token_ids=tokens(body["seed"], body["max_tokens"]))


def completion(**choice: Any) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 0, "text": "abc", **choice}]}


def is_draw(path: str, body: dict[str, Any]) -> bool:
    return path == "/v1/completions" and "prompt_logprobs" not in body


def http(content: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def drip(data: bytes, gap: float = 0.02) -> Iterator[bytes]:
    """A byte at a time, for ever."""
    for byte in data:
        yield bytes([byte])
        time.sleep(gap)


class FakeServer:
    """Serves until closed, each connection on a thread of its own."""

    def __init__(self, behaviour: Behaviour = honest, tls: ssl.SSLContext | None = None) -> None:
        self.behaviour, self._tls = behaviour, tls
        self.sent, self.requests, self.connections = 0, 0, 0
        self.seen: list[tuple[str, dict[str, str]]] = []
        """Paths and headers of requests."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        for sock in [self._socket, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._connected, args=(sock,), daemon=True).start()

    def _connected(self, sock: socket.socket) -> None:
        with contextlib.closing(sock), contextlib.suppress(OSError):
            stream = sock if self._tls is None else self._tls.wrap_socket(sock, server_side=True)
            while self._answered(stream):
                pass

    def _answered(self, sock: socket.socket) -> bool:
        """One request; false where the connection ends behind it."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := sock.recv(2**16)):
                return False
            data += more
        head, _, content = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(content) < int(headers.get("content-length", 0)):
            content += sock.recv(2**16)
        path = first.split()[1]
        self.requests += 1
        self.seen.append((path, headers))
        reply = self.behaviour(path, json.loads(content) if content else {})
        if isinstance(reply, dict | list):
            sock.sendall(http(json.dumps(reply).encode()))
            return True
        for piece in [reply] if isinstance(reply, bytes) else reply:
            if self._closed.is_set():
                break
            sock.sendall(piece)
            self.sent += len(piece)
        return False
