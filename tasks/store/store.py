"""The cache: one zip object per artefact, verified on every read.

An artefact is one file, `<store>/<stage>/<key>/artefact.zarr.zip` (`tasks.store.codec`). One object means one atomic
commit on every store (a rename on disk, a PUT elsewhere) and one request to read; a folder of chunks would need a
manifest written last and dozens of requests.
"""

import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from schemas.arrays import Arrays
from schemas.pipeline import PIPELINE
from schemas.text import listed
from tasks.inputs.files import read_file
from tasks.store.atomic import final_name, write_whole
from tasks.store.codec import Artefact, decode, encode, is_whole
from tasks.store.outages import LASTING, StoreAwayError, one_line, translated
from tasks.store.outages import StoreError as StoreError  # is raised here

OBJECT = "artefact.zarr.zip"
MARKER = ".opdscope-store"
"""Object that marks a folder as a store and names its format; nothing is deleted without it."""
FORMAT = 1
_STORE_FOLDERS = frozenset(
    {*PIPELINE, "rounds", "trainings", "training_states", "runs", "claims", "nightly", "calibration"}
)
"""Folders that identify a store whose marker is lost or not yet written."""
_OTHER_FOLDERS = frozenset({"prefect", "demo", "models"})
"""Folders that commands create in `.opdscope` before it is a store."""


class Store:
    """Artefacts and run outputs under one fsspec URL."""

    def __init__(self, url: str) -> None:
        """Open the store without accessing it yet.

        Raises:
            StoreAwayError: a file system that connects when it is opened gets no answer now.
            StoreError: unknown protocol, its package or another requirement is missing, or a local folder behind
                another protocol, which would follow links out of the store.
        """
        self.url = url
        if _ends_locally(url):
            raise StoreError(f"cannot open {url!r}: it leads to a local folder; give the folder itself")
        try:
            place = os.path.expanduser(url)  # noqa: PTH111 - may be a URL
            with translated(url):
                # writes of other processes must be visible
                self.fs, self.root = fsspec.core.url_to_fs(place, use_listings_cache=False)
        except (ImportError, ValueError, TypeError, AttributeError, *LASTING) as error:  # file systems validate nothing
            raise StoreError(f"cannot open {url!r}: {one_line(error)}") from error

    def path(self, *parts: str) -> str:
        """Path in the store, as its file system names it."""
        return "/".join([self.root.rstrip("/"), *parts])

    def check_writable(self) -> None:
        """Write and remove a small object; mark a new store as one.

        Raises:
            StoreAwayError: the store does not answer now.
            StoreError: writing failed, or the store has another format.
        """
        name = f".probe-{uuid.uuid4().hex}"
        try:
            found = self.format()
            if found is None:
                self._check_new()
            elif found != FORMAT:
                raise StoreError(f"{self.url!r} has format {found}, this version of opdscope writes {FORMAT}")
            self.put_bytes(b"", name)
            self.remove(name)
            if found is None:
                self.put_bytes(json.dumps({"format": FORMAT}).encode(), MARKER)
        except (StoreAwayError, StoreError):
            raise
        except Exception as error:
            raise StoreError(f"cannot write to {self.url!r}: {one_line(error)}") from error

    def _check_new(self) -> None:
        """Refuse to make a store in a folder that belongs to someone else.

        Raises:
            StoreError: it contains other files, and no folder of a store.
        """
        names = [name for name in self.names() if not name.startswith(".")]
        if set(names) - _OTHER_FOLDERS and not set(names) & _STORE_FOLDERS:
            raise StoreError(
                f"{self.url!r} is not a store and contains other files ({listed(names)}); give a folder in it"
            )

    def format(self) -> object:
        """The format in the store's marker; None without a valid marker."""
        try:
            marker = json.loads(self.get_bytes(MARKER) or b"null")
        except ValueError:  # damaged: treated as missing
            return None
        return marker.get("format") if isinstance(marker, dict) else None

    def put_bytes(self, data: bytes, *parts: str) -> None:
        """Write one object atomically."""
        self._put(data, parts, durable=True)

    def put_note(self, data: bytes, *parts: str) -> None:
        """Like `put_bytes`, without forcing to disk: for an object that need not survive a crash of the machine."""
        self._put(data, parts, durable=False)

    def _put(self, data: bytes, parts: tuple[str, ...], *, durable: bool) -> None:
        target = self.path(*parts)
        if not self.is_local:
            with self._translating():
                self.fs.pipe_file(target, data)
            return
        write_whole(Path(target), data, durable=durable)

    def get_bytes(self, *parts: str) -> bytes | None:
        """One object, or None if it does not exist."""
        try:
            if self.is_local:
                return read_file(self.path(*parts))
            with self._translating():
                return bytes(self.fs.cat_file(self.path(*parts)))
        except FileNotFoundError:
            return None

    def remove(self, *parts: str) -> None:
        """Remove an object if it exists."""
        with suppress(FileNotFoundError), self._translating():
            self.fs.rm_file(self.path(*parts))

    def remove_temporary(self, folder: tuple[str, ...], names: Iterable[str]) -> None:
        """Remove what killed processes left of some objects, which no other process may be writing."""
        wanted = set(names)
        for name in self.names(*folder):
            if name != final_name(name) and final_name(name) in wanted:
                self.remove(*folder, name)

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
        """Publish an artefact; `name` and `layout` are for rounds under a stage's key."""
        self.put_bytes(encode(layout or stage, key, arrays, meta), stage, key, name)

    def has(self, stage: str, key: str) -> bool:
        """True if the artefact exists and verifies; a damaged one is removed."""
        data = self.get_bytes(stage, key, OBJECT)
        if data is None:
            return False
        if is_whole(data):
            return True
        self.remove(stage, key, OBJECT)
        return False

    def load(self, stage: str, key: str, *, name: str = OBJECT, layout: str = "") -> Artefact | None:
        """The artefact, or None if it does not exist; one that fails verification is removed."""
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
            StoreError: it is missing.
        """
        artefact = self.load(stage, key)
        if artefact is None:
            raise StoreError(f"{self.url}: {stage}/{key} is missing; run again to make it")
        return artefact

    def names(self, *parts: str) -> list[str]:
        """Sorted names in a folder of the store; empty if there is no such folder."""
        try:
            with self._translating():
                found = self.fs.ls(self.path(*parts), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in found)

    def find(self, *parts: str) -> dict[str, dict[str, Any]]:
        """File-system details of every object below a folder, by its path relative to that folder."""
        root = self.path(*parts)
        try:
            with self._translating():
                found: dict[str, dict[str, Any]] = self.fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        above = f"{root.lstrip('/')}/"
        below = {path.lstrip("/"): info for path, info in found.items()}
        return {path.removeprefix(above): info for path, info in below.items() if path.startswith(above)}

    def exists(self) -> bool:
        """True if something exists at the store's URL."""
        with self._translating():
            return bool(self.fs.exists(self.root))

    def is_file(self) -> bool:
        """True if the store's URL is an object and not a folder."""
        with self._translating():
            return bool(self.fs.isfile(self.root))

    @property
    def is_local(self) -> bool:
        """True if the store is a local folder."""
        return isinstance(self.fs, LocalFileSystem)

    def _translating(self) -> AbstractContextManager[None]:
        return nullcontext() if self.is_local else translated(self.url)


def _ends_locally(url: str) -> bool:
    """True for a chained URL whose last part is a local path."""
    _, chained, last = url.rpartition("::")
    return bool(chained) and last not in fsspec.available_protocols() and get_protocol(last) in ("file", "local")
