"""Attention of decoding rows that share prefixes: one pass over a prefix for all its rows, then each row's own part.

The parts are joined by their log-sum-exp (Juravsky et al. 2024, "Hydragen"), so that a prefix's keys are read once a
step and not once a row.
"""

from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.engines.protocol import EngineError

NAME = "opdscope_shared_prefix"


class Part(NamedTuple):
    """Attention to some of the keys: outputs [B, K, G, E], normalised, and the log-sum-exp of scores [B, K, G].

    Where a query sees none of them, its output is finite and its log-sum-exp lower than any score, or -inf.
    """

    out: torch.Tensor
    lse: torch.Tensor


class Rows(Protocol):
    """A batch of decoding rows: the cache of a step, and who attends to what of it."""

    def holds(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> bool:
        """True where what a layer attends to has the form in which the cache keeps it, [B, K, T, E]."""
        ...

    def attend(
        self, layer: int, query: torch.Tensor, scale: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """Outputs of one layer, [B, H, 1, E] -> [B, 1, H, E]."""
        ...


_FUSED_FROM = 16
"""Queries a head from which the fused kernel is faster on a CPU in float32; in less it always is, and more exact."""


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """Scaled dot-product attention that tells its log-sum-exp; scores and their sums are float32.

    Args:
        query: [B, K, G, E], K key heads with G queries each.
        keys, values: [B, K, T, E].
        bias: added to scores, 0 where a query sees a key and -inf where not, [G, T] float32.
    """
    few = query.shape[2] < _FUSED_FROM and query.dtype == torch.float32
    if query.device.type == "cpu" and softcap is None and not few:
        mask = None if bias is None else bias.to(query.dtype)[None, None]
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        part = Part(*fused(query, keys, values, 0.0, False, attn_mask=mask, scale=scale))
        if bias is None:
            return part
        unseen = bias.amax(-1) == -torch.inf  # the kernel's log-sum-exp of no keys is 0
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


def hidden_as_bias(seen: torch.Tensor) -> torch.Tensor:
    """0 where true, -inf where not, float32."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)


def joined(a: Part, b: Part) -> torch.Tensor:
    """Attention to the keys of both parts; each query must see some of those of `a`."""
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
    """What models call: decoding of `rows`, or a pass over whole sequences, causal, padding only on the right."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        name = type(module).__name__
        raise EngineError(f"{name} has attention sinks or position biases; use engine.kind: vllm or vllm-server")
    if rows is not None:
        layer = int(getattr(module, "layer_idx"))  # noqa: B009
        if not rows.holds(layer, key, value):
            name = type(module).__name__
            raise EngineError(f"{name} caches other keys than it attends to; use engine.kind: vllm or vllm-server")
        return rows.attend(layer, query, scale, sliding_window, softcap), None
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if queries != keys or softcap is not None or (sliding_window is not None and sliding_window < keys):
        place = torch.arange(keys - queries, keys, device=query.device)[:, None]
        other = torch.arange(keys, device=query.device)[None]
        mask = other <= place
        if sliding_window is not None:
            mask &= other > place - sliding_window
    if softcap is not None and mask is not None:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        out = attend(query, key, value, scale, bias=hidden_as_bias(mask), softcap=softcap).out
        return out.transpose(1, 2).contiguous(), None
    causal = mask is None
    seen = None if mask is None else mask[None, None]
    out, _ = sdpa_attention_forward(module, query, key, value, seen, scaling=scale, is_causal=causal)
    return out, None


AttentionInterface.register(NAME, _forward)
