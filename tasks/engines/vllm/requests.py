"""Converts draws to vLLM requests and back, with the rules of `protocol`; the same in this process and on a server."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.engines.protocol import Continuation, Draw, EngineError

_SEEDS = 2**63


def fields(draw: Draw, stop: frozenset[int], temperature: float) -> dict[str, Any]:
    """Sampling parameters: no truncation of the distribution, only `stop` ends a draw, each draw has its own seed.

    Everything that a model's generation settings could change is set explicitly.
    """
    return {
        "max_tokens": draw.limit,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": draw.seed % _SEEDS,
        "stop_token_ids": sorted(stop),
        "ignore_eos": True,
    }


def in_order(draws: Sequence[Draw], wanted: Sequence[int]) -> list[int]:
    """Draws ordered by trunk, deepest first: the first fills the prefix cache for the following ones."""
    return sorted(wanted, key=lambda i: (draws[i].trunk, -draws[i].depth, draws[i].token or 0, i))


def continuation(
    tokens: Sequence[int], draw: Draw, stop: frozenset[int], vocabulary: int, by: str = "vLLM"
) -> Continuation:
    """Tokens sampled by vLLM, as a `Continuation`.

    Args:
        by: the source of the tokens, for messages.

    Raises:
        EngineError: the tokens violate the limit, the stop rule or the vocabulary.
    """
    foreign = next((t for t in tokens if not 0 <= t < vocabulary), None)
    if foreign is not None:
        token = str(foreign)[:20]
        raise EngineError(f"{by} sampled token {token}, but the tokenizer's tokens are 0 to {vocabulary - 1}")
    if len(tokens) > draw.limit:
        raise EngineError(f"{by} sampled {len(tokens)} tokens where the limit is {draw.limit}")
    early = next((i for i, t in enumerate(tokens[:-1], 1) if t in stop), None)
    if early is not None:
        raise EngineError(f"{by} continued after a stop token, number {early} of {len(tokens)}")
    stopped = len(tokens) > 0 and tokens[-1] in stop
    if not stopped and len(tokens) < draw.limit:
        raise EngineError(f"{by} ended a draw after {len(tokens)} of {draw.limit} tokens without a stop token")
    return Continuation(np.array(tokens, dtype=np.int32), not stopped)
