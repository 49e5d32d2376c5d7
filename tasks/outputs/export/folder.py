"""The folder of an export: never over someone else's files, and recognisable where it was not finished."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.text import quoted, reason
from tasks.inputs.errors import InputError
from tasks.store.atomic import final_name, write_whole

INDEX = "export.json"
_KIND = "opdscope export"


def check_folder(folder: Path) -> dict[str, Any]:
    """The index of an earlier export in a folder; empty where there is nothing yet.

    Raises:
        InputError: the folder contains other files, or cannot be read.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError("--output", f"{quoted(str(folder))} is a file; give a folder")
        if not folder.exists() or all(path.name != final_name(path.name) for path in folder.iterdir()):
            return {}
        index = _index(folder / INDEX)
    except OSError as error:
        raise InputError("--output", f"{quoted(str(folder))} cannot be read: {reason(error)}") from error
    if index.get("kind") != _KIND:
        raise InputError("--output", f"{quoted(str(folder))} contains other files; give a new folder")
    return index


def _index(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_folder(folder: Path, index: dict[str, Any], files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """Write the files of an export, and its index last.

    While files are written, the index says so: it has `"finished": false` and names no file. Files of an earlier export
    that are not written again are removed.

    Raises:
        InputError: see `check_folder`; or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return _write(folder, {"kind": _KIND, **index}, files)
    except OSError as error:
        raise InputError("--output", f"{quoted(str(folder))} cannot be written: {reason(error)}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other exports out of a folder.

    Raises:
        InputError: one is writing into it.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system if this process is killed
        yield
    except BlockingIOError as error:
        told = f"another export is writing into {quoted(str(folder))}; wait for it, or give another folder"
        raise InputError("--output", told) from error
    finally:
        os.close(held)


def _write(folder: Path, named: dict[str, Any], files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    earlier = check_folder(folder)
    digests: dict[str, str] = {}
    left = [*earlier.get("files", {}), *earlier.get("earlier", [])]
    write_whole(folder / INDEX, _json({**named, "finished": False, "files": {}, "earlier": left}))
    for name, content in files:
        write_whole(folder / name, content)
        digests[name] = hashlib.sha256(content).hexdigest()
    written = {*digests, INDEX}
    for path in folder.iterdir():
        whole = final_name(path.name)
        if (path.name in left and path.name not in written) or (path.name != whole and whole in {*left, *written}):
            path.unlink(missing_ok=True)
    final = {**named, "finished": True, "files": digests}
    write_whole(folder / INDEX, _json(final))
    return final


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
