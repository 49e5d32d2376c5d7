"""How much memory a device has, a model needs, and whether an error says that it ran out."""

import os
from pathlib import Path

import torch

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def total_memory(device: torch.device) -> int:
    """Bytes that a device has, or that this process may use of them."""
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
    """The number that a file holds; None where it is not there or says `max`."""
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


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors of a failed allocation, on GPU and CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
