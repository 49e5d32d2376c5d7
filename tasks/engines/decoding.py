"""Decodes draws in one batch that never idles: rows that end leave it, and waiting draws enter.

Rows that entered together are a cohort, with keys and values of their own tokens in buffers of equal length; what
they share with others, their trunk, is attended to once for all its rows (`tasks.engines.attention`).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tasks.engines.attention import Part, attend, hidden_as_bias, joined
from tasks.engines.memory import is_out_of_memory
from tasks.engines.protocol import Continuation, Draw, EngineError
from tasks.engines.sampling import inverse_cdf
from tasks.statistics.streams import uniforms

Ints = npt.NDArray[np.int64]
KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""By layer: keys and values, [1, K, T, E] of a trunk, [B, K, T, E] of rows."""

_DEAD = 1 / 8
"""A cohort is compacted when more of its rows than this have ended."""
_ENTER = 1 / 8
"""Waiting draws enter when they are at least so large a part of the batch, or when nothing else runs."""
_FIRST, _GROWTH = 32, 1.5
"""Width of buffers where memory has no room for what is expected, and by how much they grow."""
_BLOCK = {"cpu": 64, "cuda": 1024}
"""Rows of a trunk, at least, that attend to it in one call, with a bias where their depths differ."""
_BLOCK_SCORES = 2**22
"""Scores a head, at most, of such a call."""


@dataclass
class Work:
    """What decoding has cost so far.

    Attributes:
        prefix_tokens: computed for trunks.
        row_steps: rows fed to the model, a token each; those of ended rows and of draws begun again are waste.
        useful_steps: tokens of finished draws.
        steps: forward passes.
        cache_bytes: keys and values read, of trunks (once a block of rows) and of rows.
    """

    prefix_tokens: int = 0
    row_steps: int = 0
    useful_steps: int = 0
    steps: int = 0
    cache_bytes: int = 0


class Row(NamedTuple):
    """A draw about to be decoded: its trunk's cache, how much of that it sees, its first input."""

    draw: Draw
    trunk: KeysValues
    held: int
    token: int
    expected: int


@dataclass(eq=False)
class Cohort:
    """Rows that entered together; row i is the draw `rows[i]`."""

    rows: Ints
    held: Ints
    alive: npt.NDArray[np.bool_]
    buffers: KeysValues = field(default_factory=list)
    step: int = 0

    @classmethod
    def of(cls, rows: Sequence[int], held: Sequence[int]) -> "Cohort":
        """Rows that enter now."""
        return cls(np.array(rows, dtype=np.int64), np.array(held, dtype=np.int64), np.ones(len(rows), dtype=bool))

    @property
    def width(self) -> int:
        """Tokens that a row's buffers can hold."""
        return min((keys.shape[2] for keys, _ in self.buffers), default=0)

    def whole(self, layers: int) -> bool:
        """False where an allocation failed half-way."""
        return len(self.buffers) in (0, layers) and all(keys.shape[0] == len(self.rows) for keys, _ in self.buffers)


class Block(NamedTuple):
    """Rows of one trunk, by place in the batch: of its first `most` tokens each sees `held`; all without a bias."""

    trunk: KeysValues
    rows: slice
    held: torch.Tensor
    most: int
    bias: torch.Tensor | None


class Batch:
    """The rows of a step, as the model's cache and as its attention's `Rows`."""

    def __init__(
        self,
        cohorts: Sequence[Cohort],
        trunks: Mapping[int, KeysValues],
        trunk_of: Ints,
        least: int,
        device: torch.device,
    ) -> None:
        """Gather the rows of all cohorts.

        Args:
            trunks: caches, by number.
            trunk_of: number of each draw's trunk.
            least: rows in a block where a trunk has them.
        """
        self.cohorts = cohorts
        self.rows = np.concatenate([c.rows for c in cohorts])
        self.bounds = np.cumsum([0, *(len(c.rows) for c in cohorts)]).tolist()
        held, trunk = np.concatenate([c.held for c in cohorts]), trunk_of[self.rows]
        order = np.lexsort((held, trunk))
        moves = bool((order != np.arange(len(order))).any())
        self._order = torch.from_numpy(order).to(device) if moves else None
        self._back = torch.from_numpy(np.argsort(order)).to(device) if moves else None
        self.blocks = _blocks(trunks, trunk[order], held[order], least, device)
        self._device = device
        self._moved = torch.zeros(0, dtype=torch.long)

    def steps(self) -> Ints:
        """Tokens that each row has sampled, [B]."""
        return np.concatenate([np.full(len(c.rows), c.step) for c in self.cohorts])

    def begin(self) -> torch.Tensor:
        """Place of each row's input token in its sequence, [B]; to be called before a step."""
        held = np.concatenate([c.held for c in self.cohorts])
        position = torch.from_numpy(held + self.steps()).to(self._device)
        self._moved = position if self._order is None else position[self._order]
        return position

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys and values of a step's tokens, [B, K, 1, E]; what a model calls on its cache."""
        for cohort, start, end in zip(self.cohorts, self.bounds, self.bounds[1:], strict=False):
            keys, values = cohort.buffers[layer_idx]
            keys[:, :, cohort.step] = key_states[start:end, :, 0]
            values[:, :, cohort.step] = value_states[start:end, :, 0]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Part of the interface of caches; positions are given, so nothing depends on it."""
        return 0

    def holds(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> bool:
        """See `tasks.engines.attention.Rows`."""
        kept = zip(self.cohorts[0].buffers[layer], (key, value), strict=True)
        return all((held.shape[1], held.shape[3]) == (now.shape[1], now.shape[3]) for held, now in kept)

    def attend(
        self, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """See `tasks.engines.attention.Rows`."""
        B, H, _, E = query.shape
        K = self.cohorts[0].buffers[layer][0].shape[1]
        grouped = query.view(B, K, H // K, E)
        own = [
            self._own(c, layer, grouped[start:end], scale, window, softcap)
            for c, start, end in zip(self.cohorts, self.bounds, self.bounds[1:], strict=False)
        ]
        out, lse = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*own, strict=True))
        moved = grouped if self._order is None else grouped[self._order]
        shared = [self._shared(b, layer, moved[b.rows], scale, window, softcap) for b in self.blocks]
        theirs = Part(*(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*shared, strict=True)))
        if self._back is not None:
            theirs = Part(theirs.out[self._back], theirs.lse[self._back])
        return joined(Part(out, lse), theirs).reshape(B, 1, H, E)

    def _own(
        self, cohort: Cohort, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Part:
        start = 0 if window is None else max(0, cohort.step - window + 1)
        keys, values = (x[:, :, start : cohort.step + 1] for x in cohort.buffers[layer])
        return attend(query, keys, values, scale, softcap=softcap)

    def _shared(
        self, block: Block, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Part:
        """Attention of a block's rows to their trunk: queries [n, K, G, E] are folded into one batch of n G."""
        n, K, G, E = query.shape
        start, bias = 0, block.bias
        if window is not None:
            first = self._moved[block.rows] - window + 1
            start = min(block.most, max(0, int(first.min())))
            place = torch.arange(start, block.most, device=query.device)[None]
            bias = hidden_as_bias((place < block.held[:, None]) & (place >= first[:, None]))
        if start == block.most:  # nothing is seen: no trunk at all, or a window past its end
            return Part(query.new_zeros(query.shape), query.new_full((n, K, G), -torch.inf, dtype=torch.float32))
        keys, values = (x[:, :, start : block.most] for x in block.trunk[layer])
        folded = query.transpose(0, 1).reshape(1, K, n * G, E)
        spread = None if bias is None else bias.repeat_interleave(G, dim=0)
        part = attend(folded, keys, values, scale, bias=spread, softcap=softcap)
        return Part(part.out.view(K, n, G, E).transpose(0, 1), part.lse.view(K, n, G).transpose(0, 1))


def _blocks(trunks: Mapping[int, KeysValues], trunk: Ints, held: Ints, least: int, device: torch.device) -> list[Block]:
    """Consecutive rows of the same trunk: whole runs of one depth, joined until there are `least` rows."""
    out: list[Block] = []
    start = 0
    for which, run in groupby(trunk.tolist()):
        end = start + sum(1 for _ in run)
        edges = {*(start + 1 + np.flatnonzero(np.diff(held[start:end]))).tolist(), end}
        while start < end:
            most = _BLOCK_SCORES // max(1, int(held[end - 1]))
            enough = [edge for edge in edges if edge - start >= least]
            edge = min(min(enough, default=end), start + max(1, most))
            depths = torch.from_numpy(held[start:edge]).to(device)
            first, last = int(held[start]), int(held[edge - 1])
            bias = None
            if first < last:
                bias = hidden_as_bias(torch.arange(last, device=device)[None] < depths[:, None])
            out.append(Block(trunks[which], slice(start, edge), depths, last, bias))
            start = edge
    return out


def forward(model: Any, batch: Batch, inputs: torch.Tensor) -> torch.Tensor:
    """One token more for every row: hidden states [B, H] from which the next is predicted."""
    position = batch.begin()
    return torch.as_tensor(
        model.base_model(
            input_ids=inputs[:, None].to(position.device),
            position_ids=position[:, None],
            past_key_values=batch,
            use_cache=True,
            rows=batch,
        ).last_hidden_state[:, -1]
    )


class Decoder:
    """Decodes rows to their ends within a plan of memory.

    Args:
        model: its `base_model` makes hidden states.
        logits: hidden states [B, H] -> logits [B, V].
        stop: token ids that end a draw.
        layers: empty keys and values of every layer, [1, K, 0, E], to know their shapes.
        room: tokens that rows may hold together.
        most: rows in a batch.
        logit_rows: rows whose logits are held at once.
    """

    def __init__(
        self,
        model: Any,
        logits: Callable[[torch.Tensor], torch.Tensor],
        stop: frozenset[int],
        layers: KeysValues,
        *,
        room: int,
        most: int,
        logit_rows: int,
        work: Work,
    ) -> None:
        self._model, self._logits, self._layers, self._work = model, logits, layers, work
        self._stop = np.array(sorted(stop), dtype=np.int64)
        self._room, self._most, self._logit_rows = room, most, logit_rows
        self._device: torch.device = model.device
        self._block = _BLOCK.get(self._device.type, 64)
        self._token_bytes = token_bytes(layers)

    def run(self, rows: Sequence[Row], temperature: float) -> list[Continuation]:
        """Sample every row to its end.

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
        self._cut = np.zeros(len(rows), dtype=bool)
        # the longest first, so that the last rows to run are short; rows of a trunk stay together
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].expected, rows[i].draw.trunk, rows[i].held))
        self._waiting = deque(order)
        self._cohorts: list[Cohort] = []
        self._ended: list[int] = []
        batch: Batch | None = None
        while self._waiting or self._cohorts:
            try:
                entered, grown = self._enter(), self._make_room()
                if entered or grown or batch is None:
                    batch = Batch(self._cohorts, self._trunks, self._trunk_of, self._block, self._device)
                self._step(batch, temperature)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(error)
                batch = None
                continue
            if self._leave():
                batch = None
        self._work.useful_steps += sum(map(len, self._sampled))
        return [
            Continuation(np.array(tokens, dtype=np.int32), bool(cut))
            for tokens, cut in zip(self._sampled, self._cut, strict=True)
        ]

    def _expected(self, i: int) -> int:
        """Tokens that a draw is planned to have: what its trunk tells, then what ended draws were like."""
        expected, limit = self._rows[i].expected, int(self._limits[i])
        if expected >= limit and len(self._ended) >= 16:
            return min(limit, 1 + int(1.5 * float(np.mean(self._ended))))
        return expected

    def _enter(self) -> bool:
        """Let waiting draws in while rows and memory last."""
        if not self._waiting:
            return False
        running = sum(len(c.rows) for c in self._cohorts)
        if running > (1 - _ENTER) * self._most:
            return False
        free = self._room - sum(
            max(self._expected(int(i)) + 1, c.width) for c in self._cohorts for i in c.rows[c.alive]
        )
        entering: list[int] = []
        while self._waiting and running + len(entering) < self._most:
            need = self._expected(self._waiting[0]) + 1
            if need > free and (running or entering):
                break
            free -= need
            entering.append(self._waiting.popleft())
        if running and len(entering) < min(_ENTER * (running + len(entering)), len(entering) + len(self._waiting)):
            self._waiting.extendleft(reversed(entering))
            return False
        if not entering:
            return False
        entering.sort(key=lambda i: (self._rows[i].draw.trunk, self._rows[i].held, i))
        self._cohorts.append(Cohort.of(entering, [self._rows[i].held for i in entering]))
        return True

    def _make_room(self) -> bool:
        """Grow the buffers that are full; where the plan has no room for that, the newest rows wait again."""
        changed = False
        for cohort in list(self._cohorts):
            while cohort in self._cohorts and cohort.step >= cohort.width:
                _compact(cohort)
                changed = True
                longest = int(self._limits[cohort.rows].max())
                planned = min(longest, 1 + max(self._expected(i) for i in cohort.rows.tolist()))
                wider = min(longest, max(_FIRST, int(_GROWTH * cohort.width)))
                for width in (max(planned, wider), wider):
                    if self._held() + (width - cohort.width) * len(cohort.rows) <= self._room:
                        widen(cohort, width, self._layers)
                        break
                else:
                    if not self._send_back():
                        widen(cohort, wider, self._layers)
        return changed

    def _held(self) -> int:
        return sum(c.width * len(c.rows) for c in self._cohorts)

    def _send_back(self) -> bool:
        """The newest cohort waits to be decoded again, or half of its rows where there is no other."""
        newest = self._cohorts[-1]
        running = newest.rows[newest.alive].tolist()
        kept = len(running) // 2 if len(self._cohorts) == 1 and newest.whole(len(self._layers)) else 0
        if len(self._cohorts) == 1 and len(running) <= 1:
            return False
        back = running[kept:]
        for i in back:
            self._sampled[i] = []
            self._inputs[i] = self._first[i]
        self._waiting.extendleft(reversed(back))
        if kept:
            newest.alive &= np.isin(newest.rows, running[:kept])
            _compact(newest)
        else:
            self._cohorts.pop()
        return True

    def _shrink(self, error: BaseException) -> None:
        """After a failed allocation: plan for half of what was held, or was about to be."""
        about = sum(max(c.width, _FIRST) * len(c.rows) for c in self._cohorts)
        self._room = max(1, about // 2)
        if not self._cohorts or not self._send_back():
            raise EngineError(
                f"not enough memory on {self._device} for one draw; lower sampling.max_tokens, or use a smaller model "
                "or a device with more memory"
            ) from error
        while not all(c.whole(len(self._layers)) for c in self._cohorts) and self._send_back():
            pass
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _step(self, batch: Batch, temperature: float) -> None:
        """One token for every row."""
        rows = batch.rows
        states = forward(self._model, batch, torch.from_numpy(self._inputs[rows]))
        u = torch.from_numpy(uniforms(self._seeds[rows], batch.steps())).to(self._device)
        parts = zip(states.split(self._logit_rows), u.split(self._logit_rows), strict=True)
        tokens = torch.cat([inverse_cdf(self._logits(h), v, temperature) for h, v in parts]).cpu().numpy()
        self._inputs[rows] = tokens
        self._count(batch)
        for cohort, start, end in zip(batch.cohorts, batch.bounds, batch.bounds[1:], strict=False):
            mine = tokens[start:end]
            for i, token in zip(cohort.rows[cohort.alive].tolist(), mine[cohort.alive].tolist(), strict=True):
                self._sampled[i].append(token)
            cohort.step += 1
            stopped, full = np.isin(mine, self._stop), self._limits[cohort.rows] <= cohort.step
            ending = cohort.alive & (stopped | full)
            self._cut[cohort.rows[ending]] = ~stopped[ending]
            self._ended += [cohort.step] * int(ending.sum())
            cohort.alive &= ~ending

    def _count(self, batch: Batch) -> None:
        self._work.steps += 1
        self._work.row_steps += len(batch.rows)
        tokens = sum(b.most for b in batch.blocks) + sum(len(c.rows) * (c.step + 1) for c in batch.cohorts)
        self._work.cache_bytes += tokens * self._token_bytes

    def _leave(self) -> bool:
        """Drop cohorts that are over and compact those with many ended rows."""
        changed = False
        for cohort in list(self._cohorts):
            running = int(cohort.alive.sum())
            if running == 0:
                self._cohorts.remove(cohort)
                changed = True
            elif running < (1 - _DEAD) * len(cohort.rows):
                _compact(cohort)
                changed = True
        return changed


def _compact(cohort: Cohort) -> None:
    """Keep the rows that still run."""
    if cohort.alive.all():
        return
    kept = np.flatnonzero(cohort.alive)
    if cohort.buffers:
        index = torch.from_numpy(kept).to(cohort.buffers[0][0].device)
        used = cohort.step
        for layer, pair in enumerate(cohort.buffers):
            grown = []
            for old in pair:
                new = old.new_empty(len(kept), *old.shape[1:])
                new[:, :, :used] = old[index, :, :used]
                grown.append(new)
            cohort.buffers[layer] = (grown[0], grown[1])
    cohort.rows, cohort.held, cohort.alive = cohort.rows[kept], cohort.held[kept], cohort.alive[kept]


def widen(cohort: Cohort, width: int, layers: KeysValues) -> None:
    """Give a cohort buffers of `width` tokens, layer by layer; `layers` are empty, for their shapes."""
    n, used = len(cohort.rows), cohort.step
    for layer, pair in enumerate(layers):
        grown = []
        for which, like in enumerate(pair):
            new = like.new_empty(n, like.shape[1], width, like.shape[3])
            if used:
                new[:, :, :used] = cohort.buffers[layer][which][:, :, :used]
            grown.append(new)
        cohort.buffers[layer : layer + 1] = [(grown[0], grown[1])]


def token_bytes(layers: KeysValues) -> int:
    """Bytes of keys and values of one token, all layers."""
    return sum(k.shape[1] * (k.shape[3] + v.shape[3]) * k.element_size() for k, v in layers)
