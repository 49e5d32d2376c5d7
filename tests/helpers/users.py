"""Functions such as users name in a configuration."""

import os
import time

import torch
from torch import Tensor


def reverse_kl(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_t)).sum(-1)


def forward_kl(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (log_t.exp() * (log_t - log_p)).sum(-1)


def always(completion: str, answer: str) -> bool:
    return True


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


def sleeping(completion: str, answer: str) -> bool:
    time.sleep(600)
    return True


def dying(completion: str, answer: str) -> bool:
    os._exit(0)


def many(completion: str, answer: str) -> Tensor:
    return torch.zeros(3)


def constant(log_p: Tensor, log_t: Tensor) -> Tensor:
    return torch.zeros(len(log_p))


def infinite(log_p: Tensor, log_t: Tensor) -> Tensor:
    return (1 / (log_p.exp() - log_p.exp())).sum(-1)


def failing(*given: object) -> bool:
    raise KeyError("a mistake")


def last_word(completion: str, answer: str) -> bool:
    if completion == "hang":
        time.sleep(600)
    return completion.split()[-1:] == [answer]


def unsure(completion: str, answer: str) -> str:
    return "perhaps"


NOTHING = 1
