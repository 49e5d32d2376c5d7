"""Memory of devices, memory needs of models, and detection of out-of-memory errors."""

import os
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError

from schemas.config import Model, is_local_folder
from tasks.engines.gguf_file import gguf_bytes
from tasks.engines.protocol import EngineError

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def total_memory(device: torch.device) -> int:
    """Total bytes of a device, or the limit on this process if that is lower."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _number(_CGROUP[0])
    return total if limit is None else min(total, limit)


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    known = free[0] if free else total_memory(device) // 2
    limit, used = (_number(path) for path in _CGROUP)
    return known if limit is None or used is None else max(0, min(known, limit - used))


def _number(path: Path) -> int | None:
    """The number in a file; None if the file is missing or says `max`."""
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def weight_bytes(folder: Path, dtype: torch.dtype) -> int | None:
    """Bytes of a model folder's weights in a dtype, from the headers of its safetensors files; None without any."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    numbers = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                numbers += size
    return numbers * dtype.itemsize


def weights(model: Model) -> int | None:
    """Bytes of a model's weights in its dtype; None if they are not available locally, or cannot be read."""
    dtype: torch.dtype = getattr(torch, model.dtype)
    if model.is_gguf:
        return gguf_bytes(Path(model.path), dtype)
    folder = Path(model.path)
    if not is_local_folder(model.path):
        found = try_to_load_from_cache(model.path, "config.json", revision=model.revision or "main")
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    try:
        return weight_bytes(folder, dtype)
    except (OSError, SafetensorError):
        return None  # loading reports what is wrong with the file


def check_weights(model: Model) -> None:
    """Refuse a local model folder whose weights are missing or damaged, as far as the headers of their files tell.

    Raises:
        EngineError: the message names the file.
    """
    from safetensors import safe_open

    folder = Path(model.path)
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise EngineError(f"{model.path!r} has no weights (*.safetensors)")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise EngineError(f"{model.path!r} cannot be loaded: {path.name} is damaged ({error})") from error


def check_size(model: Model, device: torch.device) -> None:
    """Refuse a model whose weights alone exceed the memory of a device.

    Raises:
        EngineError: the message gives both sizes.
    """
    needed, total = weights(model) or 0, total_memory(device)
    if needed > total:
        raise EngineError(
            f"{model.path!r} has {needed / GIB:.2f} GiB of weights in {model.dtype}, but {device} has "
            f"{total / GIB:.2f} GiB in total; use a smaller dtype or another device"
        )


def fits(model: Model, device: torch.device) -> bool:
    """True if free memory holds the model and a tenth of the device's total memory as working space."""
    return (weights(model) or 0) + total_memory(device) // 10 < free_memory(device)


def is_out_of_memory(error: BaseException) -> bool:
    """True for errors of a failed allocation, on GPU or CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
