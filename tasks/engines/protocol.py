"""The interface between stages and language models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch


class EngineError(RuntimeError):
    """A model, a device or a server cannot do what is requested."""


class EngineAwayError(EngineError):
    """A server has been unreachable for too long; it may come back."""


class Trunk(NamedTuple):
    """A shared path from which draws branch: a prompt, and its completion as far as any draw needs it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()

    def prefix(self, draw: "Draw") -> list[int]:
        """The token ids that a draw continues, including its forced token."""
        return [*self.prompt, *self.completion[: draw.depth], *([] if draw.token is None else [draw.token])]


class Draw(NamedTuple):
    """One continuation to be sampled.

    The prefix is the trunk's prompt and the first `depth` tokens of its completion, then `token` if one is forced.
    At most `limit` sampled tokens follow, the last of which is a stop token unless the limit truncates the draw.
    `seed` (64 bits) identifies its random stream.
    """

    trunk: int
    depth: int
    token: int | None
    limit: int
    seed: int


@dataclass(frozen=True)
class Continuation:
    """The sampled tokens of a draw, without prefix and forced token; `truncated` if the limit ended it."""

    tokens: npt.NDArray[np.int32]
    truncated: bool


class Capacity(NamedTuple):
    """Most draws that are decoded together, and most tokens of caches that grow with them in this process."""

    rows: int
    tokens: int


class Sampler(Protocol):
    """A causal language model that continues token prefixes, for any number of threads at once."""

    @property
    def capacity(self) -> Capacity:
        """What it decodes at once."""
        ...

    @property
    def decoded(self) -> int:
        """Tokens of the draws that the calling thread has had sampled so far."""
        ...

    def continue_prefixes(
        self, trunks: Sequence[Trunk], draws: Sequence[Draw], temperature: float
    ) -> list[Continuation]:
        """Sample every draw; the result of each depends on the draw alone, not on others in the batch.

        Raises:
            EngineError: sampling cannot continue; no result of the call is kept.
        """
        ...

    def release(self) -> None:
        """Free the memory that is kept for the next call."""
        ...


class Completed(NamedTuple):
    """A prompt and a completion of it, token ids."""

    prompt: Sequence[int]
    tokens: Sequence[int]


class Backward(Protocol):
    """Completions through a model, to be differentiated by its parameters any number of times."""

    def logits(self, rows: slice) -> torch.Tensor:
        """Logits before some tokens of the completions, which stand one after another, [n, V]."""
        ...

    def gradient(self, pulled: Iterable[tuple[torch.Tensor, torch.Tensor]], *, last: bool) -> dict[str, torch.Tensor]:
        """The gradient of a sum over positions with respect to every parameter, by name.

        Args:
            pulled: logits of some positions, and the gradient with respect to them, [n, V] each; every position once.
            last: no other gradient of this pass will be asked for.
        """
        ...


class Scorer(Protocol):
    """A causal language model that returns its next-token distributions.

    Attributes:
        vocabulary: V, the number of token ids that probabilities range over.
    """

    vocabulary: int

    @property
    def longest(self) -> int | None:
        """The longest sequence that it can take, tokens; None where nothing limits it."""
        ...

    def hidden(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Final hidden states from which the tokens of completions of a prompt are predicted; [T_i, H] for each."""
        ...

    def hidden_each(self, sequences: Sequence[Completed]) -> list[torch.Tensor]:
        """The same for completions of prompts of their own."""
        ...

    def log_probs(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities over the vocabulary, float32 or better: [T, H] -> [T, V]."""
        ...


class Differentiable(Scorer, Protocol):
    """A scorer with gradients by its parameters."""

    def forward(self, sequences: Sequence[Completed]) -> Backward:
        """Completions in one batch, to be differentiated.

        Raises:
            EngineError: the model's weights have no gradients.
        """
        ...


def ended(draw: Draw, stop: frozenset[int]) -> Continuation | None:
    """The result of a draw that needs no decoding: its forced token is a stop token, or its limit leaves no room."""
    if draw.token is not None and draw.token in stop:
        return Continuation(np.empty(0, dtype=np.int32), False)
    if draw.limit <= 0:
        return Continuation(np.empty(0, dtype=np.int32), True)
    return None
