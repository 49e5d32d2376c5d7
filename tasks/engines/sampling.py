"""One uniform a step becomes a token: the inverse of the cumulative distribution, in the order of token ids."""

import torch

from tasks.engines.protocol import EngineError

_STRIDE = 128


def inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sampled token ids: [B, V], [B] (double) -> [B].

    Probabilities are float32 and their sums double: first over strides of the vocabulary, then within the one where
    the uniform falls, so that no cumulative row of the whole vocabulary is ever made.

    Raises:
        EngineError: logits that are not numbers.
    """
    B, V = logits.shape
    top = logits.amax(-1, keepdim=True)
    weights = ((logits - top) / temperature).exp_() if temperature != 1.0 else (logits - top).exp_()
    missing = -V % _STRIDE
    strides = torch.nn.functional.pad(weights, (0, missing)).view(B, -1, _STRIDE)
    ends = strides.sum(-1, dtype=torch.float64).cumsum(-1)
    if not bool(torch.isfinite(ends[:, -1]).all()):
        raise EngineError("the model gives logits that are not numbers; try dtype float32 or bfloat16")
    target = uniforms[:, None] * ends[:, -1:]
    stride = torch.minimum(torch.searchsorted(ends, target, right=True), _last(ends))
    before = torch.where(stride > 0, ends.gather(1, (stride - 1).clamp(min=0)), 0.0)
    within = strides.gather(1, stride[..., None].expand(-1, -1, _STRIDE))[:, 0].double().cumsum(-1)
    place = torch.minimum(torch.searchsorted(within, target - before, right=True), _last(within))
    return (stride * _STRIDE + place)[:, 0]


def _last(cumulative: torch.Tensor) -> torch.Tensor:
    """Place of the last positive term, [B, N] -> [B, 1]: where rounding leads past the end, this is it."""
    return (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
