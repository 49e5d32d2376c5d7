"""What stages ask of a language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch


class EngineError(RuntimeError):
    """A model, a device or a server that cannot do what is asked."""


class EngineAwayError(EngineError):
    """A server that has been out of reach for too long; it may come back."""


class Trunk(NamedTuple):
    """A path that draws branch off: a prompt, and a completion of it as far as any draw needs it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()

    def prefix(self, draw: "Draw") -> list[int]:
        """The token ids that a draw continues, its forced token included."""
        return [*self.prompt, *self.completion[: draw.depth], *([] if draw.token is None else [draw.token])]


class Draw(NamedTuple):
    """One continuation to be sampled.

    The prefix is the trunk's prompt and the first `depth` tokens of its completion, then `token` if one is forced;
    then at most `limit` sampled tokens, the last of which is a stop token unless the limit cut it. `seed` (64 bits)
    names its random stream.
    """

    trunk: int
    depth: int
    token: int | None
    limit: int
    seed: int


@dataclass(frozen=True)
class Continuation:
    """The sampled tokens of a draw, without prefix and forced token; `truncated` where the limit ended it."""

    tokens: npt.NDArray[np.int32]
    truncated: bool


class Sampler(Protocol):
    """A causal language model that continues token prefixes.

    Attributes:
        decoded: tokens of the draws finished so far.
    """

    decoded: int

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """Sample every draw; the result depends on each draw's own identity, not on its neighbours.

        Raises:
            EngineError: it cannot go on; nothing of the call is kept.
        """
        ...

    def release(self) -> None:
        """Free memory that is held for the next call."""
        ...


class Scorer(Protocol):
    """A causal language model that tells its next-token distributions.

    Attributes:
        vocabulary: V, the number of token ids; probabilities are over exactly these.
    """

    vocabulary: int

    def hidden(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """Final hidden states from which tokens `starts[i]:` of each sequence are predicted; each [T_i, H]."""
        ...

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities over the vocabulary, float32 or better: [T, H] -> [T, V]."""
        ...


def ended(draw: Draw, stop: frozenset[int]) -> Continuation | None:
    """What a draw is that needs no decoding: its forced token is a stop token, or no room is left."""
    if draw.token is not None and draw.token in stop:
        return Continuation(np.empty(0, dtype=np.int32), False)
    if draw.limit <= 0:
        return Continuation(np.empty(0, dtype=np.int32), True)
    return None
