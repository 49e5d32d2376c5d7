"""Leases: who works on what, so that processes sharing a store compute nothing twice.

To take a lease, a process writes an object of its own next to those of the others, then checks whether it is alone; if
not, it removes its object again. Of two processes that do so concurrently at least one sees the other, so never both
proceed. No process rewrites or removes the object of another that may be alive, and no name is used twice, so whatever
a stalled process does after resuming affects only its own objects. A holder renews its lease by rewriting the object.
A lease that no longer changes, or whose process on this machine has ended, has expired and is removed. No clocks are
compared: each observer measures for itself how long a lease has not changed.

A holder that stalls, or cannot reach the store, for longer than the lease duration must be assumed to have lost its
lease. It may not notice and finish its work. Two processes then do the same work, which is wasteful but harmless, as
artefacts are content-addressed.
"""

import json
import platform
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from schemas import limits
from tasks.operations.processes import is_gone, this_process
from tasks.store.outages import StoreError
from tasks.store.store import Store

FOLDER = "claims"
"""Folder of the leases; existing stores have it under this name."""
_WAIT = 0.2
"""Seconds between two attempts to take a lease that is waited for."""


def _machine() -> str:
    """Identifies the processes visible to this one: the host since its boot, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"


@dataclass
class Lease:
    """A lease of this process.

    Attributes:
        name: name of the object, never used by another lease.
        subject: leases with the same subject do not exclude each other.
        beats: number of renewals so far.
    """

    name: str
    subject: str | None
    beats: int = 0


@dataclass(frozen=True)
class Rival:
    """The current state of a competing lease.

    Attributes:
        here: its process is running on this machine.
        alive: so it is, or the lease has changed while being observed.
        expired: it has not changed for longer than the lease duration, or its process has ended.
    """

    name: str
    subject: str | None
    here: bool
    alive: bool
    expired: bool


class LeaseManager:
    """The leases of one process on one store."""

    def __init__(self, store: Store, duration: float) -> None:
        """Hold no lease yet.

        Args:
            duration: seconds without renewal after which others take a lease over, unless their own is longer.
        """
        self._store, self._duration = store, duration
        process, started = this_process()
        self._process = {"machine": _machine(), "process": process, "started": started}
        self._id, self._count = uuid.uuid4().hex, count()
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float, bool]] = {}

    @contextmanager
    def acquire(self, name: str, subject: str | None = None) -> Iterator[bool]:
        """Hold a lease for the duration of a block; yields False if another process holds it.

        Args:
            subject: identifies work that any number of processes may do together, as long as it is the same for all.
        """
        lease = self.take(name, subject)
        if lease is None:
            yield False
            return
        finished = Event()
        heartbeat = Thread(target=self._beat, args=(lease, finished), daemon=True)
        heartbeat.start()
        try:
            yield True
        finally:
            finished.set()
            heartbeat.join()
            self.release(lease)

    @contextmanager
    def wait(self, name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a lease for the duration of a block, once no other process holds it.

        Args:
            on_wait: called once if another process holds the lease.
        """
        waiting = False
        while True:
            with self.acquire(name) as acquired:
                if acquired:
                    yield
                    return
            if not waiting:
                on_wait()
            waiting = True
            time.sleep(_WAIT)

    def take(self, name: str, subject: str | None = None) -> Lease | None:
        """Take a lease, to be renewed within its duration and released; None if a competing lease is valid."""
        if _excluded(subject, self.rivals(name)):
            return None
        lease = Lease(f"{name}.{self._id}-{next(self._count)}", subject)
        self._held.add(lease.name)
        try:
            self.renew(lease)
            rivals = self.rivals(name, lease)
            if not _excluded(subject, rivals):
                for rival in rivals:
                    if rival.expired:
                        self._store.remove(FOLDER, rival.name)
                return lease
        except BaseException:
            self.release(lease)
            raise
        self.release(lease)
        return None

    def renew(self, lease: Lease) -> None:
        """Show that the holder is alive."""
        lease.beats += 1
        content = {**self._process, "subject": lease.subject, "beat": lease.beats, "seconds": self._duration}
        self._store.put_note(json.dumps(content).encode(), FOLDER, lease.name)

    def release(self, lease: Lease) -> None:
        """Make it available to others: at once, or once it expires if the store cannot be reached."""
        self._held.discard(lease.name)
        with suppress(OSError, StoreError):
            self._store.remove(FOLDER, lease.name)

    def rivals(self, name: str, own: Lease | None = None) -> list[Rival]:
        """Leases of a name, except one of this process."""
        found = self.holders({name}).get(name, [])
        return [rival for rival in found if own is None or rival.name != own.name]

    def holders(self, wanted: Collection[str]) -> dict[str, list[Rival]]:
        """Leases of many names, by name; those that nobody holds are left out."""
        existing = self._store.names(FOLDER)
        self._seen = {n: seen for n, seen in self._seen.items() if n in existing}
        out: dict[str, list[Rival]] = {}
        for object_name in existing:
            name = object_name.rpartition(".")[0]
            content = self._store.get_bytes(FOLDER, object_name) if name in wanted else None
            if content is not None:
                out.setdefault(name, []).append(self._rival(object_name, content))
        return out

    def present(self) -> set[str]:
        """Names for which there is a lease, expired or not: what can be had in one request."""
        return {name.rpartition(".")[0] for name in self._store.names(FOLDER)}

    def _rival(self, name: str, content: bytes) -> Rival:
        now = time.monotonic()
        before, since, changed = self._seen.get(name, (content, now, False))
        if content != before:
            since, changed = now, True
        self._seen[name] = content, since, changed
        try:
            lease = json.loads(content)
            subject = lease["subject"]
            duration = max(self._duration, _seconds(lease["seconds"]))
            local = lease["machine"] == self._process["machine"]
            ended = local and is_gone(lease["process"], lease["started"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):  # damaged
            subject, local, ended, duration = None, False, False, self._duration
        # an own lease that could not be removed when it was released
        left = name.rpartition(".")[2].startswith(self._id) and name not in self._held
        here = local and not ended
        return Rival(name, subject, here, here or changed, ended or left or now - since > duration)

    def _beat(self, lease: Lease, finished: Event) -> None:
        while not finished.wait(self._duration / 4):
            with suppress(OSError, StoreError):  # unreachable, or expired credentials: retried
                self.renew(lease)


def _seconds(said: Any) -> float:
    """How long a lease lasts.

    Raises:
        TypeError, ValueError: no settings allow it.
    """
    if not 0 < said <= limits.MOST_SECONDS:  # nor is NaN
        raise ValueError(f"{said!r} seconds")
    return float(said)


def _excluded(subject: str | None, rivals: list[Rival]) -> bool:
    return any(not rival.expired and (subject is None or rival.subject != subject) for rival in rivals)
