"""Processes of this machine, distinguished from later ones with the same id."""

import psutil


def this_process() -> tuple[int, float]:
    """Id and start time of this process."""
    return psutil.Process().pid, psutil.Process().create_time()


def is_gone(process: int, started: float) -> bool:
    """True if the process with this id and start time has ended."""
    try:
        found = psutil.Process(process)
        return bool(found.create_time() != started or found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
