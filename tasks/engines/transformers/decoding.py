"""Decodes the draws of one call: rows that end leave its batch, and waiting draws enter."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tasks.engines.protocol import Continuation, EngineError
from tasks.engines.transformers.batches import (
    _BLOCK,
    Batch,
    Cohort,
    Ints,
    KeysValues,
    Row,
    compact,
    widen,
)
from tasks.statistics.streams import uniforms

_MAX_ENDED = 1 / 8
"""A cohort is compacted when a larger share of its rows has ended."""


_MIN_ENTERING = 1 / 8
"""Waiting draws enter when they make up at least this share of the batch, or when nothing else runs."""


_INITIAL_WIDTH = 32
"""Width of buffers if memory has no room for the expected length."""


_GROWTH = 1.5
"""Factor by which buffers grow."""


class Decoder:
    """Decodes rows to completion within a memory budget, one token of each running row at a time.

    What it does next follows from its own rows alone, whatever is decoded in the same forward passes.

    Args:
        rows: the draws.
        stop: token ids that end a draw.
        layers: empty keys and values of every layer, [1, K, 0, E], which give the shapes.
        capacity: most tokens in the caches of all rows together.
        max_rows: most rows in a batch.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        stop: frozenset[int],
        layers: KeysValues,
        *,
        capacity: int,
        max_rows: int,
        device: torch.device,
    ) -> None:
        self._rows, self._layers, self._device = rows, layers, device
        self._stop = np.array(sorted(stop), dtype=np.int64)
        self._capacity, self._max_rows = capacity, max_rows
        self._block = _BLOCK.get(device.type, 64)
        self._trunk_of = np.array([r.draw.trunk for r in rows], dtype=np.int64)
        self._trunks = {r.draw.trunk: r.trunk for r in rows}
        self._limits = np.array([r.draw.limit for r in rows])
        self._seeds = np.array([r.draw.seed for r in rows], dtype=np.uint64)
        self._inputs = np.array([r.token for r in rows], dtype=np.int64)
        self._sampled: list[list[int]] = [[] for _ in rows]
        self._truncated = np.zeros(len(rows), dtype=bool)
        # longest first, so that the last rows to run are short; rows of a trunk stay together
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].expected, rows[i].draw.trunk, rows[i].visible))
        self._waiting = deque(order)
        self._cohorts: list[Cohort] = []
        self._ended = self._ended_tokens = 0
        self._batch: Batch | None = None

    @property
    def finished(self) -> bool:
        """True once every row has ended."""
        return not self._waiting and not self._cohorts

    @property
    def allocated(self) -> int:
        """Tokens that the buffers of running rows can hold."""
        return sum(c.width * len(c.rows) for c in self._cohorts)

    @property
    def whole(self) -> bool:
        """False if an allocation failed partway."""
        return all(c.whole(len(self._layers)) for c in self._cohorts)

    def results(self) -> list[Continuation]:
        """The continuations, in the order of the rows."""
        return [
            Continuation(np.array(tokens, dtype=np.int32), bool(truncated))
            for tokens, truncated in zip(self._sampled, self._truncated, strict=True)
        ]

    def prepare(self) -> Batch:
        """The rows of the next step, with room for a token each."""
        batch, self._batch = self._batch, None  # stays unset if an allocation fails
        entered, grown = self._admit(), self._make_room()
        if entered or grown or batch is None:
            batch = Batch(self._cohorts, self._trunks, self._trunk_of, self._block, self._device)
        self._batch = batch
        return batch

    def inputs(self, batch: Batch) -> tuple[Ints, npt.NDArray[np.float64]]:
        """The input token of each row of a step, and the uniform that samples its next one, [B] each."""
        return self._inputs[batch.rows], uniforms(self._seeds[batch.rows], batch.steps())

    def take(self, batch: Batch, tokens: Ints) -> None:
        """Append a step's sampled tokens, [B]; rows that end with them leave."""
        self._inputs[batch.rows] = tokens
        for cohort, start, end in zip(batch.cohorts, batch.bounds, batch.bounds[1:], strict=False):
            sampled = tokens[start:end]
            for i, token in zip(cohort.rows[cohort.alive].tolist(), sampled[cohort.alive].tolist(), strict=True):
                self._sampled[i].append(token)
            cohort.step += 1
            stopped, full = np.isin(sampled, self._stop), self._limits[cohort.rows] <= cohort.step
            ending = cohort.alive & (stopped | full)
            self._truncated[cohort.rows[ending]] = ~stopped[ending]
            self._ended += int(ending.sum())
            self._ended_tokens += cohort.step * int(ending.sum())
            cohort.alive &= ~ending
        self._retire()

    def shrink(self, error: BaseException) -> None:
        """After a failed allocation: set the capacity to half of what was allocated or requested.

        Raises:
            EngineError: not even one row fits in memory.
        """
        requested = sum(max(c.width, _INITIAL_WIDTH) * len(c.rows) for c in self._cohorts)
        self._capacity, self._batch = max(1, requested // 2), None
        if not self._cohorts or not self._preempt():
            raise EngineError(
                f"not enough memory on {self._device} for one draw; lower sampling.max_tokens, or use a smaller model "
                "or a device with more memory"
            ) from error
        while not self.whole:
            if not self._preempt():
                raise EngineError(f"not enough memory on {self._device} for one draw; lower engine.rows") from error

    def _expected(self, i: int) -> int:
        """Expected length of a draw: from its trunk or, if unknown there, from the draws that have ended."""
        expected, limit = self._rows[i].expected, int(self._limits[i])
        if expected >= limit and self._ended >= 16:
            return min(limit, 1 + int(1.5 * (self._ended_tokens / self._ended)))
        return expected

    def _admit(self) -> bool:
        """Admit waiting draws while there is room in batch and memory."""
        if not self._waiting:
            return False
        running = sum(len(c.rows) for c in self._cohorts)
        if running > (1 - _MIN_ENTERING) * self._max_rows:
            return False
        free = self._capacity - sum(
            max(self._expected(int(i)) + 1, c.width) for c in self._cohorts for i in c.rows[c.alive]
        )
        entering: list[int] = []
        while self._waiting and running + len(entering) < self._max_rows:
            need = self._expected(self._waiting[0]) + 1
            if need > free and (running or entering):
                break
            free -= need
            entering.append(self._waiting.popleft())
        enough = min(_MIN_ENTERING * (running + len(entering)), len(entering) + len(self._waiting))
        if running and len(entering) < enough:
            self._waiting.extendleft(reversed(entering))
            return False
        if not entering:
            return False
        entering.sort(key=lambda i: (self._rows[i].draw.trunk, self._rows[i].visible, i))
        self._cohorts.append(Cohort.of(entering, [self._rows[i].visible for i in entering]))
        return True

    def _make_room(self) -> bool:
        """Grow full buffers; if memory has no room for that, the newest rows return to the queue."""
        changed = False
        for cohort in list(self._cohorts):
            while cohort in self._cohorts and cohort.step >= cohort.width:
                compact(cohort)
                changed = True
                longest = int(self._limits[cohort.rows].max())
                planned = min(longest, 1 + max(self._expected(i) for i in cohort.rows.tolist()))
                wider = min(longest, max(_INITIAL_WIDTH, int(_GROWTH * cohort.width)))
                for width in (max(planned, wider), wider):
                    if self.allocated + (width - cohort.width) * len(cohort.rows) <= self._capacity:
                        widen(cohort, width, self._layers)
                        break
                else:
                    if not self._preempt():
                        widen(cohort, wider, self._layers)
        return changed

    def _preempt(self) -> bool:
        """Return the newest cohort to the queue, to be restarted; if it is the only one, half of its rows."""
        newest = self._cohorts[-1]
        running = newest.rows[newest.alive].tolist()
        kept = len(running) // 2 if len(self._cohorts) == 1 and newest.whole(len(self._layers)) else 0
        if len(self._cohorts) == 1 and len(running) <= 1:
            return False
        requeued = running[kept:]
        for i in requeued:
            self._sampled[i] = []
            self._inputs[i] = self._rows[i].token
        self._waiting.extendleft(reversed(requeued))
        if kept:
            newest.alive &= np.isin(newest.rows, running[:kept])
            compact(newest)
        else:
            self._cohorts.pop()
        return True

    def _retire(self) -> None:
        """Drop finished cohorts and compact those with many ended rows."""
        for cohort in list(self._cohorts):
            running = int(cohort.alive.sum())
            if running == 0:
                self._cohorts.remove(cohort)
            elif running < (1 - _MAX_ENDED) * len(cohort.rows):
                compact(cohort)
            else:
                continue
            self._batch = None
