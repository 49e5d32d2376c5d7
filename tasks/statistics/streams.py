"""Random streams by identity: a draw's uniforms depend on which draw it is, not on when it is made."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream_seed(*identity: int | str) -> int:
    """64-bit seed of an identity such as (seed, question, rollout, position, token, index).

    Raises:
        ValueError: a part contains the separator, so that two identities could collide.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in identity)
    if text.count("\x1f") >= len(identity):
        raise ValueError(f"an identity contains U+001F: {identity!r}")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(seeds: npt.NDArray[np.uint64], step: npt.NDArray[np.integer[Any]] | int) -> npt.NDArray[np.float64]:
    """The uniform of each stream at a step, in [0, 1): SplitMix64 (Steele, Lea, Flood 2014) in counter mode."""
    with np.errstate(over="ignore"):
        z = seeds + (np.asarray(step, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
