"""The folders of runs in a store, read without following symbolic links."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tasks.store.listing import changed
from tasks.store.store import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""Names that can be requested; those of runs and of their outputs are such names."""


class Entry(NamedTuple):
    """A file of a run's folder.

    Attributes:
        size: bytes.
        changed: when it was last written, seconds since 1970 by the store's own clock.
        version: differs once the file is another one.
    """

    size: int
    changed: float
    version: str


def can_be_requested(name: str) -> bool:
    """Whether a run or an output of this name is served."""
    return _NAME.fullmatch(name) is not None


def run_folders(store: Store) -> dict[str, dict[str, Entry]]:
    """The files of every run whose name can be requested, by run and name.

    Raises:
        OSError, StoreError: the store cannot be read.
    """
    if store.is_local:
        return dict(_local_folders(store))
    out: dict[str, dict[str, Entry]] = {}
    for path, info in store.find("runs").items():
        run, _, name = path.partition("/")
        if can_be_requested(run) and can_be_requested(name):
            tag = str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
            entry = Entry(int(info["size"] or 0), changed(info), "")
            out.setdefault(run, {})[name] = entry._replace(version=f"{entry.size} {entry.changed} {tag}")
    return out


def _local_folders(store: Store) -> Iterator[tuple[str, dict[str, Entry]]]:
    try:
        with _opened(store.root, "runs") as folder, os.scandir(folder) as found:
            runs = sorted(e.name for e in found if e.is_dir(follow_symlinks=False) and can_be_requested(e.name))
    except OSError:  # there are none yet
        return
    for run in runs:
        try:
            with _opened(store.root, "runs", run) as folder, os.scandir(folder) as found:
                yield run, dict(_local_entries(found))
        except OSError:  # removed meanwhile
            continue


def _local_entries(found: "Iterator[os.DirEntry[str]]") -> Iterator[tuple[str, Entry]]:
    for entry in found:
        if can_be_requested(entry.name) and entry.is_file(follow_symlinks=False):
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            version = f"{info.st_ino} {info.st_size} {info.st_mtime_ns}"
            yield entry.name, Entry(info.st_size, info.st_mtime, version)


def read_output(store: Store, run: str, name: str) -> bytes | None:
    """An output of a run, or None if there is no regular file of that name; symbolic links are not followed."""
    if not store.is_local:
        try:
            return store.get_bytes("runs", run, name)
        except IsADirectoryError:
            return None
    try:
        with _opened(store.root, "runs", run) as folder:
            # opening a pipe must not wait for its other end
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None


@contextmanager
def _opened(root: str, *parts: str) -> Iterator[int]:
    """A descriptor of a subfolder, opened without following symbolic links.

    Raises:
        OSError: it does not exist, or a part of its path is a symbolic link.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            parent = descriptor
            descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
        yield descriptor
    finally:
        os.close(descriptor)
