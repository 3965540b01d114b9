"""This file is the safetensors file as the store has it: a header, tensors end to end, a hash.

    8 bytes: length of the header | header, JSON | tensor | tensor | ...

The file's name is the sha256 of its bytes. Any safetensors reader opens it. What a header claims
is believed only where the tensors fill the file exactly. Needs no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reclora.files import atomic_write, sha256_of
from reclora.store.reading import (
    FORMAT,
    NEEDS,
    StoreError,
    check_format,
    parse_json,
    read_into,
)

ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "U32": 4, "F16": 2, "BF16": 2, "U8": 1}
"""safetensors' name of a type -> bytes of one number."""

SUFFIX = ".safetensors"

MAX_HEADER = 2**20
"""Largest header that is read, in bytes: the worst hostile one costs .3 CPU-s and 20 MB."""


@dataclass(frozen=True)
class Region:
    """One tensor of a file: its first byte is at `start` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    row_bytes: int
    """Bytes of one step along the first dimension."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole."""
        return self.row_bytes * self.shape[0]


@dataclass(frozen=True)
class Layout:
    """What a file's header says, checked against the file's size."""

    metadata: Mapping[str, str]
    regions: Mapping[str, Region]
    size: int
    """Bytes of the file."""


@dataclass(frozen=True)
class HashedFile:
    """A file that is not yet written, named by the sha256 of its bytes."""

    name: str
    chunks: Sequence[bytes | memoryview]
    suffix: str = ".safetensors"

    @classmethod
    def of(cls, chunks: Sequence[bytes | memoryview], suffix: str = ".safetensors") -> HashedFile:
        """The file of `chunks`, one after the other."""
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        return cls(digest.hexdigest(), chunks, suffix)

    def write(self, folder: Path) -> Path:
        """Write it, whole or not at all; what has its name already is replaced by the same bytes.

        Raises:
            OSError: the disk refused, or holds other bytes than were written.
        """
        path = hashed_path(folder, self.name, self.suffix)
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                for chunk in self.chunks:
                    file.write(chunk)
            if sha256_of(temporary) != self.name:
                message = "the disk holds other bytes than were written"
                raise OSError(errno.EIO, message, str(path))
        return path


def hashed_path(folder: Path, name: str, suffix: str = SUFFIX) -> Path:
    """Return the path of the file with the sha256 `name`."""
    return folder / f"{name}{suffix}"


def is_hash(name: object) -> bool:
    """Whether `name` is a sha256 in hex: nothing else may become part of a path."""
    return isinstance(name, str) and re.fullmatch(r"[0-9a-f]{64}", name) is not None


def header_of(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> bytes:
    """Return the first bytes of a file: length and header.

    Args:
        metadata: texts; format and needed version are added.
        tensors: name -> type and shape, in the order in which they follow.

    Raises:
        StoreError: it is larger than `MAX_HEADER`.
    """
    header: dict[str, object] = {
        "__metadata__": {"format": str(FORMAT), "needs": NEEDS, **metadata}
    }
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # Padded, so that every tensor is aligned for readers that map the file.
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise StoreError(
            f"{len(tensors):,} tensors and their settings need a header of {len(text):,} bytes, "
            f"at most {MAX_HEADER:,} are read; adapt fewer modules, name them by patterns"
        )
    return len(text).to_bytes(8, "little") + text


def read_layout(descriptor: int, path: Path, keys: Set[str]) -> Layout:
    """Read what lies where.

    Args:
        descriptor, path: of the open file.
        keys: those that the metadata have, beside format and needed version.

    Raises:
        StoreError: it is no such file, damaged, or of a newer format.
    """
    header, data = _read_header(descriptor, path)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict):
        raise StoreError(f"{path} is no file of a reclora store: it has no metadata")
    _check_metadata(metadata, {"format", "needs", *keys}, path)
    size = os.fstat(descriptor).st_size
    return Layout(metadata, _regions_of(header, data, size, path), size)


def _read_header(descriptor: int, path: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header and where the data starts."""
    prefix = bytearray(8)
    read_into(descriptor, memoryview(prefix), 0, path)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise StoreError(
            f"{path} is no file of a reclora store: its header claims {length:,} bytes, expected "
            f"at most {MAX_HEADER:,}"
        )
    text = bytearray(length)
    read_into(descriptor, memoryview(text), 8, path)
    return parse_json(text, path), 8 + length


def _check_metadata(metadata: Mapping[str, object], expected: Set[str], path: Path) -> None:
    # By safetensors' rule metadata are strings, the number too.
    text = str(metadata.get("format"))
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else text
    check_format(number, metadata.get("needs"), path)
    if metadata.keys() != expected or not all(isinstance(v, str) for v in metadata.values()):
        raise StoreError(
            f"{path} is damaged: expected the metadata {sorted(expected)}, got {sorted(metadata)}"
        )


def _regions_of(header: Mapping[str, Any], data: int, size: int, path: Path) -> dict[str, Region]:
    """Check that the tensors of `header` fill the bytes data .. size - 1, and return them."""
    regions = {}
    end = 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            if entry["dtype"] not in ITEM_BYTES:
                raise ValueError(f"{name!r} has numbers of type {entry['dtype']!r}")
            shape = _shape_of(entry["shape"])
            row_bytes = ITEM_BYTES[entry["dtype"]] * math.prod(shape[1:])
            region = Region(entry["dtype"], shape, data + start, row_bytes)
            if start != end:
                raise ValueError(f"{name!r} starts at byte {start}, expected {end}")
            if stop - start != region.num_bytes:
                raise ValueError(f"{name!r} of shape {region.shape} does not fill {start}..{stop}")
            regions[name], end = region, stop
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged: {type(error).__name__}: {error}; restore it from a copy"
        ) from None
    if data + end != size:
        raise StoreError(f"{path} is damaged: its tensors end at {data + end}, the file at {size}")
    return regions


def _shape_of(numbers: Sequence[object]) -> tuple[int, ...]:
    """Check a shape that a file claims: a stack of up to 7 dimensions that a tensor can have."""
    shape: list[int] = []
    for number in numbers[:8]:
        if type(number) is int and 0 <= number < 2**40:
            shape.append(number)
    if len(shape) != len(numbers) or not shape or math.prod(shape[1:]) >= 2**40:
        raise ValueError(f"no shape of a stack: {numbers[:8]!r}")
    return tuple(shape)
