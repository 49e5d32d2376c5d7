"""Files of this machine that others name: read only where they are files, as a pipe or device may never end."""

import os
import stat
from pathlib import Path


class NotAFileError(OSError):
    """A place holds a pipe, a device or a socket."""


def check_file(path: str | Path) -> None:
    """Refuse what is neither a file nor a folder.

    Raises:
        OSError: it is not there; `NotAFileError`: a pipe, device or socket.
    """
    _check(path, Path(path).stat())


def read_file(path: str | Path, most: int = -1) -> bytes:
    """The first bytes of a file, without waiting for any.

    Args:
        most: bytes; all where negative.

    Raises:
        OSError: it is not there, or a folder; `NotAFileError`: it is another thing than a file, or makes readers wait.
    """
    check_file(path)  # to open a device may act on it
    # a pipe that has come to stand there would wait for its other end
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        _check(path, os.fstat(file.fileno()))
        data: bytes | None = file.read(most)
    if data is None:
        raise NotAFileError(f"{path} has nothing to read now; give a file")
    return data


def _check(path: str | Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise NotAFileError(f"{path} is a pipe, a device or a socket; give a file")
