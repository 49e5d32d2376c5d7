"""Attention for decoding rows that share prefixes: one pass over a prefix for all its rows, then each row's own part.

The parts are merged by their log-sum-exp (Juravsky et al. 2024, "Hydragen"), so that a prefix's keys are read once per
step instead of once per row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.engines.protocol import EngineError
from tasks.engines.transformers.kernels import attend, hidden_as_bias

NAME = "opdscope_shared_prefix"


class Rows(Protocol):
    """A batch of decoding rows: the cache of a step, and which row attends to which part of it."""

    def holds(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> bool:
        """True if the keys and values that a layer attends to have the shape of those in the cache, [B, K, T, E]."""
        ...

    def attend(
        self, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """Outputs of one layer, [B, H, 1, E] -> [B, 1, H, E]."""
        ...


class Completions(NamedTuple):
    """A prompt and its completions, one after another in a single sequence: each of them sees the prompt and itself.

    Attributes:
        prompt: tokens of the prompt.
        lengths: tokens of each completion.
    """

    prompt: int
    lengths: Sequence[int]

    def positions(self) -> torch.Tensor:
        """Position of each token in its own sequence, [prompt + sum(lengths)]."""
        return torch.cat([torch.arange(self.prompt), *(torch.arange(n) + self.prompt for n in self.lengths)])


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rows: Rows | None = None,
    completions: Completions | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that models call: decodes `rows`, or runs a causal pass over sequences, or `completions` of one."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise _refusal(module, "attention sinks or position biases")
    if rows is not None:
        layer = int(getattr(module, "layer_idx"))  # noqa: B009
        if not rows.holds(layer, key, value):
            name = type(module).__name__
            raise EngineError(
                f"{name} caches keys other than those it attends to; use engine.kind: vllm or vllm-server"
            )
        return rows.attend(layer, query, scale, sliding_window, softcap), None
    if completions is None:
        return _causal(module, query, key, value, scale, sliding_window, softcap), None
    return _of_completions(module, query, key, value, completions, scale, sliding_window, softcap), None


def _of_completions(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    completions: Completions,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Outputs of a prompt and its completions, [1, H, N, E] -> [1, N, H, E]."""
    (prompt, *queries), (shared_key, *keys), (shared_value, *values) = (
        x.split([completions.prompt, *completions.lengths], dim=2) for x in (query, key, value)
    )
    out = [_causal(module, prompt, shared_key, shared_value, scale, window, softcap)]
    visible = completions.prompt if window is None else min(window - 1, completions.prompt)
    shared_key, shared_value = (x[:, :, completions.prompt - visible :] for x in (shared_key, shared_value))
    for q, own_key, own_value in zip(queries, keys, values, strict=True):
        if q.shape[2]:
            k, v = torch.cat([shared_key, own_key], dim=2), torch.cat([shared_value, own_value], dim=2)
            out.append(_causal(module, q, k, v, scale, window, softcap))
    return torch.cat(out, dim=1)


def _causal(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Outputs of queries at the end of the keys, [B, H, Q, E] -> [B, Q, H, E]."""
    queries, keys = query.shape[2], key.shape[2]
    windowed = window is not None and window < keys
    mask: torch.Tensor | None = None
    if softcap is not None or windowed:
        query_position = torch.arange(keys - queries, keys, device=query.device)[:, None]
        key_position = torch.arange(keys, device=query.device)[None]
        visible = key_position <= query_position
        if window is not None:
            visible &= key_position > query_position - window
        if softcap is not None:
            groups = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
            out = attend(query, key, value, scale, bias=hidden_as_bias(visible), softcap=softcap).out
            return out.transpose(1, 2).contiguous()
        mask = visible[None, None]
    elif queries != keys:
        mask = causal_lower_right(queries, keys)  # of which a GPU has fused kernels
    out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scale, is_causal=mask is None)
    return torch.as_tensor(out)


AttentionInterface.register(NAME, _forward)


_LAYERS = {"full_attention", "sliding_attention"}


def check_layers(model: Any) -> None:
    """Refuse a model with layers other than attention.

    Raises:
        EngineError: the message names the kind of such a layer.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or _LAYERS) - _LAYERS
    if kinds:
        raise _refusal(model, f"layers of kind {sorted(kinds)[0]}")


def replace_attention(model: Any) -> None:
    """Let a model use the attention of this module.

    Raises:
        EngineError: its attention cannot be replaced.
    """
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise _refusal(model, "an attention that cannot be replaced")


def _refusal(model: Any, problem: str) -> EngineError:
    return EngineError(f"{type(model).__name__} has {problem}; use engine.kind: vllm or vllm-server")
