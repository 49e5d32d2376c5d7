"""Leases: who works on what, so that processes that share a store compute nothing twice.

Who wants to work puts an object of its own beside those of the others and then looks whether it is alone; if not, it
takes its own away again. Of two that do so at once at least one sees the other, so that never both go on. Nobody
rewrites or removes the object of a process that may be alive, and no name is used twice: what a process does that had
stalled, whenever it comes back, meets only what is its own. A holder rewrites its object from time to time; one that no
longer changes, or whose process on this machine is gone, counts no more and is removed. No clocks are compared: an
observer measures on its own how long a claim has not changed.

A holder that stalls for longer than the lease, or that the store is away from for so long, must be taken to have lost
its claim. It may not notice and finish: two then do the same work, which is wasted and harms nothing, as artefacts are
named by their content.
"""

import json
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event, Thread

from tasks.operations.processes import is_gone, this_process
from tasks.store.outages import StoreError
from tasks.store.store import Store

FOLDER = "claims"
_WAIT = 0.2
"""Seconds between two looks at a claim that is waited for."""


def _machine() -> str:
    """Names the processes that this one can see: a host since its start, and its container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode():x}"


@dataclass
class Claim:
    """A claim of this process.

    Attributes:
        name: of the object, which no other claim ever has.
        subject: those of one subject exclude each other not.
        beats: signs of life so far.
    """

    name: str
    subject: str | None
    beats: int = 0


@dataclass(frozen=True)
class Rival:
    """Another's object, as it is now.

    Attributes:
        alive: it has changed while it was looked at, or its process is on this machine.
        expired: it has not changed for longer than the lease, or its process is gone.
    """

    name: str
    subject: str | None
    alive: bool
    expired: bool


class LeaseManager:
    """The claims of one process on one store."""

    def __init__(self, store: Store, lease: float) -> None:
        """Hold nothing yet.

        Args:
            lease: seconds without a sign of life after which others take a claim over.
        """
        self._store, self._lease = store, lease
        process, started = this_process()
        self._process = {"machine": _machine(), "process": process, "started": started}
        self._id, self._count = uuid.uuid4().hex, count()
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float, bool]] = {}

    @contextmanager
    def acquire(self, name: str, subject: str | None = None) -> Iterator[bool]:
        """Hold a claim for the time of a block; gives False where another holds it.

        Args:
            subject: what the work is of, where any number of processes may do it together as long as it is the same.
        """
        claim = self.take(name, subject)
        if claim is None:
            yield False
            return
        over = Event()
        beating = Thread(target=self._beat, args=(claim, over), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            over.set()
            beating.join()
            self.release(claim)

    @contextmanager
    def wait(self, name: str, told: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a claim for the time of a block, once no other holds it.

        Args:
            told: is called where it has to be waited for.
        """
        waits = False
        while True:
            with self.acquire(name) as ours:
                if ours:
                    yield
                    return
            if not waits:
                told()
            waits = True
            time.sleep(_WAIT)

    def take(self, name: str, subject: str | None = None) -> Claim | None:
        """A claim that is now ours, to be renewed within the lease and released; None where another's is valid."""
        if _excluded(subject, self.rivals(name)):
            return None
        claim = Claim(f"{name}.{self._id}-{next(self._count)}", subject)
        self._held.add(claim.name)
        try:
            self.renew(claim)
            rivals = self.rivals(name, claim)
            if not _excluded(subject, rivals):
                for rival in rivals:
                    if rival.expired:
                        self._store.remove(FOLDER, rival.name)
                return claim
        except BaseException:
            self.release(claim)
            raise
        self.release(claim)
        return None

    def renew(self, claim: Claim) -> None:
        """Give a sign of life."""
        claim.beats += 1
        content = {**self._process, "subject": claim.subject, "beat": claim.beats}
        self._store.put_note(json.dumps(content).encode(), FOLDER, claim.name)

    def release(self, claim: Claim) -> None:
        """Let others have it: at once, or after the lease where the store is away."""
        self._held.discard(claim.name)
        with suppress(OSError, StoreError):
            self._store.remove(FOLDER, claim.name)

    def rivals(self, name: str, own: Claim | None = None) -> list[Rival]:
        """Leases of a name, but for one of our own."""
        there = self._store.names(FOLDER)
        self._seen = {n: seen for n, seen in self._seen.items() if n in there}
        others = [n for n in there if n.rpartition(".")[0] == name and (own is None or n != own.name)]
        contents = {n: self._store.get_bytes(FOLDER, n) for n in others}
        return [self._rival(n, content) for n, content in contents.items() if content is not None]

    def _rival(self, name: str, content: bytes) -> Rival:
        now = time.monotonic()
        before, since, changed = self._seen.get(name, (content, now, False))
        if content != before:
            since, changed = now, True
        self._seen[name] = content, since, changed
        try:
            held = json.loads(content)
            subject = held["subject"]
            here = held["machine"] == self._process["machine"]
            gone = here and is_gone(held["process"], held["started"])
        except (ValueError, KeyError, TypeError):  # damaged
            subject, here, gone = None, False, False
        left = name.rpartition(".")[2].startswith(self._id) and name not in self._held  # released while away
        return Rival(name, subject, (here and not gone) or changed, gone or left or now - since > self._lease)

    def _beat(self, claim: Claim, over: Event) -> None:
        while not over.wait(self._lease / 4):
            with suppress(OSError, StoreError):  # away, or its credentials have run out: tried again
                self.renew(claim)


def _excluded(subject: str | None, rivals: list[Rival]) -> bool:
    return any(not rival.expired and (subject is None or rival.subject != subject) for rival in rivals)
