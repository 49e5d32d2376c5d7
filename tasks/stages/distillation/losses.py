"""Distillation losses. Each is one small function over a single Jacobian.

Every loss L(P, T) has dL/dz_j = P_j (f_j - f_bar) with f_j = dL/dP_j and f_bar = sum_k P_k f_k, z the student's
logits. The functions give the product P_j f_j, which stays finite where f_j alone does not, from log-probabilities
of student and teacher [n, V]. Where the sum runs over the whole vocabulary a constant in f_j cancels; where it is
truncated it does not, so none is dropped.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from schemas.config import JSD, ForwardKL, MiniLLM, MixedKL, PythonLoss, ReverseKL, SampledToken, Settings, TopK
from schemas.config.losses import Divergence
from tasks.operations.implementations import implementation
from tasks.stages.distillation.user import user_direction

LOG_ZEROED = -100.0
"""The log-probability that NeMo-RL gives the teacher outside of the kept tokens."""
MOST_LOG_RATIO = 20.0
"""Largest log-ratio of a sampled token whose exponential is taken; verl clamps it there."""
LOG_ZERO = -1e4
"""An exact zero is treated as e^-10000, so that log-ratios stay finite."""

Weighted = Callable[[Tensor, Tensor], Tensor]
"""(log P, log T) -> P f, elementwise."""


def log_mix(log_p: Tensor, log_t: Tensor, teacher: float) -> Tensor:
    """log(teacher T + (1 - teacher) P); P itself where T = P, without rounding."""
    mixed = torch.logaddexp(log_t + math.log(teacher), log_p + math.log1p(-teacher))
    return torch.where(log_t == log_p, log_p, mixed)


def reverse_kl(log_p: Tensor, log_t: Tensor) -> Tensor:
    """KL(P || T): f = log(P / T) + 1."""
    return log_p.exp() * (log_p - log_t + 1)


def forward_kl(log_p: Tensor, log_t: Tensor) -> Tensor:
    """KL(T || P): f = -T / P."""
    return -log_t.exp()


def jsd(log_p: Tensor, log_t: Tensor, beta: float) -> Tensor:
    """beta KL(T || M) + (1 - beta) KL(P || M), M = beta T + (1 - beta) P: f = (1 - beta) log(P / M).

    GKD (arXiv 2306.13649, eq. 5) and TRL's `generalized_jsd_loss` for beta inside (0, 1).
    """
    return (1 - beta) * log_p.exp() * (log_p - log_mix(log_p, log_t, beta))


def skew_kl(log_p: Tensor, log_t: Tensor, alpha: float) -> Tensor:
    """KL(T || M), M = alpha T + (1 - alpha) P: f = -(1 - alpha) T / M. DistiLLM (arXiv 2402.03898)."""
    return -(1 - alpha) * (log_t + log_p - log_mix(log_p, log_t, alpha)).exp()


def skew_reverse_kl(log_p: Tensor, log_t: Tensor, alpha: float) -> Tensor:
    """KL(P || M), M = (1 - alpha) T + alpha P: f = log(P / M) + 1 - alpha P / M. DistiLLM (arXiv 2402.03898)."""
    log_ratio = log_p - log_mix(log_p, log_t, 1 - alpha)
    return log_p.exp() * (log_ratio + 1 - alpha * log_ratio.exp())


def total_variation(log_p: Tensor, log_t: Tensor) -> Tensor:
    """(1/2) sum |P - T|: f = sign(P - T) / 2, 0 at ties."""
    return 0.5 * log_p.exp() * torch.sign(log_p - log_t)


def alpha_divergence(log_p: Tensor, log_t: Tensor, alpha: float) -> Tensor:
    """(sum P^alpha T^(1-alpha) - 1) / (alpha (alpha - 1)): f = (P / T)^(alpha-1) / (alpha - 1). Amari's family."""
    return (alpha * log_p + (1 - alpha) * log_t).exp() / (alpha - 1)


def mixed_kl(log_p: Tensor, log_t: Tensor, weight: float) -> Tensor:
    """weight KL(P || T) + (1 - weight) KL(T || P)."""
    return weight * reverse_kl(log_p, log_t) + (1 - weight) * forward_kl(log_p, log_t)


def terms(loss: Settings, log_p: Tensor, log_t: Tensor) -> Tensor:
    """The terms of a divergence that can be truncated, whose sum it is, [n, V]."""
    p, t = log_p.exp(), log_t.exp()
    match loss:
        case ReverseKL():
            return p * (log_p - log_t)
        case ForwardKL():
            return t * (log_t - log_p)
        case MixedKL():
            return (loss.weight * p - (1 - loss.weight) * t) * (log_p - log_t)
        case JSD():
            log_m = log_mix(log_p, log_t, loss.beta)
            return loss.beta * t * (log_t - log_m) + (1 - loss.beta) * p * (log_p - log_m)
    raise TypeError(loss)


def weighted(loss: Settings) -> Weighted:
    """The elementwise function of a loss other than `TopK`, with its parameters.

    Raises:
        AttributeError: unknown loss.
    """
    parameters = {name: value for name, value in loss if name not in Divergence.model_fields and name != "kind"}
    return partial(implementation(loss.implementation), **parameters)


def floored(log_probs: Tensor) -> Tensor:
    """Log-probabilities with exact zeros replaced by `LOG_ZERO`."""
    return log_probs.clamp(min=LOG_ZERO)


def support(loss: TopK, log_p: Tensor, log_t: Tensor) -> Tensor:
    """The tokens that a truncated loss keeps, bool [n, V]; ties go to the lower id."""
    k = min(loss.k, log_p.shape[-1])
    kept = torch.zeros_like(log_p, dtype=torch.bool)
    if loss.support != "teacher":
        kept.scatter_(-1, log_p.topk(k, dim=-1).indices, True)
    if loss.support == "student":
        return kept
    of_teacher = torch.zeros_like(kept).scatter_(-1, log_t.topk(k, dim=-1).indices, True)
    return kept & of_teacher if loss.support == "intersection" else kept | of_teacher


def bucket(log_probs: Tensor, kept: Tensor) -> Tensor:
    """Total log-probability of the tokens that are not kept, [n, 1]."""
    return floored(log_probs.masked_fill(kept, -torch.inf).logsumexp(-1, keepdim=True))


def distillation_direction(loss: Settings, log_p: Tensor, log_t: Tensor, policy: Tensor | None = None) -> Tensor:
    """The distillation direction d = -dL/dz at each node.

    Args:
        loss: its settings.
        log_p, log_t: log-probabilities of student and teacher, [n, V].
        policy: probabilities with which tokens are sampled, [n, V]; those of the student unless given. A loss of the
            sampled token depends on them.

    Returns:
        d, [n, V]; each row sums to 0.
    """
    log_p, log_t = _compared(loss, log_p, log_t)
    match loss:
        case PythonLoss():
            return user_direction(loss.function, log_p, log_t)
        case TopK():
            pf = _truncated(loss, log_p, log_t)
        case SampledToken():
            pf = _of_sample(loss, log_p, log_t)
            if policy is not None:
                pf = policy * _quotient(pf, log_p)
        case MiniLLM():  # the part of a step itself
            pf = _centred(reverse_kl, log_p, log_t)
        case _:
            pf = _centred(weighted(loss), log_p, log_t)
    return log_p.exp() * pf.sum(-1, keepdim=True) - pf


def squared_norm(loss: Settings, d: Tensor, log_p: Tensor, log_t: Tensor, policy: Tensor) -> Tensor:
    """|d|^2, [n]; of a sampled token y its mean: sum_y policy_y f_y^2 |e_y - P|^2, |e_y - P|^2 = 1 - 2 P_y + |P|^2.

    Args:
        d: the direction, [n, V].
        log_p, log_t, policy: as for the direction, [n, V].
    """
    if not isinstance(loss, SampledToken):
        return d.square().sum(-1, dtype=torch.float64)
    log_p, log_t = _compared(loss, log_p, log_t)
    p, f = log_p.exp(), _quotient(_of_sample(loss, log_p, log_t), log_p).double()
    of_token = 1 - 2 * p + p.square().sum(-1, keepdim=True)
    return (policy * f.square() * of_token).sum(-1)


def _of_sample(loss: SampledToken, log_p: Tensor, log_t: Tensor) -> Tensor:
    """P f of a sampled token, f as trainers compute it."""
    if isinstance(loss.of, ForwardKL | MixedKL):
        log_t = log_p + (log_t - log_p).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)
    pf = _centred(weighted(loss.of), log_p, log_t)
    if loss.clip is None:
        return pf
    log_ratio = log_t - log_p
    return pf.masked_fill(log_ratio.exp() - 1 - log_ratio > loss.clip, 0.0)


def _quotient(pf: Tensor, log_p: Tensor) -> Tensor:
    """f; 0 where P f is, as where P is too small for a number."""
    return torch.where(pf == 0, 0.0, pf / log_p.exp().clamp(min=torch.finfo(pf.dtype).tiny))


def kept_probability(loss: Settings, log_p: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's probability of the tokens that a loss looks at, [n] each."""
    if not isinstance(loss, TopK):
        return log_p.new_ones(len(log_p)), log_p.new_ones(len(log_p))
    log_p, log_t = _compared(loss, log_p, log_t)
    kept = support(loss, log_p, log_t)
    student, teacher = (x.exp().masked_fill(~kept, 0.0).sum(-1, dtype=torch.float64) for x in (log_p, log_t))
    return student, teacher


def _compared(loss: Settings, log_p: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    """The distributions that a loss compares: without exact zeros, and the teacher's at its temperature."""
    temperature = getattr(loss, "teacher_temperature", 1.0)
    if temperature != 1.0:
        log_t = torch.log_softmax(log_t / temperature, dim=-1)
    return floored(log_p), floored(log_t)


def _centred(function: Weighted, log_p: Tensor, log_t: Tensor) -> Tensor:
    """P f with f = 0 at T = P: over the whole vocabulary a constant cancels, and teacher = student gives exactly 0."""
    return function(log_p, log_t) - function(log_p, log_p)


def _truncated(loss: TopK, log_p: Tensor, log_t: Tensor) -> Tensor:
    """P f, summed over the kept tokens or what stands for the others; `TopK` says how."""
    function, kept = weighted(loss.of), support(loss, log_p, log_t)
    if loss.rest == "bucket":
        rest_p, rest_t = bucket(log_p, kept), bucket(log_t, kept)
        share = (log_p - rest_p).clamp(max=0.0).exp()  # P_j f_rest = (P_j / P_rest) (P_rest f_rest)
        return torch.where(kept, _centred(function, log_p, log_t), share * _centred(function, rest_p, rest_t))
    within_p = _within(log_p, kept) if loss.rest == "renormalised" else log_p
    within_t = log_t if loss.rest == "dropped" else _within(log_t, kept)
    if loss.rest == "zeroed":
        within_t, kept = torch.where(kept, within_t, LOG_ZEROED), kept.any(-1, keepdim=True).expand_as(kept)
    entries = terms(loss.of, within_p, within_t).masked_fill(~kept, 0.0)
    if loss.stop_gradient:
        return entries if loss.clip is None else entries.clamp(max=loss.clip)
    # where the student is renormalised a constant in f cancels, and teacher = student gives exactly 0
    cancels = loss.rest == "renormalised" and loss.clip is None
    pf = _centred(function, within_p, within_t) if cancels else function(within_p, within_t)
    pf = pf.masked_fill(~kept, 0.0)
    if loss.clip is not None:
        pf, entries = pf.masked_fill(entries > loss.clip, 0.0), entries.clamp(max=loss.clip)
    if loss.floor:
        pf = pf.masked_fill(entries.sum(-1, keepdim=True) < 0, 0.0)
    if loss.rest == "renormalised":  # what renormalises the student depends on it too
        pf = pf - within_p.exp().masked_fill(~kept, 0.0) * pf.sum(-1, keepdim=True)
    return pf


def _within(log_probs: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities renormalised over the kept tokens, of which each row has one at least, or all are 0."""
    total = log_probs.masked_fill(~kept, -torch.inf).logsumexp(-1, keepdim=True)
    return floored(torch.where(kept.any(-1, keepdim=True), log_probs - total, log_probs))
