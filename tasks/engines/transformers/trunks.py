"""Keys and values of trunks: computed once, shared by the calls that need them, and kept while there is room."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from tasks.engines.memory import is_out_of_memory
from tasks.engines.protocol import EngineError, Trunk
from tasks.engines.transformers.batches import KeysValues
from tasks.engines.transformers.work import Work

_CHUNK = {"cpu": 512, "cuda": 4096}
"""Tokens of a trunk in one forward pass."""


@dataclass
class _Entry:
    """A trunk's cache and the number of calls that use it."""

    cache: Any
    users: int = 0

    @property
    def tokens(self) -> int:
        return int(self.cache.get_seq_length())


class TrunkCaches:
    """The caches of trunks, least recently used first."""

    def __init__(self, model: Callable[[], Any], device: torch.device, work: Work) -> None:
        """Cache nothing yet; `model` returns the model, loaded."""
        self._model, self._device, self._work = model, device, work
        self._chunk = _CHUNK.get(device.type, 512)
        self._entries: dict[Trunk, _Entry] = {}

    @property
    def used(self) -> int:
        """Tokens of the trunks that calls use now."""
        return sum(e.tokens for e in self._entries.values() if e.users)

    def acquire(self, trunk: Trunk, length: int) -> KeysValues:
        """A trunk's keys and values up to `length`, in use until it is released.

        Chunks always start at the same positions, and a cache of another length is reused only up to its last whole
        chunk. So the result depends on this call alone, bit for bit, and not on what earlier calls have cached.

        Raises:
            EngineError: memory does not suffice.
        """
        try:
            entry = self._extended_to(trunk, length)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise EngineError(
                    f"not enough memory on {self._device} for a prefix of {max(length, len(trunk.prompt))} tokens; "
                    "lower engine.memory or sampling.max_tokens"
                ) from error
            raise
        entry.users += 1
        return pairs(entry.cache)

    def _extended_to(self, trunk: Trunk, length: int) -> _Entry:
        """The entry of a trunk, now the most recently used; without one where its computation fails half-way."""
        root = Trunk(trunk.prompt)
        base = self._entries.pop(root, None) or _Entry(self.extended(DynamicCache(), root.prompt))
        self._entries[root] = base
        if trunk == root:
            return base
        entry = self._entries.pop(trunk, None) or _Entry(_copy(base.cache))
        wanted, done = max(0, length - len(trunk.prompt)), entry.tokens - len(trunk.prompt)
        if done != wanted:
            whole = min(done, wanted) // self._chunk * self._chunk
            if done > whole:
                entry.cache.crop(whole - done)
            self.extended(entry.cache, trunk.completion[whole:wanted])
        self._entries[trunk] = entry
        return entry

    def release(self, trunks: Iterable[Trunk]) -> None:
        """End the use of trunks; their caches are kept for later calls."""
        for trunk in trunks:
            if trunk in self._entries:
                self._entries[trunk].users = max(0, self._entries[trunk].users - 1)

    def shrink(self, tokens: int) -> None:
        """Drop the least recently used caches that no call uses, until those left have at most so many tokens."""
        unused = [trunk for trunk, entry in self._entries.items() if not entry.users]
        left = sum(self._entries[trunk].tokens for trunk in unused)
        for trunk in unused:
            if left <= tokens:
                return
            left -= self._entries.pop(trunk).tokens

    def clear(self) -> None:
        """Drop all caches."""
        self._entries.clear()

    def extended(self, cache: Any, tokens: Sequence[int]) -> Any:
        """A cache extended by more tokens."""
        for start in range(0, len(tokens), self._chunk):
            part = torch.tensor([list(tokens[start : start + self._chunk])], device=self._device)
            self._model().base_model(input_ids=part, past_key_values=cache, use_cache=True)
            self._work.prefix_tokens += part.numel()
        return cache


def pairs(cache: Any) -> KeysValues:
    """Keys and values of a cache, by layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _copy(cache: Any) -> Any:
    copy = DynamicCache()
    for layer, (keys, values) in enumerate(pairs(cache)):
        copy.update(keys, values, layer)
    return copy
