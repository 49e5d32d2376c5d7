"""Keeps vLLM from sampling output rows without a token. vLLM imports this module by name."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

VOCABULARY = "opdscope_vocabulary"


class NoPadding(LogitsProcessor):  # type: ignore[misc] # untyped where vLLM is not installed
    """Sets the logits of rows past the vocabulary to -inf; the vocabulary's size is in `additional_config`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._vocabulary = int(vllm_config.additional_config[VOCABULARY])

    def is_argmax_invariant(self) -> bool:
        """The argmax may be one of those rows."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Nothing depends on the batch."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, rows] -> [B, rows]."""
        logits[:, self._vocabulary :] = -torch.inf
        return logits
