"""Claims: who works on what, so that processes that share a store compute nothing twice.

A claim is a small object that can only be created once. Its holder rewrites it from time to time; one that no longer
changes, or whose process on this machine is gone, is taken over by creating the next generation beside it, which only
one process can. No clocks are compared: an observer measures on its own how long a claim has not changed.
"""

import json
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from tasks.processes import is_gone, this_process
from tasks.store.artefact import Store

FOLDER = "claims"


def _machine() -> str:
    """Names the processes that this one can see: a host since its start, and its container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"


class Claims:
    """The claims of one process on one store."""

    def __init__(self, store: Store, lease: float) -> None:
        """Hold nothing yet.

        Args:
            lease: seconds without a sign of life after which others take a claim over.
        """
        self._store, self._lease = store, lease
        process, started = this_process()
        self._holder = {
            "machine": _machine(),
            "process": process,
            "started": started,
            "holder": uuid.uuid4().hex,
        }
        self._seen: dict[tuple[str, int], tuple[bytes, float]] = {}

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a claim for the time of a block; gives False where another holds it."""
        generation = self._take(name)
        if generation is None:
            yield False
            return
        over = Event()
        beating = Thread(target=self._beat, args=(name, generation, over), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            over.set()
            beating.join()
            for g in range(1, generation + 1):
                self._store.remove(FOLDER, _object(name, g))

    def _take(self, name: str) -> int | None:
        """The generation that is now ours; None where another's is valid."""
        generation = 1
        if self._create(name, generation):
            return generation
        content: bytes | None = None
        while (following := self._store.get_bytes(FOLDER, _object(name, generation))) is not None:
            content, generation = following, generation + 1
        if content is None or not self._has_expired(name, generation - 1, content):
            return None  # just released, or held
        return generation if self._create(name, generation) else None

    def _create(self, name: str, generation: int) -> bool:
        return self._store.create_bytes(self._content(0), FOLDER, _object(name, generation))

    def _content(self, beat: int) -> bytes:
        return json.dumps({**self._holder, "beat": beat}).encode()

    def _has_expired(self, name: str, generation: int, content: bytes) -> bool:
        now = time.monotonic()
        before, since = self._seen.get((name, generation), (None, now))
        if content != before:
            since = now
            self._seen[name, generation] = content, now
        try:
            held = json.loads(content)
            if held["machine"] == self._holder["machine"] and is_gone(held["process"], held["started"]):
                return True
        except (ValueError, KeyError, TypeError):  # half written
            pass
        return now - since > self._lease

    def _beat(self, name: str, generation: int, over: Event) -> None:
        beat = 0
        while not over.wait(self._lease / 4):
            beat += 1
            try:
                self._store.put_bytes(self._content(beat), FOLDER, _object(name, generation))
            except OSError:  # the store is away: others may take over, which costs work and nothing else
                continue


def _object(name: str, generation: int) -> str:
    return f"{name}.{generation}"
