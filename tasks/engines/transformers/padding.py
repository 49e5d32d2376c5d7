"""Prompts with their completions as one batch."""

from collections.abc import Sequence

import torch

from tasks.engines.protocol import Completed


def length(sequence: Completed) -> int:
    """Tokens of a prompt and its completion."""
    return sum(map(len, sequence))


def padded(sequences: Sequence[Completed]) -> torch.Tensor:
    """Token ids, [B, T], with padding on the right, where a causal model does not see it."""
    ids = torch.zeros(len(sequences), max(map(length, sequences)), dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : length(sequence)] = torch.tensor([*sequence.prompt, *sequence.tokens])
    return ids


def predicting(sequence: Completed) -> slice:
    """The places of a sequence at which the tokens of its completion are predicted."""
    return slice(len(sequence.prompt) - 1, length(sequence) - 1)
