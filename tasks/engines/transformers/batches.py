"""Rows that are decoded together: their keys and values, and their attention to shared prefixes.

Rows that entered the batch together form a cohort, with the keys and values of their own tokens in buffers of equal
length. The prefix that they share with others, their trunk, is attended to once for all its rows
(`tasks.engines.transformers.attention`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tasks.engines.protocol import Draw
from tasks.engines.transformers.kernels import Part, attend, hidden_as_bias, joined

Ints = npt.NDArray[np.int64]


KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values by layer, [1, K, T, E] for a trunk, [B, K, T, E] for rows."""


_BLOCK = {"cpu": 64, "cuda": 1024}
"""Minimum number of rows that attend to their trunk in one call, with a bias if their depths differ."""


_BLOCK_SCORES = 2**22
"""Maximum number of scores per head in such a call."""


class Row(NamedTuple):
    """A draw to decode: its trunk's cache, how many of its tokens are visible, its first input, its expected length."""

    draw: Draw
    trunk: KeysValues
    visible: int
    token: int
    expected: int


@dataclass(eq=False)
class Cohort:
    """Rows that entered together; row i is the draw `rows[i]` and sees `visible[i]` tokens of its trunk."""

    rows: Ints
    visible: Ints
    alive: npt.NDArray[np.bool_]
    buffers: KeysValues = field(default_factory=list)
    step: int = 0

    @classmethod
    def of(cls, rows: Sequence[int], visible: Sequence[int]) -> "Cohort":
        """Rows that enter now."""
        return cls(np.array(rows, dtype=np.int64), np.array(visible, dtype=np.int64), np.ones(len(rows), dtype=bool))

    @property
    def width(self) -> int:
        """Tokens per row that the buffers can hold."""
        return min((keys.shape[2] for keys, _ in self.buffers), default=0)

    def whole(self, layers: int) -> bool:
        """False if an allocation failed partway."""
        return len(self.buffers) in (0, layers) and all(keys.shape[0] == len(self.rows) for keys, _ in self.buffers)


class Block(NamedTuple):
    """Rows of a trunk, by index in the batch: each sees `visible` of its first `length` tokens; all without a bias."""

    trunk: KeysValues
    rows: slice
    visible: torch.Tensor
    length: int
    bias: torch.Tensor | None


class Batch:
    """The rows of a step, as the cache of the model and the `Rows` of its attention."""

    def __init__(
        self,
        cohorts: Sequence[Cohort],
        trunks: Mapping[int, KeysValues],
        trunk_of: Ints,
        min_rows: int,
        device: torch.device,
    ) -> None:
        """Gather the rows of all cohorts.

        Args:
            trunks: caches by trunk index.
            trunk_of: trunk index of each draw.
            min_rows: minimum number of rows in a block, if a trunk has that many.
        """
        self.cohorts = cohorts
        self.rows = np.concatenate([c.rows for c in cohorts])
        self.bounds = np.cumsum([0, *(len(c.rows) for c in cohorts)]).tolist()
        visible, trunk = np.concatenate([c.visible for c in cohorts]), trunk_of[self.rows]
        order = np.lexsort((visible, trunk))
        reordered = bool((order != np.arange(len(order))).any())
        self._order = torch.from_numpy(order).to(device) if reordered else None
        self._inverse = torch.from_numpy(np.argsort(order)).to(device) if reordered else None
        self.blocks = _blocks(trunks, trunk[order], visible[order], min_rows, device)
        self._device = device
        self._ordered_positions = torch.zeros(0, dtype=torch.long)

    def steps(self) -> Ints:
        """Number of tokens that each row has sampled, [B]."""
        return np.concatenate([np.full(len(c.rows), c.step) for c in self.cohorts])

    def begin(self) -> torch.Tensor:
        """Position of each row's input token in its sequence, [B]; call this before a step."""
        visible = np.concatenate([c.visible for c in self.cohorts])
        position = torch.from_numpy(visible + self.steps()).to(self._device)
        self._ordered_positions = position if self._order is None else position[self._order]
        return position

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of a step's tokens, [B, K, 1, E]; models call this on their cache."""
        for cohort, start, end in zip(self.cohorts, self.bounds, self.bounds[1:], strict=False):
            keys, values = cohort.buffers[layer_idx]
            keys[:, :, cohort.step] = key_states[start:end, :, 0]
            values[:, :, cohort.step] = value_states[start:end, :, 0]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Part of the cache interface; positions are passed explicitly, so nothing depends on it."""
        return 0

    def holds(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> bool:
        """See `tasks.engines.transformers.attention.Rows`."""
        pairs = zip(self.cohorts[0].buffers[layer], (key, value), strict=True)
        return all((old.shape[1], old.shape[3]) == (new.shape[1], new.shape[3]) for old, new in pairs)

    def attend(
        self, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """See `tasks.engines.transformers.attention.Rows`."""
        B, H, _, E = query.shape
        K = self.cohorts[0].buffers[layer][0].shape[1]
        grouped = query.view(B, K, H // K, E)
        own = [
            self._own(c, layer, grouped[start:end], scale, window, softcap)
            for c, start, end in zip(self.cohorts, self.bounds, self.bounds[1:], strict=False)
        ]
        out, lse = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*own, strict=True))
        ordered = grouped if self._order is None else grouped[self._order]
        by_block = [self._shared(b, layer, ordered[b.rows], scale, window, softcap) for b in self.blocks]
        shared = Part(*(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*by_block, strict=True)))
        if self._inverse is not None:
            shared = Part(shared.out[self._inverse], shared.lse[self._inverse])
        return joined(Part(out, lse), shared).reshape(B, 1, H, E)

    def _own(
        self, cohort: Cohort, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Part:
        start = 0 if window is None else max(0, cohort.step - window + 1)
        keys, values = (x[:, :, start : cohort.step + 1] for x in cohort.buffers[layer])
        return attend(query, keys, values, scale, softcap=softcap)

    def _shared(
        self, block: Block, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Part:
        """Attention of a block's rows to their trunk: queries [n, K, G, E] are folded into one batch of n*G."""
        n, K, G, E = query.shape
        start, bias = 0, block.bias
        if window is not None:
            first = self._ordered_positions[block.rows] - window + 1
            start = min(block.length, max(0, int(first.min())))
            position = torch.arange(start, block.length, device=query.device)[None]
            bias = hidden_as_bias((position < block.visible[:, None]) & (position >= first[:, None]))
        if start == block.length:  # nothing is visible: an empty trunk, or a window past its end
            return Part(query.new_zeros(query.shape), query.new_full((n, K, G), -torch.inf, dtype=torch.float32))
        keys, values = (x[:, :, start : block.length] for x in block.trunk[layer])
        folded = query.transpose(0, 1).reshape(1, K, n * G, E)
        row_bias = None if bias is None else bias.repeat_interleave(G, dim=0)
        part = attend(folded, keys, values, scale, bias=row_bias, softcap=softcap)
        return Part(part.out.view(K, n, G, E).transpose(0, 1), part.lse.view(K, n, G).transpose(0, 1))


def _blocks(
    trunks: Mapping[int, KeysValues], trunk: Ints, visible: Ints, min_rows: int, device: torch.device
) -> list[Block]:
    """Consecutive rows of the same trunk: whole runs of equal depth, merged until there are `min_rows` rows."""
    out: list[Block] = []
    start = 0
    for which, run in groupby(trunk.tolist()):
        end = start + sum(1 for _ in run)
        edges = {*(start + 1 + np.flatnonzero(np.diff(visible[start:end]))).tolist(), end}
        while start < end:
            max_rows = _BLOCK_SCORES // max(1, int(visible[end - 1]))
            candidates = [edge for edge in edges if edge - start >= min_rows]
            edge = min(min(candidates, default=end), start + max(1, max_rows))
            depths = torch.from_numpy(visible[start:edge]).to(device)
            first, last = int(visible[start]), int(visible[edge - 1])
            bias = None
            if first < last:
                bias = hidden_as_bias(torch.arange(last, device=device)[None] < depths[:, None])
            out.append(Block(trunks[which], slice(start, edge), depths, last, bias))
            start = edge
    return out


class StepBatch(Protocol):
    """The rows of a step, as the model's cache and as its attention's `Rows`."""

    def begin(self) -> torch.Tensor:
        """Position of each row's input token in its sequence, [B]; to be called before a step."""
        ...


def forward(model: Any, batch: StepBatch, inputs: torch.Tensor) -> torch.Tensor:
    """One step for every row: hidden states [B, H] from which the next token is predicted."""
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


def compact(cohort: Cohort) -> None:
    """Drop the rows that have ended."""
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
    cohort.rows, cohort.visible, cohort.alive = cohort.rows[kept], cohort.visible[kept], cohort.alive[kept]


def widen(cohort: Cohort, width: int, layers: KeysValues) -> None:
    """Grow a cohort's buffers to `width` tokens, layer by layer; `layers` are empty and only give the shapes."""
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
    """Bytes of the keys and values of one token over all layers."""
    return sum(k.shape[1] * (k.shape[3] + v.shape[3]) * k.element_size() for k, v in layers)
