"""This file is the pack: adapters of one config, stacked in one immutable safetensors file.

Each tensor of an adapter is stacked over the S segments along its first dimension; `X.offsets`
(S+1) says whose rows are whose, so that one segment is a slice and 5,000 of them are one file:

    stack X   (sum of T_s, ...)      segment s owns X[offsets[s] : offsets[s + 1]]

The segments' names are stacked the same way, as UTF-8 bytes in `segments`. The file's name is the
sha256 of its bytes. Any safetensors reader opens it.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reclora.adapters import Adapter, AdapterConfig
from reclora.store.reading import (
    StoreError,
    check_format,
    open_regular,
    parse_json,
    read_into,
)

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}
"""What a pack can hold: safetensors' name -> torch's."""

MAX_HEADER = 2**20
"""Largest header that is read, in bytes: the worst hostile one costs .3 CPU-s and 20 MB."""

SEGMENTS = "segments"
OFFSETS = ".offsets"


@dataclass(frozen=True)
class Stack:
    """One tensor of the file: its first byte is at `start` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first dimension."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def pack_path(folder: Path, name: str) -> Path:
    """Return the path of the pack with the sha256 `name`."""
    return folder / f"{name}.safetensors"


@dataclass(frozen=True, eq=False)
class Pack:
    """An open pack: its layout is in memory, its numbers are read when they are asked for."""

    path: Path
    config: AdapterConfig
    base_fingerprint: str
    stacks: Mapping[str, Stack]
    """tensor name -> where its stack is; `segments` is one of them."""
    offsets: Mapping[str, Tensor]
    """tensor name -> int64 (S+1): segment s owns the rows offsets[s] .. offsets[s + 1] - 1."""

    def __len__(self) -> int:
        return len(self.offsets[SEGMENTS]) - 1

    def load(self, indexes: Mapping[str, int]) -> list[Adapter]:
        """Read the adapters at `indexes` (segment -> index), in that order.

        Only their slices are read; adapters that lie side by side are read at once and are then
        views of one memory block, which lives as long as any of them.

        Raises:
            StoreError: an index is outside the pack, is another segment's, or has numbers that are
                not finite.
        """
        outside = [segment for segment, index in indexes.items() if not 0 <= index < len(self)]
        if outside:
            raise StoreError(
                f"segment {outside[0]!r}: index {indexes[outside[0]]} is outside {self.path}, "
                f"which holds {len(self):,} adapters"
            )
        found: dict[int, Adapter] = {}
        with open_regular(self.path) as descriptor:
            for first, last in _runs(sorted(set(indexes.values()))):
                found.update(
                    zip(range(first, last), self._run(descriptor, first, last), strict=True)
                )
        for segment, index in indexes.items():
            if found[index].segment != segment:
                raise StoreError(
                    f"{self.path}: expected segment {segment!r} at index {index}, got "
                    f"{found[index].segment!r}; release and pack do not belong together"
                )
        return [found[index] for index in indexes.values()]

    def _run(self, descriptor: int, first: int, last: int) -> list[Adapter]:
        """Read the adapters first .. last - 1."""
        parts = {name: self._slices(descriptor, name, first, last) for name in self.stacks}
        try:
            segments = [bytes(part.numpy()).decode() for part in parts.pop(SEGMENTS)]
        except UnicodeDecodeError as error:
            raise StoreError(f"{self.path} is damaged: a segment's name: {error}") from None
        return [
            Adapter(
                segment,
                self.config,
                self.base_fingerprint,
                {name: slices[i] for name, slices in parts.items()},
            )
            for i, segment in enumerate(segments)
        ]

    def _slices(self, descriptor: int, name: str, first: int, last: int) -> list[Tensor]:
        """Read the slices of tensor `name` of the adapters first .. last - 1."""
        stack = self.stacks[name]
        bounds = self.offsets[name][first : last + 1].tolist()
        start = stack.start + bounds[0] * stack.row_bytes
        rows = _read(
            descriptor, self.path, stack.dtype, (bounds[-1] - bounds[0], *stack.shape[1:]), start
        )
        slices = list(torch.split(rows, [end - begin for begin, end in pairwise(bounds)]))
        if not is_finite(rows):
            index = next(first + i for i, part in enumerate(slices) if not is_finite(part))
            raise StoreError(
                f"{self.path} is damaged: {name} at index {index} has NaN or infinite numbers"
            )
        return slices


def open_pack(path: Path) -> Pack:
    """Read the layout of the pack at `path`; its size in memory is that of its offsets.

    Raises:
        StoreError: the file is no pack, damaged, or of a newer format.
        FileNotFoundError: it is not there.
    """
    with open_regular(path) as descriptor:
        header, data = _read_header(descriptor, path)
        metadata = header.pop("__metadata__", None)
        if not isinstance(metadata, dict):
            raise StoreError(f"{path} is no pack of a reclora store: it has no metadata")
        _check_metadata(metadata, path)
        stacks = _stacks_of(header, data, os.fstat(descriptor).st_size, path)
        offsets = {
            name.removesuffix(OFFSETS): _read_offsets(descriptor, name, stacks, path)
            for name in stacks
            if name.endswith(OFFSETS)
        }
    stacks = {name: stack for name, stack in stacks.items() if not name.endswith(OFFSETS)}
    if stacks.keys() != offsets.keys() or SEGMENTS not in stacks:
        odd = sorted((stacks.keys() ^ offsets.keys()) | ({SEGMENTS} - stacks.keys()))
        raise StoreError(f"{path} is damaged: {odd} lacks its stack or its offsets")
    if stacks[SEGMENTS].dtype != torch.uint8 or len(stacks[SEGMENTS].shape) != 1:
        raise StoreError(f"{path} is damaged: the segments' names are no bytes")
    if len({len(bounds) for bounds in offsets.values()}) != 1:
        raise StoreError(f"{path} is damaged: its tensors have not the same number of segments")
    config = _config_of(metadata["config"], path)
    return Pack(path, config, metadata["base_fingerprint"], stacks, offsets)


def _read_header(descriptor: int, path: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header and where the data starts."""
    prefix = bytearray(8)
    read_into(descriptor, memoryview(prefix), 0, path)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise StoreError(
            f"{path} is no pack: its header claims {length:,} bytes, expected at most "
            f"{MAX_HEADER:,}"
        )
    text = bytearray(length)
    read_into(descriptor, memoryview(text), 8, path)
    return parse_json(text, path), 8 + length


def _check_metadata(metadata: Mapping[str, object], path: Path) -> None:
    expected = {"format", "needs", "base_fingerprint", "config"}
    # By safetensors' rule metadata are strings, the number too.
    text = str(metadata.get("format"))
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else text
    check_format(number, metadata.get("needs"), path)
    if metadata.keys() != expected or not all(isinstance(v, str) for v in metadata.values()):
        raise StoreError(
            f"{path} is damaged: expected the metadata {sorted(expected)}, got {sorted(metadata)}"
        )


def _stacks_of(header: Mapping[str, Any], data: int, size: int, path: Path) -> dict[str, Stack]:
    """Check that the tensors of `header` fill the bytes data .. size - 1, and return them."""
    stacks = {}
    end = 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            stack = Stack(DTYPES[entry["dtype"]], _shape_of(entry["shape"]), data + start)
            if start != end:
                raise ValueError(f"{name!r} starts at byte {start}, expected {end}")
            if stop - start != stack.row_bytes * stack.shape[0]:
                raise ValueError(f"{name!r} of shape {stack.shape} does not fill {start}..{stop}")
            stacks[name], end = stack, stop
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged: {type(error).__name__}: {error}; restore it from a copy"
        ) from None
    if data + end != size:
        raise StoreError(f"{path} is damaged: its tensors end at {data + end}, the file at {size}")
    return stacks


def _shape_of(numbers: Sequence[object]) -> tuple[int, ...]:
    """Check a shape that a file claims: a stack of up to 7 dimensions that a tensor can have."""
    shape = tuple(number for number in numbers[:8] if type(number) is int)
    is_whole = len(shape) == len(numbers) and all(0 <= number < 2**40 for number in shape)
    if not is_whole or not shape or math.prod(shape[1:]) >= 2**40:
        raise ValueError(f"no shape of a stack: {numbers[:8]!r}")
    return shape


def _read_offsets(descriptor: int, name: str, stacks: Mapping[str, Stack], path: Path) -> Tensor:
    """Read the offsets `name` and check that they divide their stack."""
    stack = stacks[name]
    if stack.dtype != torch.int64 or len(stack.shape) != 1 or stack.shape[0] < 1:
        raise StoreError(f"{path} is damaged: {name!r} are no offsets")
    divided = stacks.get(name.removesuffix(OFFSETS))
    bounds = _read(descriptor, path, stack.dtype, stack.shape, stack.start)
    rows = divided.shape[0] if divided is not None else 0
    if bounds[0] != 0 or bounds[-1] != rows or bool((bounds[1:] < bounds[:-1]).any()):
        raise StoreError(f"{path} is damaged: {name!r} do not rise from 0 to {rows:,}")
    return bounds


def _config_of(text: str, path: Path) -> AdapterConfig:
    values = parse_json(text, path)
    try:
        if not all(isinstance(value, str | int | float) for value in values.values()):
            raise TypeError(f"expected text and numbers, got {values!r}")
        return AdapterConfig(**values)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path} has a config that this reclora does not know: {error}") from None


def _read(
    descriptor: int, path: Path, dtype: torch.dtype, shape: tuple[int, ...], start: int
) -> Tensor:
    """Read one tensor from byte `start` of the file."""
    raw = torch.empty(dtype.itemsize * math.prod(shape), dtype=torch.uint8)
    read_into(descriptor, raw.numpy().data, start, path)
    return raw.view(dtype).reshape(shape)


def _runs(indexes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs [first, last) of ascending `indexes`: 1, 2, 3, 7 -> (1, 4), (7, 8)."""
    breaks = [at for at in range(1, len(indexes)) if indexes[at] != indexes[at - 1] + 1]
    bounds = pairwise([0, *breaks, len(indexes)])
    return [(indexes[begin], indexes[end - 1] + 1) for begin, end in bounds]


def is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
