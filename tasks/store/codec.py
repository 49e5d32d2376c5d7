"""Encodes an artefact as bytes: a Zarr v3 group in one zip file, whose comment is the SHA-256 of all preceding bytes.

An artefact can be verified without being decoded, and any Zarr reader can still open the file.
"""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.api.asynchronous import create_group, open_group
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from schemas.arrays import AnyArray, Array, Arrays, check_layout
from schemas.pipeline import layout_of

_HEX = 64
_COMPRESS_FROM = 4096  # bytes; below, the codec costs more than it saves


@dataclass(frozen=True)
class Artefact:
    """The output of one stage for one question."""

    stage: str
    key: str
    arrays: dict[str, AnyArray]
    meta: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]


def encode(stage: str, key: str, arrays: Arrays, meta: Mapping[str, Any]) -> bytes:
    """Zip bytes of an artefact; the last 64 are the SHA-256 of the rest.

    Raises:
        ValueError: the arrays do not match the layout declared for the stage.
    """
    check_layout(stage, layout_of(stage), arrays)
    members = sync(_write_group(stage, arrays, {**meta, "stage": stage, "key": key}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, value in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name), value.to_bytes())
        archive.comment = b"0" * _HEX
    body = buffer.getvalue()[:-_HEX]
    return body + hashlib.sha256(body).hexdigest().encode()


# Zarr's synchronous API enters its event loop once per array; entering it once for all arrays halves the time.


async def _write_group(stage: str, arrays: Arrays, attributes: dict[str, Any]) -> dict[str, Buffer]:
    members: dict[str, Buffer] = {}
    group = await create_group(store=MemoryStore(members), attributes=attributes)

    async def write(name: str, declared: Array) -> None:
        array = np.ascontiguousarray(arrays[name])
        member = await group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=tuple(max(1, n) for n in array.shape),
            compressors="auto" if array.nbytes >= _COMPRESS_FROM else None,
            dimension_names=declared.dims,
            attributes={"unit": declared.unit},
        )
        await member.setitem(..., array)

    await asyncio.gather(*(write(name, declared) for name, declared in layout_of(stage).items()))
    return members


async def _read_group(members: MemoryStore) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    group = await open_group(store=members, mode="r")
    found = [member async for member in group.arrays()]
    values = await asyncio.gather(*(array.getitem(...) for _, array in found))
    return dict(group.attrs), {name: np.asarray(value) for (name, _), value in zip(found, values, strict=True)}


def is_whole(data: bytes) -> bool:
    """True if the bytes end with the SHA-256 of everything before it."""
    return len(data) > _HEX and hashlib.sha256(memoryview(data)[:-_HEX]).hexdigest().encode() == data[-_HEX:]


def decode(stage: str, key: str, data: bytes) -> Artefact:
    """Decode an artefact.

    Raises:
        ValueError: the bytes are damaged, hold another artefact, or do not have the declared layout.
    """
    if not is_whole(data):
        raise ValueError(f"{stage}/{key}: damaged, its SHA-256 does not match")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        prototype = default_buffer_prototype()
        members = {n: prototype.buffer.from_bytes(archive.read(n)) for n in archive.namelist()}
    meta, arrays = sync(_read_group(MemoryStore(members)))
    if (meta.pop("stage"), meta.pop("key")) != (stage, key):
        raise ValueError(f"{stage}/{key}: holds another artefact")
    check_layout(stage, layout_of(stage), arrays)
    return Artefact(stage, key, arrays, meta)
