"""Closed forms against autograd through each loss itself, in float64."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.config import (
    JSD,
    AlphaDivergence,
    ForwardKL,
    MixedKL,
    ReverseKL,
    SampledToken,
    Settings,
    SkewKL,
    SkewReverseKL,
    TopK,
    TotalVariation,
    loss_name,
)
from schemas.config.losses import Divergence
from tasks.stages.distillation.directions import head_direction
from tasks.stages.distillation.losses import distillation_direction, kept_probability, squared_norm, support

ROUNDING = 4e-15
"""Autograd's own: it adds terms of size 1 that cancel."""


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return torch.where(log_a.exp() > 0, log_a.exp() * (log_a - log_b), 0.0).sum(-1)


def mix(log_a: Tensor, log_b: Tensor, a: float) -> Tensor:
    return torch.logaddexp(log_a + math.log(a), log_b + math.log1p(-a))


def truncated(loss: TopK, log_p: Tensor, log_t: Tensor) -> Tensor:
    """The truncated loss itself, for one row, written out from what trainers do."""
    kept = support(loss, log_p.detach(), log_t)[0]
    p, t = log_p[:, kept], log_t[:, kept]
    if loss.rest == "bucket":
        p, t = (torch.cat([x[:, kept], x[:, ~kept].logsumexp(-1, keepdim=True)], -1) for x in (log_p, log_t))
    if loss.rest == "renormalised":
        p = torch.log_softmax(p, -1)
    if loss.rest in ("renormalised", "teacher_renormalised"):
        t = torch.log_softmax(t, -1)
    if loss.rest == "zeroed" and not kept.any():
        return 0 * log_p.sum()
    if loss.rest == "zeroed":
        inside = torch.log_softmax(log_t[:, kept], -1)
        p, t = log_p, torch.full_like(log_t, -100.0).masked_scatter(kept[None], inside)
    entries = divergence_terms(loss.of, p, t)
    if loss.stop_gradient:  # a policy gradient
        weights = entries.detach() if loss.clip is None else entries.detach().clamp(max=loss.clip)
        return (weights * (log_p if loss.rest == "zeroed" else log_p[:, kept])).sum(-1)
    if loss.clip is not None:
        entries = entries.clamp(max=loss.clip)
    total = entries.sum(-1)
    return total.clamp(min=0.0) if loss.floor else total


def divergence_terms(loss: Settings, log_p: Tensor, log_t: Tensor) -> Tensor:
    def kl_terms(log_a: Tensor, log_b: Tensor) -> Tensor:
        return torch.where(log_a.exp() > 0, log_a.exp() * (log_a - log_b), 0.0)

    match loss:
        case ReverseKL():
            return kl_terms(log_p, log_t)
        case ForwardKL():
            return kl_terms(log_t, log_p)
        case MixedKL():
            return loss.weight * kl_terms(log_p, log_t) + (1 - loss.weight) * kl_terms(log_t, log_p)
        case JSD():
            m = mix(log_t, log_p, loss.beta)
            return loss.beta * kl_terms(log_t, m) + (1 - loss.beta) * kl_terms(log_p, m)
    raise TypeError(loss)


def value(loss: Settings, log_p: Tensor, log_t: Tensor) -> Tensor:
    """The loss itself, written out from its definition."""
    temperature = getattr(loss, "teacher_temperature", 1.0)
    if temperature != 1.0:
        log_t = torch.log_softmax(log_t / temperature, -1)
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
        case MixedKL():
            return loss.weight * kl(log_p, log_t) + (1 - loss.weight) * kl(log_t, log_p)
        case TopK():
            return truncated(loss, log_p, log_t)
    raise TypeError(loss)


LOSSES: list[Divergence] = [
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
    MixedKL(),
    MixedKL(weight=0.2, teacher_temperature=0.7),
    ReverseKL(teacher_temperature=2.0),
    *(
        TopK(of=of, k=3, support=kept, rest=rest)
        for of in (ReverseKL(), ForwardKL(), JSD(), MixedKL())
        for kept in ("student", "teacher", "union", "intersection")
        for rest in ("dropped", "bucket", "renormalised", "teacher_renormalised", "zeroed")
    ),
    TopK(of=ForwardKL(), k=3, floor=True),
    TopK(of=ReverseKL(), k=3, floor=True, support="student"),
    TopK(of=ForwardKL(), k=17, clip=0.05),
    TopK(of=ForwardKL(), k=5, clip=0.05, rest="renormalised", floor=True),
    TopK(of=ReverseKL(), k=5, rest="renormalised", support="student", stop_gradient=True),
    TopK(of=ReverseKL(), k=5, support="intersection", stop_gradient=True, clip=0.1),
    TopK(of=JSD(), k=4, rest="renormalised", teacher_temperature=0.5),
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
def test_closed_form_is_autograd_on_extreme_distributions(loss: Settings) -> None:
    for student, teacher in product(EXTREME, EXTREME):
        z, zt = (torch.tensor([EXTREME[name]], dtype=torch.float64) for name in (student, teacher))
        log_p, log_t = torch.log_softmax(z, -1), torch.log_softmax(zt, -1)
        ours = distillation_direction(loss, log_p, log_t)
        assert torch.isfinite(ours).all(), (student, teacher)
        theirs = by_autograd(loss, z, log_t)
        if torch.isfinite(theirs).all() and float(theirs.norm()) > 1e-12:
            # autograd itself cancels where P is next to one-hot; compare to its rounding there
            assert float((ours - theirs).norm()) <= 1e-9 * float(theirs.norm()) + 1e-13, (student, teacher)


@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
def test_exact_zeros_give_neither_nan_nor_infinity(loss: Settings) -> None:
    zero = -math.inf
    log_p = torch.tensor([[0.0, zero, zero, zero], [math.log(0.5), math.log(0.5), zero, zero]])
    log_t = torch.tensor([[zero, 0.0, zero, zero], [zero, math.log(0.5), math.log(0.5), zero]])
    for a, b in ((log_p, log_t), (log_t, log_p), (log_p, log_p)):
        assert torch.isfinite(distillation_direction(loss, a, b)).all()


def test_kept_probability_is_that_of_the_tokens_in_the_sum() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    t = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.05, 0.15, 0.1]], dtype=torch.float64)
    expected = {
        "student": ([0.8, 0.7], [0.3, 0.75]),
        "teacher": ([0.2, 0.6], [0.7, 0.85]),
        "union": ([1.0, 0.9], [1.0, 0.9]),
        "intersection": ([0.0, 0.4], [0.0, 0.7]),
    }
    for name, (student, teacher) in expected.items():
        loss = TopK.model_validate({"k": 2, "support": name})
        kept = kept_probability(loss, p.log(), t.log())
        assert [x.tolist() for x in kept] == [pytest.approx(student), pytest.approx(teacher)]
    hot = TopK(k=1, support="teacher", teacher_temperature=0.5)
    assert kept_probability(hot, p.log(), t.log())[1].tolist() == pytest.approx([16 / 30, 0.49 / 0.525])
    assert [x.tolist() for x in kept_probability(JSD(), p.log(), t.log())] == [[1.0, 1.0]] * 2


NOUGHT = [loss for loss in LOSSES if loss.teacher_temperature == 1 and not isinstance(loss, TopK)]
NOUGHT += [TopK(of=of, k=3, rest="renormalised") for of in (ReverseKL(), ForwardKL(), JSD(), MixedKL())]
NOUGHT += [TopK(of=of, k=3, rest="bucket") for of in (ReverseKL(), ForwardKL(), JSD(), MixedKL())]
NOUGHT += [TopK(of=JSD(beta=0.3), k=3), TopK(k=3, rest="renormalised", stop_gradient=True)]


@pytest.mark.parametrize("loss", NOUGHT, ids=loss_name)
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


def test_a_tempered_zero_is_still_as_good_as_none() -> None:
    log_p = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    log_t = torch.log(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    hot = distillation_direction(ReverseKL(teacher_temperature=100.0), log_p, log_t)
    assert torch.equal(hot, distillation_direction(ReverseKL(), log_p, log_t))


def test_where_no_token_is_kept_there_is_no_gradient() -> None:
    log_p = torch.log(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64))
    log_t = torch.log(torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64))
    for rest in ("dropped", "renormalised", "teacher_renormalised", "zeroed"):
        loss = TopK.model_validate({"k": 1, "support": "intersection", "rest": rest})
        assert not distillation_direction(loss, log_p, log_t).any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("of", [ReverseKL(), ForwardKL(), JSD(beta=0.3), MixedKL()], ids=loss_name)
def test_a_sampled_token_has_the_mean_and_the_squared_norm_of_all_its_samples(
    of: Divergence, temperature: float
) -> None:
    """Each sample is a policy gradient whose advantage is the derivative of the divergence, by autograd."""
    loss, generator = SampledToken.model_validate({"of": of}), torch.Generator().manual_seed(3)
    z, zt = (2 * torch.randn(1, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    log_p, log_t = torch.log_softmax(z, -1), torch.log_softmax(zt, -1)
    policy = torch.softmax(log_p / temperature, -1)
    p = log_p.exp().requires_grad_()
    (f,) = torch.autograd.grad(value(of, p.log(), log_t).sum(), p)
    (at_student,) = torch.autograd.grad(value(of, p.log(), log_p).sum(), p)
    samples = -(f - at_student)[0][:, None] * (torch.eye(9, dtype=torch.float64) - log_p.exp())
    weights = policy[0][:, None]
    d = distillation_direction(loss, log_p, log_t, policy)
    assert_close(d, (weights * samples).sum(0, keepdim=True))
    expected = (weights * samples.square().sum(-1, keepdim=True)).sum()
    assert float(squared_norm(loss, d, log_p, log_t, policy)) == pytest.approx(float(expected), rel=1e-9)
    assert float(squared_norm(of, d, log_p, log_t, policy)) == pytest.approx(float(d.square().sum()), rel=1e-12)
    if temperature == 1.0:
        assert_close(d, distillation_direction(of, log_p, log_t))


@pytest.mark.parametrize(
    "loss", [SampledToken(of=ForwardKL()), SampledToken(of=MixedKL()), SampledToken(of=ForwardKL(), clip=10.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sampled_token_that_the_teacher_is_sure_of_and_the_student_is_not_has_a_finite_norm(
    loss: SampledToken, dtype: torch.dtype
) -> None:
    for far in (-30.0, -70.0, -120.0, -800.0):
        log_p = torch.log_softmax(torch.tensor([[0.0, far, -1.0]], dtype=dtype), -1)
        log_t = torch.log_softmax(torch.tensor([[far, 0.0, -1.0]], dtype=dtype), -1)
        d = distillation_direction(loss, log_p, log_t)
        norm = float(squared_norm(loss, d, log_p, log_t, log_p.exp()))
        assert torch.isfinite(d).all() and math.isfinite(norm)
        if loss.clip is not None:
            assert norm < 100


def test_k3_beyond_its_clip_has_no_gradient() -> None:
    """As verl clamps its estimate of a token, by autograd through it."""
    loss = SampledToken(of=ForwardKL(), clip=10.0)
    generator = torch.Generator().manual_seed(5)
    z, zt = (4 * torch.randn(1, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    log_p, log_t = torch.log_softmax(z, -1), torch.log_softmax(zt, -1)
    samples = []
    for y in range(9):
        x = z.clone().requires_grad_()
        log_ratio = (log_t[0, y] - torch.log_softmax(x, -1)[0, y]).clamp(-20, 20)
        (gradient,) = torch.autograd.grad((log_ratio.exp() - log_ratio - 1).clamp(-10, 10), x)
        samples.append(-gradient[0])
    weights = log_p.exp()[0][:, None]
    each = torch.stack(samples)
    assert bool((each.norm(dim=-1) == 0).any()) and bool((each.norm(dim=-1) > 0).any())
    d = distillation_direction(loss, log_p, log_t)
    assert_close(d, (weights * each).sum(0, keepdim=True))
    expected = float((weights * each.square().sum(-1, keepdim=True)).sum())
    assert float(squared_norm(loss, d, log_p, log_t, log_p.exp())) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [ReverseKL(), SampledToken(), SampledToken(of=ForwardKL())], ids=loss_name)
def test_a_head_of_all_tokens_has_the_direction_of_all_tokens_at_any_temperature(loss: Divergence) -> None:
    generator = torch.Generator().manual_seed(6)
    log_p, log_t = torch.log_softmax(torch.randn(2, 3, 7, generator=generator, dtype=torch.float64), -1)
    policy = torch.softmax(log_p / 0.5, -1)
    offsets, tail = np.arange(4) * 7, np.zeros(21, dtype=bool)
    found = head_direction(loss, log_p.flatten(), log_t.flatten(), offsets, tail, policy.log().flatten())
    np.testing.assert_allclose(
        found, distillation_direction(loss, log_p, log_t, policy).flatten(), rtol=1e-9, atol=1e-12
    )
