"""Local files named by users: read only where they are regular files, as reading a pipe or device may never end."""

import os
import stat
from pathlib import Path


class NotAFileError(OSError):
    """A path is a pipe, a device or a socket."""


def check_file(path: str | Path) -> None:
    """Refuse anything but a file or folder.

    Raises:
        OSError: it is missing; `NotAFileError`: a pipe, device or socket.
    """
    _check(path, Path(path).stat())


def read_file(path: str | Path, most: int = -1) -> bytes:
    """The first bytes of a file, without blocking.

    Args:
        most: maximum bytes; all where negative.

    Raises:
        OSError: it is missing, or a folder; `NotAFileError`: it is not a file, or reading it would block.
    """
    check_file(path)  # opening a device may act on it
    # opening a pipe that has replaced the file would block until its other end is opened
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        _check(path, os.fstat(file.fileno()))
        data: bytes | None = file.read(most)
    if data is None:
        raise NotAFileError(f"{path} has nothing to read now; give a file")
    return data


def _check(path: str | Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise NotAFileError(f"{path} is a pipe, a device or a socket; give a file")
