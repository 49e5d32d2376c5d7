"""The device on which a model runs."""

import torch

from tasks.engines.protocol import EngineError


def resolve_device(name: str) -> torch.device:
    """The device named by a setting; `auto` is a GPU if there is one.

    Raises:
        EngineError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"{name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"{name!r}, but this machine has {torch.cuda.device_count()} GPUs; use cpu or auto")
    return device
