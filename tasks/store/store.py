"""The cache: one zip object an artefact, verified on every read.

An artefact is one file, `<store>/<stage>/<key>/artefact.zarr.zip`: `tasks.store.codec`. One object is one atomic commit
on every store (rename on a disk, a PUT elsewhere) and one request to read, where a folder of chunks would need a
manifest written last and tens of requests.
"""

import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from schemas.arrays import Arrays
from schemas.pipeline import PIPELINE
from schemas.text import listed
from tasks.inputs.files import read_file
from tasks.store.codec import Artefact, decode, encode, is_whole
from tasks.store.outages import LASTING, StoreAwayError, one_line, translated
from tasks.store.outages import StoreError as StoreError  # is raised here

OBJECT = "artefact.zarr.zip"
MARKER = ".opdscope-store"
"""Object that says that a folder is a store, and of which format; what deletes looks for it first."""
FORMAT = 1
_OF_STORES = frozenset({*PIPELINE, "rounds", "runs", "claims", "nightly", "calibration"})
"""Folders that show a store where a marker is lost, or was not written yet."""
_BESIDE = frozenset({"prefect", "demo", "models"})
"""Folders that commands make in `.opdscope` before it is a store."""
_TRIES = 100  # to write into a folder that others remove as soon as it is empty


class Store:
    """Artefacts and run outputs under one fsspec URL."""

    def __init__(self, url: str) -> None:
        """Open (not yet touch) the store.

        Raises:
            StoreAwayError: what must answer to be opened does not now.
            StoreError: unknown protocol, its package or what else it needs is missing, or a folder of this machine
                behind another protocol: links in it would be followed to what is not the store's.
        """
        self.url = url
        if _ends_here(url):
            raise StoreError(f"cannot open {url!r}: it leads to a folder of this machine; give the folder itself")
        try:
            place = os.path.expanduser(url)  # noqa: PTH111 - may be a URL
            with translated(url):
                # what other processes write must be seen
                self.fs, self.root = fsspec.core.url_to_fs(place, use_listings_cache=False)
        except (ImportError, ValueError, TypeError, AttributeError, *LASTING) as error:  # file systems check nothing
            raise StoreError(f"cannot open {url!r}: {one_line(error)}") from error

    def path(self, *parts: str) -> str:
        """Path of something in the store, as its file system names it."""
        return "/".join([self.root.rstrip("/"), *parts])

    def check_writable(self) -> None:
        """Write and remove a small object, and mark a new store as one.

        Raises:
            StoreAwayError: it does not answer now.
            StoreError: that failed, or the store is of another format.
        """
        name = f".probe-{uuid.uuid4().hex}"
        try:
            found = self.format()
            if found is None:
                self._check_new()
            self.put_bytes(b"", name)
            self.remove(name)
            if found is None:
                self.put_bytes(json.dumps({"format": FORMAT}).encode(), MARKER)
        except (StoreAwayError, StoreError):
            raise
        except Exception as error:
            raise StoreError(f"cannot write to {self.url!r}: {one_line(error)}") from error
        if found not in (None, FORMAT):
            raise StoreError(f"{self.url!r} has format {found}, this version of opdscope writes {FORMAT}")

    def _check_new(self) -> None:
        """Refuse to make a store of a folder that is somebody's own.

        Raises:
            StoreError: it holds other things, and nothing that only a store holds.
        """
        names = [name for name in self.names() if not name.startswith(".")]
        if set(names) - _BESIDE and not set(names) & _OF_STORES:
            raise StoreError(f"{self.url!r} is no store and holds other things ({listed(names)}); name a folder in it")

    def format(self) -> object:
        """The format that the store's marker names; None where nothing says that this is a store."""
        try:
            marker = json.loads(self.get_bytes(MARKER) or b"null")
        except ValueError:  # damaged: as if it were not there
            return None
        return marker.get("format") if isinstance(marker, dict) else None

    def put_bytes(self, data: bytes, *parts: str) -> None:
        """Write one object whole or not at all."""
        self._put(data, parts, durable=True)

    def put_note(self, data: bytes, *parts: str) -> None:
        """As `put_bytes`, for an object that need not outlive the machine: it is not forced to the disk."""
        self._put(data, parts, durable=False)

    def _put(self, data: bytes, parts: tuple[str, ...], *, durable: bool) -> None:
        target = self.path(*parts)
        if not self.is_local:
            with self._answering():
                self.fs.pipe_file(target, data)
            return
        path = Path(target)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        file = _created(temporary)
        try:
            with file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:  # a full disk, say, of which there may be several
            if error.filename is None:
                error.filename = str(path)
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def get_bytes(self, *parts: str) -> bytes | None:
        """One object, or None where there is none."""
        try:
            if self.is_local:
                return read_file(self.path(*parts))
            with self._answering():
                return bytes(self.fs.cat_file(self.path(*parts)))
        except FileNotFoundError:
            return None

    def remove(self, *parts: str) -> None:
        """Remove an object if it is there."""
        with suppress(FileNotFoundError), self._answering():
            self.fs.rm_file(self.path(*parts))

    def commit(
        self,
        stage: str,
        key: str,
        arrays: Arrays,
        meta: Mapping[str, Any],
        *,
        name: str = OBJECT,
        layout: str = "",
    ) -> None:
        """Publish an artefact; `name` and `layout` are for the rounds inside a stage's key."""
        self.put_bytes(encode(layout or stage, key, arrays, meta), stage, key, name)

    def has(self, stage: str, key: str) -> bool:
        """True where the artefact is there and whole; a damaged one is removed."""
        data = self.get_bytes(stage, key, OBJECT)
        if data is None:
            return False
        if is_whole(data):
            return True
        self.remove(stage, key, OBJECT)
        return False

    def load(self, stage: str, key: str, *, name: str = OBJECT, layout: str = "") -> Artefact | None:
        """The artefact, or None where there is none; what does not verify is removed."""
        data = self.get_bytes(stage, key, name)
        if data is None:
            return None
        try:
            return decode(layout or stage, key, data)
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error, json.JSONDecodeError):
            self.remove(stage, key, name)
            return None

    def need(self, stage: str, key: str) -> Artefact:
        """The artefact of an earlier stage.

        Raises:
            StoreError: it is not there.
        """
        artefact = self.load(stage, key)
        if artefact is None:
            raise StoreError(f"{self.url}: {stage}/{key} is missing; run again to make it")
        return artefact

    def names(self, *parts: str) -> list[str]:
        """Sorted names in a folder of the store; empty where there is none."""
        try:
            with self._answering():
                found = self.fs.ls(self.path(*parts), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in found)

    def find(self, *parts: str) -> dict[str, dict[str, Any]]:
        """What the file system knows of every object below a folder, by its path in that folder."""
        root = self.path(*parts)
        try:
            with self._answering():
                found: dict[str, dict[str, Any]] = self.fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        above = f"{root.lstrip('/')}/"
        below = {path.lstrip("/"): info for path, info in found.items()}
        return {path.removeprefix(above): info for path, info in below.items() if path.startswith(above)}

    def exists(self) -> bool:
        """True where there is something at the store's URL."""
        with self._answering():
            return bool(self.fs.exists(self.root))

    def is_file(self) -> bool:
        """True where that is one object, and no folder."""
        with self._answering():
            return bool(self.fs.isfile(self.root))

    @property
    def is_local(self) -> bool:
        """True where the store is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def _answering(self) -> AbstractContextManager[None]:
        return nullcontext() if self.is_local else translated(self.url)


def _ends_here(url: str) -> bool:
    """True for a chained URL whose last part is a place of this machine."""
    _, chained, last = url.rpartition("::")
    return bool(chained) and last not in fsspec.available_protocols() and get_protocol(last) in ("file", "local")


def _created(path: Path) -> BinaryIO:
    """A new file, in a folder that a clean-up may remove between its making and its first file."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError, FileExistsError):  # the second where it goes while `mkdir` looks at it
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")
