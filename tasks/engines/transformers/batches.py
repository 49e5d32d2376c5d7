"""Rows that are decoded together: their keys and values, and how they attend to what they share.

Rows that entered together are a cohort, with keys and values of their own tokens in buffers of equal length; what
they share with others, their trunk, is attended to once for all its rows (`tasks.engines.transformers.attention`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tasks.engines.protocol import Draw
from tasks.engines.transformers.attention import Part, attend, hidden_as_bias, joined

Ints = npt.NDArray[np.int64]


KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""By layer: keys and values, [1, K, T, E] of a trunk, [B, K, T, E] of rows."""


_BLOCK = {"cpu": 64, "cuda": 1024}
"""Rows of a trunk, at least, that attend to it in one call, with a bias where their depths differ."""


_BLOCK_SCORES = 2**22
"""Scores a head, at most, of such a call."""


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
        """See `tasks.engines.transformers.attention.Rows`."""
        kept = zip(self.cohorts[0].buffers[layer], (key, value), strict=True)
        return all((held.shape[1], held.shape[3]) == (now.shape[1], now.shape[3]) for held, now in kept)

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


def compact(cohort: Cohort) -> None:
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
