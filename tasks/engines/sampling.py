"""Samples one token per uniform random number, by the inverse CDF over token ids in ascending order."""

import torch

from tasks.engines.protocol import EngineError

_STRIDE = 128


def inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Sampled token ids: [B, V], [B] (double), [B] (float32) -> [B].

    Probabilities and their sums over strides of the vocabulary are float32, everything else is double. The stride that
    contains the uniform is found first, then the token within it, so no cumulative sum over the whole vocabulary is
    needed.

    Raises:
        EngineError: the logits are not numbers.
    """
    B, V = logits.shape
    weights = torch.softmax(logits / temperature[:, None], dim=-1)
    full = V // _STRIDE * _STRIDE
    sums = weights[:, :full].view(B, -1, _STRIDE).sum(-1)
    if full < V:
        sums = torch.cat([sums, weights[:, full:].sum(-1, keepdim=True)], dim=1)
    ends = sums.double().cumsum(-1)
    if not bool(torch.isfinite(ends[:, -1]).all()):
        raise EngineError("the model returns logits that are not numbers; try dtype float32 or bfloat16")
    target = uniforms[:, None] * ends[:, -1:]
    stride = torch.minimum(torch.searchsorted(ends, target, right=True), _last(ends))
    before = torch.where(stride > 0, ends.gather(1, (stride - 1).clamp(min=0)), 0.0)
    tokens = stride * _STRIDE + torch.arange(_STRIDE, device=logits.device)
    inside = weights.gather(1, tokens.clamp(max=V - 1)).masked_fill_(tokens >= V, 0.0)
    within = inside.double().cumsum(-1)
    index = torch.minimum(torch.searchsorted(within, target - before, right=True), _last(within))
    return (stride * _STRIDE + index)[:, 0]


def _last(cumulative: torch.Tensor) -> torch.Tensor:
    """Index of the last positive term, [B, N] -> [B, 1]; used where rounding leads past the end."""
    return (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
