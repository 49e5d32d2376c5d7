"""What stages ask of a language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch


class EngineError(RuntimeError):
    """A model or a device that cannot do what is asked."""


class Draw(NamedTuple):
    """One continuation to be sampled.

    The prefix is `sequences[sequence][:length]`, then `token` if one is forced; then at most `limit` sampled
    tokens, the last of which is a stop token unless the limit cut it. `seed` (64 bits) names its random stream.
    """

    sequence: int
    length: int
    token: int | None
    limit: int
    seed: int


@dataclass(frozen=True)
class Continuation:
    """The sampled tokens of a draw, without prefix and forced token; `cut` where the limit ended it."""

    tokens: npt.NDArray[np.int32]
    cut: bool


class Engine(Protocol):
    """A causal language model that continues token prefixes and scores positions.

    Attributes:
        vocabulary: V, the number of token ids; probabilities are over exactly these.
        decoded: tokens sampled so far.
    """

    vocabulary: int
    decoded: int

    def continue_prefixes(
        self, sequences: Sequence[Sequence[int]], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """Sample every draw; the result depends on each draw's own identity, not on its neighbours."""
        ...

    def hidden(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """Final hidden states from which tokens `starts[i]:` of each sequence are predicted; each [T_i, H]."""
        ...

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities over the vocabulary, float32 or better: [T, H] -> [T, V]."""
        ...
