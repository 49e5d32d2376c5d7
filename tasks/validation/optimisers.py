"""Optimisers of trainings, by their settings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from schemas.config import AdamW, NormalisedSteps
from tasks.operations.implementations import implementation


def optimiser(settings: AdamW | NormalisedSteps, parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
    """The optimiser that the settings select."""
    made: torch.optim.Optimizer = implementation(settings.implementation)(settings, parameters)
    return made


def adamw(settings: AdamW, parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    betas = settings.beta1, settings.beta2
    return torch.optim.AdamW(parameters, settings.learning_rate, betas, weight_decay=settings.weight_decay)


def normalised(settings: NormalisedSteps, parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
    """Steps of one length along the gradient."""
    return _Normalised(parameters, settings.length)


class _Normalised(torch.optim.SGD):
    """Gradient descent whose gradient is divided by its norm; where that is 0 nothing moves."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm() if gradients else torch.zeros(())
        for gradient in gradients if norm > 0 else ():
            gradient.div_(norm.to(gradient.device))
        return super().step(closure)
