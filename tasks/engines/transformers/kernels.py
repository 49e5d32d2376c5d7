"""Attention that returns its log-sum-exp, so that parts of it can be merged: fused kernels, and matrix products."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch


class Part(NamedTuple):
    """Attention to a subset of the keys: normalised outputs [B, K, G, E], and the log-sum-exp of scores [B, K, G].

    If a query sees none of the keys, its output is finite and its log-sum-exp is lower than any score, or -inf.
    """

    out: torch.Tensor
    lse: torch.Tensor


def joined(a: Part, b: Part) -> torch.Tensor:
    """Attention to the keys of both parts; each query must see at least one key of `a`."""
    share = torch.sigmoid(a.lse - b.lse)[..., None].to(a.out.dtype)
    return torch.lerp(b.out, a.out, share)


def hidden_as_bias(visible: torch.Tensor) -> torch.Tensor:
    """0 where true, -inf elsewhere, float32."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -torch.inf)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """Scaled dot-product attention that returns its log-sum-exp; sums are float32.

    Args:
        query: [B, K, G, E], K key heads with G queries each.
        keys, values: [B, K, T, E].
        bias: added to scores, 0 where a query sees a key and -inf elsewhere, [G, T] float32.
    """
    if softcap is not None:
        return by_products(query, keys, values, scale, bias, softcap)
    return fused(query.device, query.dtype, query.shape[-1])(query, keys, values, scale, bias)


def by_products(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """`attend` by matrix products, which hold all scores in memory, float32."""
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


def _flash_on_cpu(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> Part:
    mask = None if bias is None else bias.to(query.dtype)[None, None]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return _without_unseen(Part(*flash(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)), bias)


def _efficient_on_cuda(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> Part:
    mask = None if bias is None else _aligned(bias.to(query.dtype)).expand(*query.shape[:2], -1, -1)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = efficient(query, keys, values, mask, compute_log_sumexp=True, scale=scale)
    return _without_unseen(Part(out, lse[..., : query.shape[2]]), bias)


def _aligned(bias: torch.Tensor) -> torch.Tensor:
    """A bias whose rows start at multiples of 16 numbers, as the kernel wants them."""
    room = bias.new_zeros(bias.shape[0], -(-bias.shape[1] // 16) * 16)
    room[:, : bias.shape[1]] = bias
    return room[:, : bias.shape[1]]


def _without_unseen(part: Part, bias: torch.Tensor | None) -> Part:
    """What `Part` says of queries that see no key; kernels differ there."""
    if bias is None:
        return part
    unseen = bias.amax(-1) == -torch.inf
    return Part(part.out.masked_fill(unseen[:, None], 0.0), part.lse.masked_fill(unseen, -torch.inf))


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, torch.Tensor | None], Part]
KERNELS: dict[str, Kernel] = {"cpu": _flash_on_cpu, "cuda": _efficient_on_cuda}
"""By type of device."""

_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@cache
def fused(device: torch.device, dtype: torch.dtype, size: int) -> Kernel:
    """The kernel of a device for heads of a size, if it is there and agrees with matrix products."""
    kernel = KERNELS.get(device.type)
    if kernel is None or dtype not in _CLOSE:
        return by_products
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, 3, n, size, generator=generator).to(device, dtype) for n in (5, 37, 37))
    bias = hidden_as_bias(torch.arange(37)[None] < torch.tensor([0, 1, 20, 36, 37])[:, None]).to(device)
    for hidden in (None, bias):
        own = by_products(query, keys, values, size**-0.5, hidden)
        try:
            part = kernel(query, keys, values, size**-0.5, hidden)
        except RuntimeError:  # not built for this device or size
            return by_products
        seen = slice(None) if hidden is None else slice(1, None)
        for a, b in zip(own, part, strict=True):
            if not torch.allclose(a[:, :, seen].float(), b[:, :, seen].float(), atol=_CLOSE[dtype], rtol=_CLOSE[dtype]):
                return by_products
    return kernel
