"""Losses that are functions of the user's own, differentiated by autograd."""

import torch
from torch import Tensor

from schemas.config import RunConfig
from schemas.config.losses import PythonLoss
from schemas.text import quoted, reason
from tasks.inputs.errors import InputError
from tasks.operations.user_code import user_function

_ROUNDING = 1e-6
"""Below it the gradient of a teacher that equals the student is float32's rounding, whose direction means nothing."""


def user_direction(place: str, log_p: Tensor, log_t: Tensor) -> Tensor:
    """d = -dL/dz of the loss that `module:function` gives, by autograd.

    Args:
        place: the function, of log-probabilities of student and teacher.
        log_p, log_t: these, [n, V].

    Raises:
        InputError: it fails, or gives something else than one finite loss for each row.
    """
    function = user_function("losses", place)
    with torch.inference_mode(False), torch.enable_grad():
        logits, teacher = log_p.detach().float().clone().requires_grad_(), log_t.detach().float().clone()
        try:
            loss = function(torch.log_softmax(logits, dim=-1), teacher)
            given = f"a {type(loss).__name__}"
            if isinstance(loss, Tensor):
                given = f"shape {list(loss.shape)}" + ("" if loss.requires_grad else " that does not depend on them")
            if not isinstance(loss, Tensor) or loss.shape != (len(log_p),) or not loss.requires_grad:
                raise TypeError(f"of log-probabilities of shape {list(log_p.shape)} it gives {given}, not a loss a row")
            if not bool(loss.isfinite().all()):
                raise ValueError("a loss is not finite; treat probabilities near 0")
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
        except (Exception, SystemExit) as error:  # of the user's code
            raise InputError("losses", f"{quoted(place)}: {type(error).__name__}: {reason(error)}") from error
    if not bool(gradient.isfinite().all()):
        raise InputError("losses", f"{quoted(place)}: its gradient is not finite; treat probabilities near 0")
    nothing = (log_p == log_t).all(-1, keepdim=True) & (gradient.abs().amax(-1, keepdim=True) < _ROUNDING)
    return -gradient.masked_fill(nothing, 0.0)


def check_user_losses(config: RunConfig, vocabulary: int) -> None:
    """Try every loss of the user's own on a few distributions, one of which has a probability of nearly 0.

    Args:
        vocabulary: number of tokens.

    Raises:
        InputError: as for `user_direction`.
    """
    logits = torch.zeros(2, vocabulary)
    logits[0] = torch.linspace(-2.0, 2.0, vocabulary)
    logits[0, -1] = -50.0
    log_p, log_t = torch.log_softmax(logits, -1), torch.log_softmax(logits.flip(-1), -1)
    for loss in config.losses:
        if isinstance(loss, PythonLoss):
            together = user_direction(loss.function, log_p, log_t)
            each = zip(log_p[:, None], log_t[:, None], strict=True)
            alone = torch.cat([user_direction(loss.function, *row) for row in each])
            if not torch.allclose(together, alone, rtol=1e-4, atol=1e-7):
                raise InputError("losses", f"{quoted(loss.function)}: a row's loss depends on the other rows")
