"""Continuous batching of draws: rows that end leave the batch, and waiting draws enter."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.engines.memory import is_out_of_memory
from tasks.engines.protocol import Continuation, EngineError
from tasks.engines.sampling import inverse_cdf
from tasks.engines.transformers.batches import (
    _BLOCK,
    Batch,
    Cohort,
    KeysValues,
    Row,
    compact,
    forward,
    token_bytes,
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


@dataclass
class Work:
    """The cost of decoding so far.

    Attributes:
        prefix_tokens: tokens computed for trunks.
        row_steps: rows fed to the model, one token each; those of ended rows and of restarted draws are waste.
        useful_steps: tokens of finished draws.
        steps: forward passes.
        cache_bytes: keys and values read, of trunks (once per block of rows) and of rows.
    """

    prefix_tokens: int = 0
    row_steps: int = 0
    useful_steps: int = 0
    steps: int = 0
    cache_bytes: int = 0


class Decoder:
    """Decodes rows to completion within a memory budget.

    Args:
        model: a model whose `base_model` computes hidden states.
        logits: hidden states [B, H] -> logits [B, V].
        stop: token ids that end a draw.
        layers: empty keys and values of every layer, [1, K, 0, E], which give the shapes.
        capacity: most tokens in the caches of all rows together.
        max_rows: most rows in a batch.
        logit_rows: most rows whose logits are in memory at once.
    """

    def __init__(
        self,
        model: Any,
        logits: Callable[[torch.Tensor], torch.Tensor],
        stop: frozenset[int],
        layers: KeysValues,
        *,
        capacity: int,
        max_rows: int,
        logit_rows: int,
        work: Work,
    ) -> None:
        self._model, self._logits, self._layers, self._work = model, logits, layers, work
        self._stop = np.array(sorted(stop), dtype=np.int64)
        self._capacity, self._max_rows, self._logit_rows = capacity, max_rows, logit_rows
        self._device: torch.device = model.device
        self._block = _BLOCK.get(self._device.type, 64)
        self._token_bytes = token_bytes(layers)

    def run(self, rows: Sequence[Row], temperature: float) -> list[Continuation]:
        """Sample every row to completion.

        Raises:
            EngineError: not even one row fits in memory.
        """
        self._rows = rows
        self._trunk_of = np.array([r.draw.trunk for r in rows], dtype=np.int64)
        self._trunks = {r.draw.trunk: r.trunk for r in rows}
        self._limits = np.array([r.draw.limit for r in rows])
        self._seeds = np.array([r.draw.seed for r in rows], dtype=np.uint64)
        self._inputs = np.array([r.token for r in rows], dtype=np.int64)
        self._first = self._inputs.copy()
        self._sampled: list[list[int]] = [[] for _ in rows]
        self._truncated = np.zeros(len(rows), dtype=bool)
        # longest first, so that the last rows to run are short; rows of a trunk stay together
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].expected, rows[i].draw.trunk, rows[i].visible))
        self._waiting = deque(order)
        self._cohorts: list[Cohort] = []
        self._ended = self._ended_tokens = 0
        batch: Batch | None = None
        while self._waiting or self._cohorts:
            try:
                entered, grown = self._admit(), self._make_room()
                if entered or grown or batch is None:
                    batch = Batch(self._cohorts, self._trunks, self._trunk_of, self._block, self._device)
                self._step(batch, temperature)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(error)
                batch = None
                continue
            if self._retire():
                batch = None
        self._work.useful_steps += sum(map(len, self._sampled))
        return [
            Continuation(np.array(tokens, dtype=np.int32), bool(truncated))
            for tokens, truncated in zip(self._sampled, self._truncated, strict=True)
        ]

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
                    if self._allocated() + (width - cohort.width) * len(cohort.rows) <= self._capacity:
                        widen(cohort, width, self._layers)
                        break
                else:
                    if not self._preempt():
                        widen(cohort, wider, self._layers)
        return changed

    def _allocated(self) -> int:
        return sum(c.width * len(c.rows) for c in self._cohorts)

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
            self._inputs[i] = self._first[i]
        self._waiting.extendleft(reversed(requeued))
        if kept:
            newest.alive &= np.isin(newest.rows, running[:kept])
            compact(newest)
        else:
            self._cohorts.pop()
        return True

    def _shrink(self, error: BaseException) -> None:
        """After a failed allocation: set the capacity to half of what was allocated or requested."""
        requested = sum(max(c.width, _INITIAL_WIDTH) * len(c.rows) for c in self._cohorts)
        self._capacity = max(1, requested // 2)
        if not self._cohorts or not self._preempt():
            raise EngineError(
                f"not enough memory on {self._device} for one draw; lower sampling.max_tokens, or use a smaller model "
                "or a device with more memory"
            ) from error
        while not all(c.whole(len(self._layers)) for c in self._cohorts) and self._preempt():
            pass
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _step(self, batch: Batch, temperature: float) -> None:
        """Sample one token for every row."""
        rows = batch.rows
        states = forward(self._model, batch, torch.from_numpy(self._inputs[rows]))
        u = torch.from_numpy(uniforms(self._seeds[rows], batch.steps())).to(self._device)
        parts = zip(states.split(self._logit_rows), u.split(self._logit_rows), strict=True)
        tokens = torch.cat([inverse_cdf(self._logits(h), v, temperature) for h, v in parts]).cpu().numpy()
        self._inputs[rows] = tokens
        self._count(batch)
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

    def _count(self, batch: Batch) -> None:
        self._work.steps += 1
        self._work.row_steps += len(batch.rows)
        tokens = sum(b.length for b in batch.blocks) + sum(len(c.rows) * (c.step + 1) for c in batch.cohorts)
        self._work.cache_bytes += tokens * self._token_bytes

    def _retire(self) -> bool:
        """Drop finished cohorts and compact those with many ended rows."""
        changed = False
        for cohort in list(self._cohorts):
            running = int(cohort.alive.sum())
            if running == 0:
                self._cohorts.remove(cohort)
                changed = True
            elif running < (1 - _MAX_ENDED) * len(cohort.rows):
                compact(cohort)
                changed = True
        return changed
