"""Random projections of gradients that keep their inner products (Charikar, Chen and Farach-Colton 2002)."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tasks.statistics.csr import Floats


class Projection:
    """Every parameter is added, with a random sign, to one of k numbers: inner products keep their expectation.

    The error of an inner product of a and b is about |a| |b| / sqrt(k). Signs are drawn on the CPU from the parameter's
    name alone, so that projections agree between questions, processes and devices. With no more than k parameters the
    gradient is kept as it is.

    Args:
        k: numbers that are kept.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._signs: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(self, gradient: Mapping[str, Tensor]) -> Floats:
        """The projection of a gradient by parameter, [k]; [parameters] where there are no more than k."""
        if sum(part.numel() for part in gradient.values()) <= self._k:
            whole = torch.cat([gradient[name].detach().flatten().double() for name in sorted(gradient)])
            return np.asarray(whole.cpu().numpy(), dtype=np.float64)
        out = torch.zeros(self._k, dtype=torch.float64)
        for name, part in gradient.items():
            signed = part.detach().flatten().float() * self._sign(name, part)
            padded = torch.nn.functional.pad(signed, (0, -len(signed) % self._k))
            out += padded.view(-1, self._k).sum(0, dtype=torch.float64).roll(_seed(name) % self._k).cpu()
        return np.asarray(out.numpy(), dtype=np.float64)

    def _sign(self, name: str, part: Tensor) -> Tensor:
        """-1 or 1 for each number of a parameter."""
        key = name, part.device
        if key not in self._signs:
            generator = torch.Generator().manual_seed(_seed(name))
            drawn = torch.randint(0, 2, (part.numel(),), generator=generator, dtype=torch.int8)
            self._signs[key] = (2 * drawn - 1).to(part.device)
        return self._signs[key]


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
