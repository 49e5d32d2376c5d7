"""Closed forms against autograd through each loss itself, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.config import (
    JSD,
    AlphaDivergence,
    ForwardKL,
    ReverseKL,
    Settings,
    SkewKL,
    SkewReverseKL,
    TopK,
    TotalVariation,
    loss_name,
)
from tasks.stages.distillation.losses import distillation_direction, support

ROUNDING = 4e-15
"""Autograd's own: it adds terms of size 1 that cancel."""


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return torch.where(log_a.exp() > 0, log_a.exp() * (log_a - log_b), 0.0).sum(-1)


def mix(log_a: Tensor, log_b: Tensor, a: float) -> Tensor:
    return torch.logaddexp(log_a + math.log(a), log_b + math.log1p(-a))


def with_bucket(loss: TopK, log_p: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the kept tokens, and of the rest as one token where the loss has a bucket."""
    kept = support(loss, log_p.detach(), log_t)[0]
    parts = []
    for logs in (log_p, log_t):
        rest = logs[:, ~kept].logsumexp(-1, keepdim=True)
        parts.append(torch.cat([logs[:, kept], rest], -1) if loss.tail_bucket else logs[:, kept])
    return parts[0], parts[1]


def value(loss: Settings, log_p: Tensor, log_t: Tensor) -> Tensor:
    """The loss itself, written out from its definition."""
    match loss:
        case ReverseKL():
            return kl(log_p, log_t)
        case ForwardKL():
            return kl(log_t, log_p)
        case JSD():
            m = mix(log_t, log_p, loss.beta)
            return loss.beta * kl(log_t, m) + (1 - loss.beta) * kl(log_p, m)
        case SkewKL():
            return kl(log_t, mix(log_t, log_p, loss.alpha))
        case SkewReverseKL():
            return kl(log_p, mix(log_p, log_t, loss.alpha))
        case TotalVariation():
            return 0.5 * (log_p.exp() - log_t.exp()).abs().sum(-1)
        case AlphaDivergence():
            a = loss.alpha
            return ((a * log_p + (1 - a) * log_t).exp().sum(-1) - 1) / (a * (a - 1))
        case TopK():
            return value(loss.of, *with_bucket(loss, log_p, log_t))
    raise TypeError(loss)


LOSSES: list[Settings] = [
    ReverseKL(),
    ForwardKL(),
    JSD(),
    JSD(beta=0.1),
    JSD(beta=0.9),
    SkewKL(),
    SkewReverseKL(),
    TotalVariation(),
    AlphaDivergence(),
    AlphaDivergence(alpha=0.9),
    *(
        TopK(of=of, k=3, support=kept, tail_bucket=bucket)
        for of in (ReverseKL(), ForwardKL(), JSD())
        for kept in ("student", "teacher", "union")
        for bucket in (False, True)
    ),
]


def by_autograd(loss: Settings, z: Tensor, log_t: Tensor) -> Tensor:
    z = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(loss, torch.log_softmax(z, -1), log_t).sum(), z)
    return -gradient


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(ours).all()
    error = (ours - theirs).norm(dim=-1)
    assert (error <= 1e-9 * theirs.norm(dim=-1) + ROUNDING).all(), (error / theirs.norm(dim=-1)).max()


@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
def test_closed_form_is_autograd_on_random_distributions(loss: Settings) -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 5.0):
        z, zt = (scale * torch.randn(50, 17, dtype=torch.float64, generator=generator) for _ in range(2))
        for row in range(50):
            log_t = torch.log_softmax(zt[row : row + 1], -1)
            ours = distillation_direction(loss, torch.log_softmax(z[row : row + 1], -1), log_t)
            assert_close(ours, by_autograd(loss, z[row : row + 1], log_t))


EXTREME = {
    "probabilities down to 1e-30": [0.0, -5.0, -30.0, -50.0, -math.log(1e30), 0.0, -1.0],
    "ties": [1.0, 1.0, 1.0, -3.0, -3.0, 1.0, 1.0],
    "nearly one-hot": [40.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "one-hot": [2000.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "one-hot elsewhere": [0.0, 0.0, 0.0, 2000.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
@pytest.mark.parametrize("student", EXTREME)
@pytest.mark.parametrize("teacher", EXTREME)
def test_closed_form_is_autograd_on_extreme_distributions(loss: Settings, student: str, teacher: str) -> None:
    z, zt = (torch.tensor([EXTREME[name]], dtype=torch.float64) for name in (student, teacher))
    log_p, log_t = torch.log_softmax(z, -1), torch.log_softmax(zt, -1)
    ours = distillation_direction(loss, log_p, log_t)
    assert torch.isfinite(ours).all()
    theirs = by_autograd(loss, z, log_t)
    if torch.isfinite(theirs).all() and float(theirs.norm()) > 1e-12:
        # autograd itself cancels where P is next to one-hot; compare to its rounding there
        assert float((ours - theirs).norm()) <= 1e-9 * float(theirs.norm()) + 1e-13


@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
def test_exact_zeros_give_neither_nan_nor_infinity(loss: Settings) -> None:
    zero = -math.inf
    log_p = torch.tensor([[0.0, zero, zero, zero], [math.log(0.5), math.log(0.5), zero, zero]])
    log_t = torch.tensor([[zero, 0.0, zero, zero], [zero, math.log(0.5), math.log(0.5), zero]])
    for a, b in ((log_p, log_t), (log_t, log_p), (log_p, log_p)):
        assert torch.isfinite(distillation_direction(loss, a, b)).all()


@pytest.mark.parametrize("loss", [x for x in LOSSES if not isinstance(x, TopK)], ids=loss_name)
def test_teacher_equal_to_student_gives_exactly_zero(loss: Settings) -> None:
    for dtype in (torch.float32, torch.float64):
        log_p = torch.log_softmax(4 * torch.randn(20, 31, dtype=dtype), -1)
        assert not distillation_direction(loss, log_p, log_p.clone()).any()


@given(st.lists(st.floats(-60, 60), min_size=3, max_size=9), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_directions_sum_to_zero(logits: list[float], rng: object) -> None:
    z = torch.tensor([logits], dtype=torch.float64)
    for loss in LOSSES:
        d = distillation_direction(loss, torch.log_softmax(z, -1), torch.log_softmax(z.flip(-1), -1))
        assert abs(float(d.sum())) <= 1e-9 * max(1.0, float(d.abs().sum()))


def test_jsd_has_the_beta_convention_of_gkd_and_trl() -> None:
    """beta -> 0 is forward KL and beta -> 1 reverse KL, up to the factor beta (1 - beta) of the limit."""
    generator = torch.Generator().manual_seed(2)
    log_p, log_t = (
        torch.log_softmax(torch.randn(5, 9, dtype=torch.float64, generator=generator), -1) for _ in range(2)
    )
    small = 1e-6
    forward = distillation_direction(JSD(beta=small), log_p, log_t) / small
    reverse = distillation_direction(JSD(beta=1 - small), log_p, log_t) / small
    assert torch.allclose(forward, distillation_direction(ForwardKL(), log_p, log_t), rtol=1e-4, atol=1e-6)
    assert torch.allclose(reverse, distillation_direction(ReverseKL(), log_p, log_t), rtol=1e-4, atol=1e-6)
