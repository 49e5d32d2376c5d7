"""The batches of several decoders in one forward pass, so that the weights are read once for all of them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from tasks.engines.transformers.batches import Batch


class JoinedBatch:
    """Batches after one another, then rows without content: the model's cache, and its attention's `Rows`.

    Attention is computed batch by batch, as for each on its own. All else works row by row, so that a row's numbers
    are those that it has alone, provided that matrix products of `min_rows` rows or more treat every row alike.
    """

    def __init__(self, batches: Sequence[Batch], min_rows: int, device: torch.device) -> None:
        """Join batches.

        Args:
            min_rows: rows without content are added up to so many.
        """
        self._batches, self._device = batches, device
        self.bounds = np.cumsum([0, *(len(b.rows) for b in batches)]).tolist()
        self.padding = max(0, min_rows - self.bounds[-1])

    def begin(self) -> torch.Tensor:
        """Position of each row's input token in its sequence, [B]; call this before a step."""
        empty = torch.zeros(self.padding, dtype=torch.long, device=self._device)
        return torch.cat([*(b.begin() for b in self._batches), empty])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of a step's tokens, [B, K, 1, E]; models call this on their cache."""
        for batch, (start, end) in zip(self._batches, pairwise(self.bounds), strict=True):
            batch.update(key_states[start:end], value_states[start:end], layer_idx)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Part of the cache interface; positions are passed explicitly, so nothing depends on it."""
        return 0

    def holds(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> bool:
        """See `tasks.engines.transformers.attention.Rows`."""
        return self._batches[0].holds(layer, key, value)

    def attend(
        self, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """See `tasks.engines.transformers.attention.Rows`; 0 for rows without content."""
        parts = [
            batch.attend(layer, query[start:end], scale, window, softcap)
            for batch, (start, end) in zip(self._batches, pairwise(self.bounds), strict=True)
        ]
        if self.padding:
            parts.append(parts[0].new_zeros(self.padding, *parts[0].shape[1:]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
