"""Encodes an artefact as bytes: a Zarr v3 group in one zip file, whose comment is the SHA-256 of all preceding bytes.

An artefact can be verified without being decoded, and any Zarr reader can still open the file.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numcodecs import Zstd
from zarr.abc.buffer import Buffer
from zarr.api.asynchronous import create_array, create_group
from zarr.codecs import ZstdCodec
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
    members = _members(stage, arrays, {**meta, "stage": stage, "key": key})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, value in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name), value)
        archive.comment = b"0" * _HEX
    body = buffer.getvalue()[:-_HEX]
    return body + hashlib.sha256(body).hexdigest().encode()


# Zarr's own writer and reader take milliseconds for each array, which for small artefacts is most of a stage's time. So
# the metadata of a shape is made by it once, and the single chunk of an array is written and read here.


def _members(stage: str, arrays: Arrays, attributes: dict[str, Any]) -> dict[str, bytes]:
    """The files of a Zarr group by name."""
    members = {"zarr.json": _group_metadata(attributes)}
    for name, declared in layout_of(stage).items():
        array = np.ascontiguousarray(arrays[name])
        compressed = array.nbytes >= _COMPRESS_FROM
        members[f"{name}/zarr.json"] = _array_metadata(array.shape, array.dtype.name, compressed, declared)
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        if data.strip(b"\0"):  # a missing chunk is all zeros
            members[f"{name}/{_chunk(array.ndim)}"] = _ZSTD.encode(data) if compressed else data
    return members


_ZSTD = Zstd(level=0)


def _chunk(dimensions: int) -> str:
    """Name of the single chunk of an array."""
    return "/".join(["c", *["0"] * dimensions])


def _group_metadata(attributes: dict[str, Any]) -> bytes:
    members: dict[str, Buffer] = {}
    sync(create_group(store=MemoryStore(members), attributes=attributes))
    return members["zarr.json"].to_bytes()


@lru_cache(maxsize=4096)
def _array_metadata(shape: tuple[int, ...], dtype: str, compressed: bool, declared: Array) -> bytes:
    members: dict[str, Buffer] = {}
    made = create_array(
        store=MemoryStore(members),
        name="array",
        shape=shape,
        dtype=dtype,
        chunks=tuple(max(1, n) for n in shape),
        compressors=ZstdCodec(level=0) if compressed else None,
        dimension_names=declared.dims,
        attributes={"unit": declared.unit},
    )
    sync(made)
    return members["array/zarr.json"].to_bytes()


def _read_members(members: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Attributes and arrays of a Zarr group.

    Raises:
        ValueError: it is not of the kind that is written here.
    """
    attributes = json.loads(members["zarr.json"])["attributes"]
    arrays: dict[str, AnyArray] = {}
    for name in (n.removesuffix("/zarr.json") for n in members if n.endswith("/zarr.json")):
        metadata = json.loads(members[f"{name}/zarr.json"])
        shape, codecs = tuple(metadata["shape"]), [codec["name"] for codec in metadata["codecs"]]
        chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        if codecs not in (["bytes"], ["bytes", "zstd"]) or chunks != [max(1, n) for n in shape]:
            raise ValueError(f"array {name} is not one chunk, compressed by zstd at most")
        dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        data = members.get(f"{name}/{_chunk(len(shape))}")
        if data is None:
            arrays[name] = np.zeros(shape, dtype=dtype.newbyteorder("="))
        else:
            raw = _ZSTD.decode(data) if "zstd" in codecs else data
            arrays[name] = np.frombuffer(raw, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return attributes, arrays


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
        meta, arrays = _read_members({name: archive.read(name) for name in archive.namelist()})
    if (meta.pop("stage"), meta.pop("key")) != (stage, key):
        raise ValueError(f"{stage}/{key}: holds another artefact")
    check_layout(stage, layout_of(stage), arrays)
    return Artefact(stage, key, arrays, meta)
