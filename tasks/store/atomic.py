"""Local files that are there whole or not at all."""

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}")
"""Name of a file that is being written, with the name of the one that it replaces."""
_ATTEMPTS = 100  # to write into a folder that others remove as soon as it is empty


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file, in a folder that is made if needed; a symbolic link in its place is replaced, not followed.

    Args:
        durable: it survives a crash of the machine.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    file = _create(temporary)
    try:
        with file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk, for example: the path says which one
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def final_name(name: str) -> str:
    """The name that a file has once it is written: its own, unless it is a temporary one."""
    temporary = _TEMPORARY.fullmatch(name)
    return name if temporary is None else temporary[1]


def _create(path: Path) -> BinaryIO:
    """Create a file in a folder that a clean-up may remove before the file exists."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):  # the latter if it vanishes while `mkdir` checks it
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")
