"""Decodes the calls of all threads in one batch: calls enter when there is room, and leave when they are done."""

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from tasks.engines.counts import MODEL_TIME
from tasks.engines.memory import is_out_of_memory
from tasks.engines.protocol import EngineError
from tasks.engines.sampling import inverse_cdf
from tasks.engines.transformers.batches import Batch, KeysValues, forward, token_bytes
from tasks.engines.transformers.calls import Call
from tasks.engines.transformers.decoding import Decoder
from tasks.engines.transformers.joined import JoinedBatch
from tasks.engines.transformers.scorer import TransformersScorer
from tasks.engines.transformers.trunks import TrunkCaches
from tasks.engines.transformers.work import Work
from tasks.engines.turn import TURN


@dataclass(eq=False)
class _Running:
    """A group of a call while it is decoded; `planned` are the tokens that it is expected to need."""

    call: Call
    decoder: Decoder
    planned: int


@dataclass(frozen=True)
class Limits:
    """What the loop may use.

    Attributes:
        capacity: tokens in caches.
        rows: most rows in a batch.
        logit_rows: most rows whose logits are in memory at once.
        min_rows: rows in a forward pass at least, so that each row's numbers do not depend on the others; None where
            no number of rows grants that, and each call is decoded on its own.
    """

    capacity: int
    rows: int
    logit_rows: int
    min_rows: int | None


@dataclass
class DecodingLoop:
    """A `tasks.engines.stream.Loop` of calls on one model.

    A call's rows are decoded as they are on their own, bit for bit: which of them run, and what they attend to,
    follows from the call alone (`Decoder`), and the rest of the model works row by row (`JoinedBatch`). So it does
    not matter which other calls run beside it, or whether it was interrupted and started anew.
    """

    scorer: TransformersScorer
    stop: frozenset[int]
    layers: KeysValues
    caches: TrunkCaches
    limits: Limits
    work: Work
    _waiting: deque[Call] = field(default_factory=deque)
    _running: list[_Running] = field(default_factory=list)

    def submit(self, call: Call) -> None:
        """Queue a call."""
        self._waiting.append(call)

    def abort(self) -> None:
        """Drop all calls."""
        for running in list(self._running):
            self._leave(running)
        self._waiting.clear()

    @torch.inference_mode()
    def advance(self) -> Sequence[tuple[Call, Exception | None]]:
        """One token for every running row."""
        with TURN, MODEL_TIME.measured():
            closed = self._enter()
            if self._running:
                try:
                    self._step()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    closed += self._relieve(error)
            return closed + self._collect()

    def _enter(self) -> list[tuple[Call, Exception | None]]:
        """Start waiting calls, in their order, while there is room; at least one."""
        closed: list[tuple[Call, Exception | None]] = []
        while self._waiting and (not self._running or self._fits(self._waiting[0])):
            call = self._waiting.popleft()
            try:
                self._running.append(self._started(call))
            except EngineError as error:
                if self._running:  # there is more memory when those are done
                    self._waiting.appendleft(call)
                    break
                closed.append((call, error))
            except Exception as error:  # noqa: BLE001 - it is of this call alone, whose thread raises it
                closed.append((call, error))
        return closed

    def _planned(self, call: Call) -> tuple[int, int]:
        """Rows and tokens that the next group of a call is expected to need."""
        group = call.groups[0]
        lengths = group.expected[: self.limits.rows]
        expected = sum(group.trunks.values()) + sum(lengths)
        return len(lengths), max(min(expected, self.limits.capacity), call.needed)

    def _fits(self, call: Call) -> bool:
        if self.limits.min_rows is None:
            return False
        rows, tokens = self._planned(call)
        running = sum(min(len(r.call.groups[0].members), self.limits.rows) for r in self._running)
        return running + rows <= self.limits.rows and self._needed() + tokens <= self.limits.capacity

    def _needed(self) -> int:
        return sum(max(r.planned, r.decoder.allocated) for r in self._running)

    def _started(self, call: Call) -> _Running:
        _, planned = self._planned(call)
        self.caches.shrink(max(0, self.limits.capacity - self._needed() - planned))
        caches: dict[int, KeysValues] = {}
        with ExitStack() as undo:
            undo.callback(lambda: self.caches.release(call.trunks[t] for t in caches))
            for t, length in call.groups[0].trunks.items():
                caches[t] = self.caches.acquire(call.trunks[t], length)
            undo.pop_all()
        held = sum(cache[0][0].shape[2] for cache in caches.values() if cache)
        decoder = Decoder(
            call.rows(caches),
            self.stop,
            self.layers,
            capacity=max(1, self.limits.capacity - held),
            max_rows=self.limits.rows,
            device=self.scorer.device,
        )
        return _Running(call, decoder, planned)

    def _step(self) -> None:
        batches = [r.decoder.prepare() for r in self._running]
        while len(self._running) > 1 and self._allocated() > self.limits.capacity:
            self._put_back(self._running[-1])
            batches.pop()
        joined = JoinedBatch(batches, self.limits.min_rows or 0, self.scorer.device)
        inputs, uniforms = zip(*(r.decoder.inputs(b) for r, b in zip(self._running, batches, strict=True)), strict=True)
        padding = np.zeros(joined.padding, dtype=np.int64)
        states = forward(self.scorer.model, joined, torch.from_numpy(np.concatenate([*inputs, padding])))
        u = torch.from_numpy(np.concatenate([*uniforms, padding])).to(states.device)
        t = self._temperatures(batches, joined.padding, states.device)
        parts = -(-len(states) // self.limits.logit_rows)
        pieces = zip(*(x.tensor_split(parts) for x in (states, u, t)), strict=True)
        tokens = torch.cat([inverse_cdf(self.scorer.logits(h), v, w) for h, v, w in pieces]).cpu().numpy()
        for running, batch, (start, end) in zip(self._running, batches, pairwise(joined.bounds), strict=True):
            self._count(batch)
            running.decoder.take(batch, tokens[start:end])
        self.work.steps += 1

    def _temperatures(self, batches: Sequence[Batch], padding: int, device: torch.device) -> torch.Tensor:
        """The temperature of each row, [B]."""
        temperatures = [r.call.temperature for r in self._running]
        rows = [np.full(len(b.rows), t, np.float32) for t, b in zip(temperatures, batches, strict=True)]
        return torch.from_numpy(np.concatenate([*rows, np.ones(padding, np.float32)])).to(device)

    def _allocated(self) -> int:
        return self.caches.used + sum(r.decoder.allocated for r in self._running)

    def _collect(self) -> list[tuple[Call, Exception | None]]:
        """Take the results of groups that are done; their calls go on with the next group, or are done too."""
        closed: list[tuple[Call, Exception | None]] = []
        for running in [r for r in self._running if r.decoder.finished]:
            ends = running.decoder.results()
            self.work.useful_steps += sum(len(end.tokens) for end in ends)
            self._leave(running)
            running.call.finish(ends)
            if running.call.groups:
                self._waiting.appendleft(running.call)
            else:
                closed.append((running.call, None))
        return closed

    def _relieve(self, error: BaseException) -> list[tuple[Call, Exception | None]]:
        """After a failed allocation: put the newest call back, or half of the rows of the only one."""
        self.caches.shrink(0)
        if self.scorer.device.type == "cuda":
            torch.cuda.empty_cache()
        first, *others = self._running
        put_back = [r for r in reversed(others) if r is self._running[-1] or not r.decoder.whole]
        for running in put_back:
            self._put_back(running)
        if put_back and first.decoder.whole:
            return []
        try:
            first.decoder.shrink(error)
        except EngineError as failed:
            self._leave(first)
            return [(first.call, failed)]
        return []

    def _put_back(self, running: _Running) -> None:
        """Let a group wait again, to be decoded anew where there is room for what it needs."""
        running.call.needed = min(self.limits.capacity, 2 * max(running.planned, running.decoder.allocated))
        self._leave(running)
        self._waiting.appendleft(running.call)

    def _leave(self, running: _Running) -> None:
        self._running.remove(running)
        self.caches.release(running.call.trunks[t] for t in running.call.groups[0].trunks)

    def _count(self, batch: Batch) -> None:
        self.work.row_steps += len(batch.rows)
        tokens = sum(b.length for b in batch.blocks) + sum(len(c.rows) * (c.step + 1) for c in batch.cohorts)
        self.work.cache_bytes += tokens * token_bytes(self.layers)
