"""Functions such as users name in a configuration."""

import torch
from torch import Tensor


def reverse_kl(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_t)).sum(-1)


def forward_kl(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (log_t.exp() * (log_t - log_p)).sum(-1)


def summed(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (log_p - log_t).sum()


def together(log_p: Tensor, log_t: Tensor) -> Tensor:
    each = reverse_kl(log_p, log_t)
    return each * each.detach().mean()


def entropy(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (log_p.exp() * log_p).sum(-1)


def leaving(*given: object) -> bool:
    raise SystemExit(0)


def unbounded(log_p: Tensor, log_t: Tensor) -> Tensor:
    return reverse_kl(log_p, log_t) + torch.inf


def few(log_p: Tensor, log_t: Tensor) -> Tensor:
    assert log_p.shape[-1] < 5, "vocabulary"
    return reverse_kl(log_p, log_t)


def constant(log_p: Tensor, log_t: Tensor) -> Tensor:
    return torch.zeros(len(log_p))


def infinite(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (1 / (log_p.exp() - log_p.exp())).sum(-1)


def failing(*given: object) -> bool:
    raise KeyError("a mistake")


def unsure(completion: str, answer: str) -> str:
    return "perhaps"


NOTHING = 1
