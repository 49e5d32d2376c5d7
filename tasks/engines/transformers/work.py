"""What decoding has cost so far."""

from dataclasses import dataclass


@dataclass
class Work:
    """The cost of decoding so far.

    Attributes:
        prefix_tokens: tokens computed for trunks.
        row_steps: rows fed to the model, one token each; those of ended rows and of restarted draws are waste.
        useful_steps: tokens of finished draws.
        steps: forward passes.
        cache_bytes: keys and values read, of trunks (once per block of rows) and of rows.
    """

    prefix_tokens: int = 0
    row_steps: int = 0
    useful_steps: int = 0
    steps: int = 0
    cache_bytes: int = 0
