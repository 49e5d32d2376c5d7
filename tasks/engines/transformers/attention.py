"""Attention for decoding rows that share prefixes: one pass over a prefix for all its rows, then each row's own part.

The parts are merged by their log-sum-exp (Juravsky et al. 2024, "Hydragen"), so that a prefix's keys are read once per
step instead of once per row.
"""

from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.engines.protocol import EngineError

NAME = "opdscope_shared_prefix"


class Part(NamedTuple):
    """Attention to a subset of the keys: normalised outputs [B, K, G, E], and the log-sum-exp of scores [B, K, G].

    If a query sees none of the keys, its output is finite and its log-sum-exp is lower than any score, or -inf.
    """

    out: torch.Tensor
    lse: torch.Tensor


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


_FUSED_FROM = 16
"""Queries per head from which the fused kernel is faster on a CPU in float32; in lower precision it always is,
and it is more accurate."""


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """Scaled dot-product attention that returns its log-sum-exp; scores and their sums are float32.

    Args:
        query: [B, K, G, E], K key heads with G queries each.
        keys, values: [B, K, T, E].
        bias: added to scores, 0 where a query sees a key and -inf elsewhere, [G, T] float32.
    """
    few = query.shape[2] < _FUSED_FROM and query.dtype == torch.float32
    if query.device.type == "cpu" and softcap is None and not few:
        mask = None if bias is None else bias.to(query.dtype)[None, None]
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        part = Part(*fused(query, keys, values, 0.0, False, attn_mask=mask, scale=scale))
        if bias is None:
            return part
        unseen = bias.amax(-1) == -torch.inf  # the kernel returns a log-sum-exp of 0 for no keys
        return part._replace(lse=part.lse.masked_fill(unseen, -torch.inf))
    scores = torch.matmul(query.float() * scale, keys.float().transpose(-1, -2))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).tiny)
    out = torch.matmul(weights.div_(total).to(values.dtype), values)
    return Part(out, (top + total.log())[..., 0])


def hidden_as_bias(visible: torch.Tensor) -> torch.Tensor:
    """0 where true, -inf elsewhere, float32."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -torch.inf)


def joined(a: Part, b: Part) -> torch.Tensor:
    """Attention to the keys of both parts; each query must see at least one key of `a`."""
    share = torch.sigmoid(a.lse - b.lse)[..., None].to(a.out.dtype)
    return torch.lerp(b.out, a.out, share)


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that models call: decodes `rows`, or runs a causal pass over sequences padded on the right."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        name = type(module).__name__
        raise EngineError(f"{name} has attention sinks or position biases; use engine.kind: vllm or vllm-server")
    if rows is not None:
        layer = int(getattr(module, "layer_idx"))  # noqa: B009
        if not rows.holds(layer, key, value):
            name = type(module).__name__
            raise EngineError(
                f"{name} caches keys other than those it attends to; use engine.kind: vllm or vllm-server"
            )
        return rows.attend(layer, query, scale, sliding_window, softcap), None
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if queries != keys or softcap is not None or (sliding_window is not None and sliding_window < keys):
        query_position = torch.arange(keys - queries, keys, device=query.device)[:, None]
        key_position = torch.arange(keys, device=query.device)[None]
        mask = key_position <= query_position
        if sliding_window is not None:
            mask &= key_position > query_position - sliding_window
    if softcap is not None and mask is not None:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        out = attend(query, key, value, scale, bias=hidden_as_bias(mask), softcap=softcap).out
        return out.transpose(1, 2).contiguous(), None
    causal = mask is None
    batched_mask = None if mask is None else mask[None, None]
    out, _ = sdpa_attention_forward(module, query, key, value, batched_mask, scaling=scale, is_causal=causal)
    return out, None


AttentionInterface.register(NAME, _forward)
