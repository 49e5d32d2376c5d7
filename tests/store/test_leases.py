"""LeaseManager: of any number of processes that stall and come back at any point, one holds a lease."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.limits import MOST_SECONDS
from tasks.store import leases as module
from tasks.store.leases import FOLDER, Lease, LeaseManager
from tasks.store.store import Store

LEASE = 8.0
SOMEBODY = {"machine": "another", "process": 1, "started": 1.0, "subject": None, "beat": 1}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_one_that_comes_back_after_a_stall_takes_nothing_from_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three, four = (LeaseManager(store, 0.2) for _ in range(4))
    for leases in (two, three, four):
        monkeypatch.setattr(leases, "_process", {**leases._process, "machine": "another"})
    with ExitStack() as stalled, ExitStack() as second, ExitStack() as third:
        with monkeypatch.context() as patch:
            patch.setattr(LeaseManager, "_beat", lambda *args: None)
            assert stalled.enter_context(one.acquire("work"))
        assert not second.enter_context(two.acquire("work"))
        time.sleep(0.3)
        assert second.enter_context(two.acquire("work"))  # takes it over
        stalled.close()  # comes back, and releases
        assert not third.enter_context(three.acquire("work"))
        second.close()
        assert third.enter_context(three.acquire("work"))
        with four.acquire("work") as ours:
            assert not ours
    assert store.names(FOLDER) == []


def test_a_late_release_does_not_free_the_lease_of_the_next_but_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three, four = (LeaseManager(store, 0.2) for _ in range(4))
    with ExitStack() as stalled:
        with monkeypatch.context() as patch:
            patch.setattr(LeaseManager, "_beat", lambda *args: None)
            assert stalled.enter_context(one.acquire("work"))
        with two.acquire("work") as ours:
            assert not ours
        time.sleep(0.3)
        with two.acquire("work") as ours:
            assert ours
        with three.acquire("work") as ours:
            assert ours
            stalled.close()
            with four.acquire("work") as also:
                assert not also


def test_processes_that_do_the_same_share_a_lease(store: Store) -> None:
    one, two, three = (LeaseManager(store, 60.0) for _ in range(3))
    with (
        one.acquire("name", "this") as first,
        two.acquire("name", "this") as second,
        three.acquire("name", "that") as third,
    ):
        assert (first, second, third) == (True, True, False)
        with three.acquire("name") as alone:
            assert not alone
        assert all(rival.alive for rival in three.rivals("name"))
    with three.acquire("name", "that") as third:
        assert third


def test_what_is_held_is_waited_for(store: Store) -> None:
    one, two = LeaseManager(store, 60.0), LeaseManager(store, 60.0)
    told: list[str] = []
    order: list[str] = []

    def second() -> None:
        with two.wait("work", lambda: told.append("waits")):
            order.append("second")

    with one.wait("work", lambda: told.append("waits first")):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.5)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"] and told == ["waits"]


class Away:
    """A file system that fails while it is away."""

    def __init__(self, fs: Any) -> None:
        self._fs, self.away, self.calls = fs, False, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)

        def call(*args: Any, **options: Any) -> Any:
            if self.away:
                self.calls += 1
                raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
            return found(*args, **options)

        return call if callable(found) else found


def test_a_heartbeat_survives_an_outage(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}")
    fs = store.fs = Away(store.fs)
    others = LeaseManager(Store(f"memory://{tmp_path.name}"), 1.0)
    with LeaseManager(store, 1.0).acquire("work") as ours:
        assert ours
        fs.away = True
        time.sleep(0.6)
        assert fs.calls >= 1
        fs.away = False
        for _ in range(10):  # far longer than the lease
            time.sleep(0.2)
            with others.acquire("work") as theirs:
                assert not theirs
    assert store.names(FOLDER) == []


def test_what_an_outage_kept_from_being_released_is_our_own_again_at_once(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}")
    fs = store.fs = Away(store.fs)
    leases = LeaseManager(store, 60.0)
    with leases.acquire("work") as ours:
        assert ours
        fs.away = True  # the work is done, and its end is no error
    fs.away = False
    assert len(store.names(FOLDER)) == 1
    with leases.acquire("work") as ours:
        assert ours
    assert store.names(FOLDER) == []


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        *(
            json.dumps({**SOMEBODY, **changes}).encode()
            for changes in (
                {"seconds": float("inf")},
                {"seconds": float("nan")},
                {"seconds": -1.0},
                {"seconds": 0},
                {"seconds": 1e300},
                {"seconds": 10**400},
                {"seconds": MOST_SECONDS + 1},
                {"seconds": "60"},
                {"seconds": None},
                {"machine": module._machine(), "process": 10**30},
                {"machine": module._machine(), "process": [1]},
                {"machine": module._machine(), "process": -1},
            )
        ),
    ],
)
def test_a_damaged_lease_expires(content: bytes, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    leases = LeaseManager(store, LEASE)
    store.put_note(content, FOLDER, "work.x-0")
    leases.rivals("work")
    now[0] += LEASE + 1.0
    with leases.acquire("work") as ours:
        assert ours
    assert store.names(FOLDER) == []


@pytest.mark.parametrize(("said", "lasts"), [({"seconds": 100}, 100.0), ({"seconds": 1.0}, LEASE), ({}, LEASE)])
def test_a_lease_lasts_as_long_as_it_says(
    said: dict[str, float], lasts: float, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    leases = LeaseManager(store, LEASE)
    store.put_note(json.dumps({**SOMEBODY, **said}).encode(), FOLDER, "work.x-0")
    assert leases.present() == {"work"}
    assert leases.take("work") is None
    now[0] += lasts - 0.5
    assert leases.take("work") is None
    now[0] += 1.0
    assert leases.take("work") is not None


class Stepped(Store):
    """A store each of whose calls waits for leave: a process on it stalls wherever it is not let on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.leave, self.reached = threading.Semaphore(0), threading.Semaphore(0)

    def _stop(self) -> None:
        self.reached.release()
        self.leave.acquire()

    def put_note(self, data: bytes, *parts: str) -> None:
        self._stop()
        super().put_note(data, *parts)

    def get_bytes(self, *parts: str) -> bytes | None:
        self._stop()
        return super().get_bytes(*parts)

    def remove(self, *parts: str) -> None:
        self._stop()
        super().remove(*parts)

    def names(self, *parts: str) -> list[str]:
        self._stop()
        return super().names(*parts)


class Process:
    """Takes a lease, renews it a few times, releases it, again and again; one call to the store a step."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self.store, self.clock = Stepped(url), clock
        self.leases = LeaseManager(self.store, LEASE)
        self.leases._process = {**self.leases._process, "machine": uuid4().hex}  # none sees that another is gone
        self.lease: Lease | None = None
        self.written, self.silent, self.taken = clock(), 0.0, 0
        self.over = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        assert self.store.reached.acquire(timeout=10)

    def step(self) -> None:
        """Do one call, up to the next."""
        self.store.leave.release()
        assert self.store.reached.acquire(timeout=10)

    def stop(self) -> None:
        self.over = True
        for _ in range(1000):
            if not self.thread.is_alive():
                return
            self.store.leave.release()
            self.thread.join(0.01)

    def since(self) -> float:
        """The longest time without a sign of life since the lease was put."""
        return max(self.silent, self.clock() - self.written)

    def _wrote(self) -> None:
        self.silent, self.written = self.since(), self.clock()

    def _work(self) -> None:
        renew = self.leases.renew

        def noted(lease: Lease) -> None:
            if lease.beats == 0:
                self.silent, self.written = 0.0, self.clock()  # before the put: it counts from here
            renew(lease)
            self._wrote()

        self.leases.renew = noted  # type: ignore[method-assign]
        while not self.over:
            lease = self.leases.take("work")
            if lease is None:
                continue
            self.lease, self.taken = lease, self.taken + 1
            for _ in range(3):
                if not self.over:
                    self.leases.renew(lease)
            self.lease = None
            self.leases.release(lease)
        self.store.reached.release()


class Holders(RuleBasedStateMachine):
    """Three processes, each of which stalls between any two calls for any time."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep))
        url = f"memory://{uuid4().hex}"
        self.plain = Store(url)
        self.processes = [Process(url, lambda: self.now) for _ in range(3)]

    @rule(which=st.integers(0, 2), steps=st.integers(1, 12))
    def go_on(self, which: int, steps: int) -> None:
        for _ in range(steps):
            self.processes[which].step()
            self.one_holds()

    @rule(seconds=st.sampled_from([LEASE / 4, LEASE / 2, LEASE + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def one_holds(self) -> None:
        lively = [p for p in getattr(self, "processes", []) if p.lease is not None and p.since() <= LEASE]
        assert len(lively) <= 1, "two hold a lease, and neither was silent for longer than its duration"

    def teardown(self) -> None:
        if not hasattr(self, "processes"):
            return
        try:
            for process in self.processes:
                process.stop()
            assert not any(process.thread.is_alive() for process in self.processes)
            last = LeaseManager(self.plain, LEASE)
            last.rivals("work")
            self.now += LEASE + 1.0
            with last.acquire("work") as ours:  # nobody is left: it is free
                assert ours
            assert self.plain.names(FOLDER) == []
        finally:
            self.patch.undo()


Holders.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestHolders = Holders.TestCase
