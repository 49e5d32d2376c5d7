"""Processes of this machine, told apart from later ones that have their number."""

import psutil


def this_process() -> tuple[int, float]:
    """Number and start of this process."""
    return psutil.Process().pid, psutil.Process().create_time()


def is_gone(process: int, started: float) -> bool:
    """True where no process of this number has started then, or it has ended."""
    try:
        found = psutil.Process(process)
        return bool(found.create_time() != started or found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
