"""The losses that trainers' names stand for, against the trainers' own functions and formulas, through autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.sdft.loss_utils import (
    compute_sampled_token_self_distillation_loss,
    compute_topk_self_distillation_loss,
)

from flows.command.configuration import ConfigurationError, checked
from schemas.config import Loss, RunConfig, loss_name
from schemas.config.trainers import TRAINERS
from tasks.stages.distillation.losses import distillation_direction

VOCABULARY = 2000
ADAPTER: TypeAdapter[Any] = TypeAdapter(Loss)


def logits(seed: int) -> tuple[Tensor, Tensor]:
    """Of a student and of a teacher not far from it, [1, 6, V] each."""
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(1, 6, VOCABULARY, dtype=torch.float64, generator=generator)
    return student, student + torch.randn(student.shape, dtype=torch.float64, generator=generator)


def jsd(z: Tensor, teacher: Tensor) -> Tensor:
    theirs: Any = GKDTrainer.generalized_jsd_loss
    loss: Tensor = theirs(z, teacher, beta=0.5, temperature=1.0, reduction="sum")
    return loss


def top_k(z: Tensor, teacher: Tensor, add_tail: bool = False) -> Tensor:
    loss = compute_topk_self_distillation_loss(
        z, teacher, distillation_topk=100, distillation_alpha=0.5, distillation_add_tail=add_tail
    )
    return loss.sum()


def over_sampled_tokens(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The expectation, over the sampled token, of what a trainer back-propagates for it."""

    def expected(z: Tensor, teacher: Tensor) -> Tensor:
        p = torch.softmax(z.detach(), -1)
        every = [loss(z, teacher, torch.full(z.shape[:2], y)) for y in range(VOCABULARY)]
        return (torch.stack(every, -1) * p).sum()

    return expected


def sampled(z: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    loss: Tensor = compute_sampled_token_self_distillation_loss(z, teacher, tokens, distillation_alpha=1.0)
    return loss


def log_probs_of(z: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(z, -1).gather(-1, tokens[..., None])[..., 0]


def k3(z: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """verl's low-variance estimator, back-propagated as it stands."""
    log_ratio = (log_probs_of(teacher, tokens) - log_probs_of(z, tokens)).clamp(-20, 20)
    return (log_ratio.exp() - log_ratio - 1).clamp(-10, 10)


def advantage(z: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """A policy gradient whose advantage is log T - log P, as slime and prime-rl have it."""
    log_p = log_probs_of(z, tokens)
    return -(log_probs_of(teacher, tokens) - log_p).detach() * log_p


def kept(z: Tensor, teacher: Tensor, by_teacher: bool, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the k likeliest tokens, and those of the student once more."""
    log_p, log_t = torch.log_softmax(z, -1), torch.log_softmax(teacher, -1)
    ids = (log_t if by_teacher else log_p).topk(k, -1).indices
    return log_p.gather(-1, ids), log_t.gather(-1, ids), log_p.gather(-1, ids)


def verl_topk(z: Tensor, teacher: Tensor) -> Tensor:
    p, t, _ = kept(z, teacher, True, 32)
    return (t.exp() * (t - p)).sum(-1).clamp_min(0.0).sum()


def nemo_rl(z: Tensor, teacher: Tensor) -> Tensor:
    p, t, _ = kept(z, teacher, True, 64)
    p, t = torch.log_softmax(p, -1), torch.log_softmax(t, -1)
    return (0.5 * t.exp() * (t - p) + 0.5 * p.exp() * (p - t)).sum()


def ms_swift(z: Tensor, teacher: Tensor) -> Tensor:
    p, t, _ = kept(z, teacher, True, 64)
    return jsd(p, t)


def tinker(z: Tensor, teacher: Tensor) -> Tensor:
    p, t, _ = kept(z, teacher, True, 20)
    return -(torch.softmax(t, -1) * p).sum()


def policy_gradient(z: Tensor, teacher: Tensor) -> Tensor:
    p, t, log_p = kept(z, teacher, False, 16)
    p, t = torch.log_softmax(p, -1), torch.log_softmax(t, -1)
    return ((p.exp() * (p - t)).detach() * log_p).sum()


THEIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "trl_gkd": jsd,
    "trl_sdft": top_k,
    "trl_sdpo": over_sampled_tokens(sampled),
    "verl_topk": verl_topk,
    "verl_k3": over_sampled_tokens(k3),
    "nemo_rl": nemo_rl,
    "ms_swift": ms_swift,
    "tinker": tinker,
    "thunlp": policy_gradient,
    "miles": policy_gradient,
    "slime": over_sampled_tokens(advantage),
    "prime_rl": over_sampled_tokens(advantage),
}


def by_autograd(theirs: Callable[[Tensor, Tensor], Tensor], z: Tensor, teacher: Tensor) -> Tensor:
    z = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(theirs(z, teacher), z)
    return -gradient[0]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool(((ours - theirs).norm(dim=-1) <= 1e-9 * theirs.norm(dim=-1) + 1e-14).all())


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainers_name_is_the_loss_that_it_computes(name: str) -> None:
    loss = ADAPTER.validate_python({**TRAINERS[name].loss, "name": name})
    assert loss_name(loss) == name
    z, teacher = logits(sorted(TRAINERS).index(name))
    ours = distillation_direction(loss, torch.log_softmax(z[0], -1), torch.log_softmax(teacher[0], -1))
    theirs = by_autograd(THEIRS[name], z, teacher)
    assert theirs.norm() > 1e-3 and close(ours, theirs)


def test_trls_tail_bucket_is_ours() -> None:
    loss = ADAPTER.validate_python({**TRAINERS["trl_sdft"].loss, "rest": "bucket"})
    z, teacher = logits(20)
    ours = distillation_direction(loss, torch.log_softmax(z[0], -1), torch.log_softmax(teacher[0], -1))
    assert close(ours, by_autograd(lambda a, b: top_k(a, b, add_tail=True), z, teacher))


def test_verls_floor_nulls_gradients_where_the_teacher_is_near() -> None:
    z, _ = logits(3)
    near = z + 0.05 * torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(4))
    loss = ADAPTER.validate_python(TRAINERS["verl_topk"].loss)
    ours = distillation_direction(loss, torch.log_softmax(z[0], -1), torch.log_softmax(near[0], -1))
    nulled = ours.abs().sum(-1) == 0
    assert 0 < int(nulled.sum()) < len(nulled) and close(ours, by_autograd(verl_topk, z, near))


def test_names_of_trainers_stand_for_losses_in_a_configuration(settings: dict[str, Any]) -> None:
    config = RunConfig.model_validate({**settings, "losses": [*TRAINERS, "reverse_kl"]})
    assert [loss_name(loss) for loss in config.losses] == [*TRAINERS, "reverse_kl"]
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    with pytest.raises(ValidationError, match="unknown_trainer"):
        RunConfig.model_validate({**settings, "losses": ["unknown_trainer"]})


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({"of": {"kind": "jsd", "name": "x"}}, "of.name"),
        ({"of": {"kind": "jsd", "teacher_temperature": 2}}, "of.teacher_temperature"),
        ({"rest": "bucket", "floor": True}, "floor"),
        ({"rest": "bucket", "clip": 0.1}, "clip"),
        ({"floor": True, "stop_gradient": True}, "floor"),
        ({"clip": 0}, "clip"),
        ({"teacher_temperature": 0}, "teacher_temperature"),
    ],
)
def test_truncations_that_make_no_sense_are_refused(loss: dict[str, Any], told: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        RunConfig.model_validate({**settings, "losses": [{"kind": "top_k", **loss}]})
    assert told in str(error.value)


def test_a_trainers_loss_may_be_changed(settings: dict[str, Any]) -> None:
    losses = [{"kind": "verl_topk", "k": 5}, {"kind": "trl_sdft"}, {"kind": "top_k", "of": "jsd"}]
    changed, named, short = RunConfig.model_validate({**settings, "losses": losses}).losses
    assert loss_name(changed) == "top_k(of=forward_kl, k=5, floor=True)"
    assert loss_name(named) == "trl_sdft" and loss_name(short) == "top_k(of=jsd)"


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (["trl_gdk"], "losses.0: kind 'trl_gdk' is not known; did you mean trl_gkd?"),
        (["ppo_x"], "losses.0: kind 'ppo_x' is not known; known are reverse_kl, forward_kl, "),
        (
            [{"kind": "reverse_kl", "beta": 1}],
            "losses.0.beta: unknown field, given 1; known are kind, name, ",
        ),
        ([{"kind": "top_k", "tail_bucket": True}], "losses.0.tail_bucket: unknown field, given True; known are clip, "),
        ([{"k": 5}], "losses.0: given {'k': 5} without its kind; add kind"),
    ],
)
def test_wrong_losses_are_told_what_would_be_right(losses: list[Any], told: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked({**settings, "losses": losses})
    assert told in str(error.value)
