"""A store's life in any order: two writers commit, read, take leases, stall, take over, pin and collect, beside damage
and files of others."""

import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tasks.store import leases as module
from tasks.store.garbage import leases as at_work
from tasks.store.garbage import remove, sweep, unreachable
from tasks.store.keys import digest
from tasks.store.leases import Lease, LeaseManager
from tasks.store.listing import damaged, holdings, stored
from tasks.store.references import pin, pin_also
from tasks.store.store import OBJECT, Store

LEASE = 8.0
STAGE, KEYS, RUNS = "rounds", [digest(i) for i in range(4)], ["one", "two"]
FOREIGN = [
    "rounds/2019/measured.csv",
    f"rounds/{KEYS[0]}/notes.txt",
    f"rounds/{KEYS[1]}/artefact.zarr.zip",
    f"rounds/{KEYS[2]}/deeper/round-0000.zarr.zip",
    "rounds/round-0000.zarr.zip",
    "values/model/artefact.zarr.zip",
    "claims.txt",
    "notes/a.md",
]
NAME = "round-0000.zarr.zip"

writers, keys, runs = st.integers(0, 1), st.sampled_from(KEYS), st.sampled_from(RUNS)


def arrays(key: str) -> dict[str, np.ndarray]:
    """What a key stands for: whoever makes it, the same."""
    rng = np.random.default_rng(int(key[:8], 16))
    return {
        "success": rng.random(9) < 0.5,
        "truncated": rng.random(9) < 0.1,
        "length": rng.integers(9, size=9, dtype=np.int32),
    }


class Writer:
    """A process on the store, which may hold a lease, and work under it, for as long as it likes."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.leases = LeaseManager(self.store, LEASE)
        self.leases._process = {**self.leases._process, "machine": uuid4().hex}
        self.lease: Lease | None = None
        self.beat, self.silent = 0.0, 0.0

    def note(self, now: float) -> None:
        """A sign of life has just been given."""
        self.silent, self.beat = max(self.silent, now - self.beat), now


class Life(RuleBasedStateMachine):
    """What the store must hold is kept beside it."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.elsewhere = Path(tempfile.mkdtemp())
        self.now, self.patch = 0.0, pytest.MonkeyPatch()
        self.patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep))
        self.writers = [Writer(str(self.folder)) for _ in range(2)]
        for writer in self.writers:
            writer.store.check_writable()
        self.whole: set[str] = set()
        self.broken: set[str] = set()
        self.needed: dict[str, list[set[str]]] = {}
        self.foreign: dict[Path, bytes] = {}

    def put(self, writer: Writer, key: str) -> None:
        writer.store.commit(STAGE, key, arrays(key), {}, name=NAME)
        self.whole.add(key)
        self.broken.discard(key)

    def kept(self) -> set[str]:
        return {key for parts in self.needed.values() for part in parts for key in part}

    @rule(which=writers, key=keys)
    def commit(self, which: int, key: str) -> None:
        self.put(self.writers[which], key)

    @rule(key=keys)
    def a_write_is_killed(self, key: str) -> None:
        path = self.folder / STAGE / key / f".{NAME}.{uuid4().hex}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")

    @rule(which=writers, key=keys)
    def read(self, which: int, key: str) -> None:
        found = self.writers[which].store.load(STAGE, key, name=NAME)
        assert (found is not None) == (key in self.whole)
        if found is not None:
            assert all(np.array_equal(found[name], value) for name, value in arrays(key).items())
        self.broken.discard(key)  # what does not verify is removed

    @rule(key=keys, place=st.integers(0, 2**31), torn=st.booleans())
    def damage(self, key: str, place: int, torn: bool) -> None:
        path = self.folder / STAGE / key / NAME
        if key in self.whole:
            data = bytearray(path.read_bytes())
            data[place % len(data)] ^= 1
            path.write_bytes(data[: place % len(data)] if torn else data)
            self.whole.discard(key)
            self.broken.add(key)

    @rule(which=writers, run=runs, needs=st.frozensets(keys, max_size=3))
    def a_run_begins(self, which: int, run: str, needs: frozenset[str]) -> None:
        pin(self.writers[which].store, run, "diagnose", sorted(f"{STAGE}/{key}" for key in needs))
        before = self.needed.get(run, [set()])
        self.needed[run] = [set(needs), *(before[1:] if before[0] == needs and run in self.needed else [])]

    @rule(which=writers, run=runs, key=keys)
    def its_keys_change(self, which: int, run: str, key: str) -> None:
        if run in self.needed:
            pin_also(self.writers[which].store, run, "diagnose", [f"{STAGE}/{key}"])
            self.needed[run].append({key})

    @rule(run=runs)
    def a_run_is_thrown_away(self, run: str) -> None:
        shutil.rmtree(self.folder / "runs" / run, ignore_errors=True)
        self.needed.pop(run, None)

    @rule(which=writers, key=keys, run=runs, meanwhile=st.booleans())
    def collect(self, which: int, key: str, run: str, meanwhile: bool) -> None:
        store = self.writers[which].store
        free = unreachable(store, older=0.0)
        assert {item.key for item in free}.isdisjoint(self.kept())
        if meanwhile and run in self.needed:
            self.its_keys_change(1 - which, run, key)
        sweep(store, free)
        self.whole &= self.kept()
        self.broken &= self.kept()
        assert {item.key for item in stored(store, STAGE)} <= self.kept()

    @rule(which=writers, repair=st.booleans())
    def verify(self, which: int, repair: bool) -> None:
        store = self.writers[which].store
        found = damaged(store)
        assert {item.key for item in found} == self.broken
        if repair:
            remove(store, found)
            self.broken.clear()

    @rule(name=st.sampled_from(FOREIGN))
    def somebody_writes(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.foreign[path] = name.encode()
        path.write_bytes(name.encode())

    @rule(stage=st.sampled_from(["trees", "ideal"]), key=keys, at=st.sampled_from(["stage", "key", "object"]))
    def somebody_links(self, stage: str, key: str, at: str) -> None:
        target = self.elsewhere / stage / key / OBJECT
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"elsewhere")
        self.foreign[target] = b"elsewhere"
        parts = {"stage": [stage], "key": [stage, key], "object": [stage, key, OBJECT]}[at]
        link = self.folder.joinpath(*parts)
        if not (self.folder / stage).is_symlink() and not link.parent.is_symlink() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.elsewhere.joinpath(*parts))

    @rule(which=writers)
    def lease(self, which: int) -> None:
        writer, other = self.writers[which], self.writers[1 - which]
        if writer.lease is None:
            writer.lease = writer.leases.take("work")
            if writer.lease is not None:
                writer.silent, writer.beat = 0.0, self.now
            else:
                assert other.lease is not None

    @rule(which=writers)
    def give_a_sign_of_life(self, which: int) -> None:
        writer = self.writers[which]
        if writer.lease is not None:
            writer.leases.renew(writer.lease)
            writer.note(self.now)

    @rule(which=writers, key=keys)
    def finish(self, which: int, key: str) -> None:
        """Perhaps long after it has lost its lease to the other."""
        writer = self.writers[which]
        if writer.lease is not None:
            self.put(writer, key)
            writer.leases.release(writer.lease)
            writer.lease = None

    @rule(seconds=st.sampled_from([LEASE / 4, LEASE / 2, LEASE + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: hasattr(self, "folder"))
    @invariant()
    def all_is_well(self) -> None:
        for path, content in self.foreign.items():
            assert path.read_bytes() == content
        store = self.writers[0].store
        there = {item.key for item in stored(store, STAGE) if item.name == NAME}
        assert there == self.whole | self.broken
        assert sum(held.artefacts for held in holdings(store) if held.stage != STAGE) == 0
        holders = [w for w in self.writers if w.lease is not None]
        assert len(at_work(store)) <= len(holders)
        assert sum(max(w.silent, self.now - w.beat) <= LEASE for w in holders) <= 1

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.patch.undo()
            shutil.rmtree(self.folder)
            shutil.rmtree(self.elsewhere)


Life.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
