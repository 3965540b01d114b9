"""This file is the pack: a stack of adapters as one immutable file, named by its sha256.

Each tensor X of the stack is a tensor of the file and `X.offsets` says whose rows are whose, so
that one segment is a slice and 5,000 of them are one file:

    X   (sum of T_s, ...)      segment s owns X[X.offsets[s] : X.offsets[s + 1]]

The segments' names are stacked the same way, as UTF-8 bytes in `segments`. The metadata name the
config, the base model and the pack of the parent, which holds that one adapter and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.adapters import Adapter
from reclora.configs import AdapterError, Config, config_from_json, config_to_json
from reclora.stacks import AdapterStack, check_offsets
from reclora.store.layout import (
    ITEM_BYTES,
    HashedFile,
    Layout,
    Region,
    header_of,
    read_layout,
)
from reclora.store.lineage import METADATA, parent_in
from reclora.store.reading import StoreError, open_regular, parse_json, read_into, utf8

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}
"""What a pack can hold: safetensors' name -> torch's."""

SEGMENTS = "segments"
OFFSETS = ".offsets"


@dataclass(frozen=True, eq=False)
class Pack:
    """An open pack: its layout is in memory, its numbers are read when they are asked for."""

    path: Path
    config: Config
    base_fingerprint: str
    parent: str | None
    """sha256 of the pack of the adapter that all in this one stand on."""
    layout: Layout

    def __len__(self) -> int:
        return self.layout.regions[SEGMENTS + OFFSETS].shape[0] - 1

    @property
    def names(self) -> list[str]:
        """Of an adapter's tensors."""
        own = (name for name in self.layout.regions if not name.endswith(OFFSETS))
        return [name for name in own if name != SEGMENTS]

    def adapter(self, segment: str, index: int, parent: Adapter | None) -> Adapter:
        """Read the adapter at `index`: its own slices and nothing else.

        Args:
            segment: whose adapter it shall be.
            index: 0..S-1.
            parent: the adapter of the pack's `parent`.

        Raises:
            StoreError: the index is outside the pack or is another segment's, a slice is outside
                its tensor, or it has numbers that are not finite.
        """
        self.check_index(segment, index)
        with open_regular(self.path) as descriptor:
            found = self._slice(descriptor, SEGMENTS, index).numpy().tobytes()
            # What is no text becomes what no segment is called.
            self.check_segment(segment, index, found.decode(errors="surrogateescape"))
            tensors = {name: self._slice(descriptor, name, index) for name in self.names}
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise self._not_finite(name, segment)
        return Adapter(segment, self.config, self.base_fingerprint, tensors, parent)

    def stack(self, parent: Adapter | None) -> AdapterStack:
        """Read the whole pack and check every byte of it against its name.

        Its tensors share one memory block, which lives as long as any of them.

        Args:
            parent: the adapter of the pack's `parent`.

        Raises:
            StoreError: its sha256 is not its name, its offsets do not divide its tensors, a
                segment is there twice or is no text, or numbers are not finite.
        """
        raw = np.empty(self.layout.size, np.uint8)
        with open_regular(self.path) as descriptor:
            read_into(descriptor, raw.data, 0, self.path)
        if hashlib.sha256(raw.data).hexdigest() != self.path.stem:
            raise StoreError(
                f"{self.path} is damaged: its sha256 is not its name; restore it from a copy"
            )
        tensors = {name: _tensor(raw, region) for name, region in self.layout.regions.items()}
        stack = self._stack_of(tensors, parent)
        for name, tensor in stack.tensors.items():
            if not is_finite(tensor):
                raise self._not_finite(name, _first_not_finite(name, stack))
        return stack

    def check_index(self, segment: str, index: int) -> None:
        """Refuse a place that the pack has not; raises StoreError."""
        if not 0 <= index < len(self):
            raise StoreError(
                f"segment {segment!r}: index {index} is outside {self.path}, which holds "
                f"{len(self):,} adapters"
            )

    def check_segment(self, segment: str, index: int, found: str) -> None:
        """Refuse what is at `index` where it is not the adapter of `segment`; raises StoreError."""
        if found != segment:
            raise StoreError(
                f"{self.path}: expected segment {segment!r} at index {index}, got {found!r}; "
                "release and pack do not belong together"
            )

    def check_single(self) -> None:
        """Refuse a pack of several adapters where one is expected; raises StoreError."""
        if len(self) != 1:
            raise StoreError(
                f"{self.path} holds {len(self):,} adapters, expected that of one parent; restore "
                "it and its release from a copy"
            )

    def _stack_of(self, tensors: Mapping[str, Tensor], parent: Adapter | None) -> AdapterStack:
        bounds, text = tensors[SEGMENTS + OFFSETS], tensors[SEGMENTS]
        try:
            check_offsets(SEGMENTS, bounds, text, len(self))
            names = text.numpy().tobytes()
            return AdapterStack(
                tuple(names[a:b].decode() for a, b in pairwise(bounds.tolist())),
                self.config,
                self.base_fingerprint,
                {name: tensors[name] for name in self.names},
                {name: tensors[name + OFFSETS] for name in self.names},
                parent,
            )
        except (AdapterError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.path} is damaged: {error}") from None

    def _slice(self, descriptor: int, name: str, index: int) -> Tensor:
        """Read what the adapter at `index` has of tensor `name`."""
        region, offsets = self.layout.regions[name], self.layout.regions[name + OFFSETS]
        bounds = np.empty(2, "<i8")
        read_into(descriptor, bounds.view(np.uint8).data, offsets.start + 8 * index, self.path)
        first, last = bounds.tolist()
        if not 0 <= first <= last <= region.shape[0]:
            raise StoreError(
                f"{self.path} is damaged: the offsets of {name!r} at index {index} are {first} "
                f"and {last}, expected to rise within 0 .. {region.shape[0]:,}"
            )
        raw = np.empty((last - first) * region.row_bytes, np.uint8)
        read_into(descriptor, raw.data, region.start + first * region.row_bytes, self.path)
        return _tensor(raw, replace(region, shape=(last - first, *region.shape[1:]), start=0))

    def _not_finite(self, name: str, segment: str) -> StoreError:
        return StoreError(
            f"{self.path} is damaged: segment {segment!r}: {name} has NaN or infinite numbers"
        )


def open_pack(path: Path) -> Pack:
    """Read the layout of the pack at `path`.

    Raises:
        StoreError: the file is no pack, damaged, or of a newer format.
        FileNotFoundError: it is not there.
    """
    with open_regular(path) as descriptor:
        layout = read_layout(descriptor, path, METADATA)
    _check_regions(layout.regions, path)
    parent = parent_in(layout.metadata, path)
    config = _config_of(layout.metadata["config"], path)
    return Pack(path, config, layout.metadata["base_fingerprint"], parent, layout)


def pack_file(stack: AdapterStack, parent: str | None) -> HashedFile:
    """Return the file of `stack`; its bytes depend on nothing else.

    Args:
        stack: at least one adapter.
        parent: sha256 of the pack of its parent.

    Raises:
        StoreError: a tensor has a name or type that no pack has, numbers that are not finite, or
            there are too many tensors; the error names segment and tensor.
    """
    tensors = _contents(stack)
    # Wide numbers first: then every tensor is aligned for readers that map the file.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    types = {dtype: name for name, dtype in DTYPES.items()}
    header = header_of(
        {
            "base_fingerprint": stack.base_fingerprint,
            "config": json.dumps(config_to_json(stack.config), allow_nan=False),
            "parent": parent or "",
        },
        {name: (types[tensors[name].dtype], tuple(tensors[name].shape)) for name in order},
    )
    return HashedFile.of([header, *(_bytes_of(tensors[name]) for name in order)])


def is_finite(tensor: Tensor) -> bool:
    """Whether `tensor` has no NaN and no infinite number."""
    if not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.bfloat16:
        # numpy has no bfloat16; its exponent is all ones in what is not finite.
        exponent = tensor.view(torch.int16).numpy() & 0x7F80
        return not bool((exponent == 0x7F80).any())
    return bool(np.isfinite(tensor.numpy()).all())


def _contents(stack: AdapterStack) -> dict[str, Tensor]:
    """Return every tensor of the file, checked."""
    names = [utf8(segment) for segment in stack.segments]
    contents = {
        SEGMENTS: torch.from_numpy(np.frombuffer(bytearray(b"".join(names)), np.uint8)),
        SEGMENTS + OFFSETS: torch.tensor([0, *map(len, names)]).cumsum(0),
    }
    for name, tensor in stack.tensors.items():
        if name == SEGMENTS or name.endswith(OFFSETS):
            raise StoreError(
                f"segment {stack.segments[0]!r}: the name {name!r} is the pack's own; rename the "
                "tensor"
            )
        if tensor.dtype not in DTYPES.values():
            raise StoreError(
                f"segment {stack.segments[0]!r}: {name} is {tensor.dtype}; a pack holds "
                f"{', '.join(str(dtype) for dtype in DTYPES.values())}"
            )
        contents[name] = tensor.detach().cpu().contiguous()
        contents[name + OFFSETS] = stack.offsets[name].cpu().contiguous()
        if not is_finite(contents[name]):
            raise StoreError(
                f"segment {_first_not_finite(name, stack)!r}: {name} has NaN or infinite numbers; "
                "such an adapter is never published"
            )
    return contents


def _first_not_finite(name: str, stack: AdapterStack) -> str:
    return next(a.segment for a in stack if not is_finite(a.tensors[name].detach().cpu()))


def _check_regions(regions: Mapping[str, Region], path: Path) -> None:
    """Check that each tensor of a pack has its offsets, all for the same number of segments."""
    offsets = {name: region for name, region in regions.items() if name.endswith(OFFSETS)}
    divided = {name for name in regions if name not in offsets}
    odd = divided ^ {name.removesuffix(OFFSETS) for name in offsets} | ({SEGMENTS} - divided)
    if odd:
        raise StoreError(f"{path} is damaged: {sorted(odd)} lacks its tensor or its offsets")
    if any(regions[name].dtype not in DTYPES for name in divided):
        raise StoreError(f"{path} is damaged: a pack holds {', '.join(DTYPES)}")
    if regions[SEGMENTS].dtype != "U8" or len(regions[SEGMENTS].shape) != 1:
        raise StoreError(f"{path} is damaged: the segments' names are no bytes")
    for name, region in offsets.items():
        if region.dtype != "I64" or len(region.shape) != 1 or region.shape[0] < 1:
            raise StoreError(f"{path} is damaged: {name!r} are no offsets")
    if len({region.shape for region in offsets.values()}) != 1:
        raise StoreError(f"{path} is damaged: its tensors have not the same number of segments")


def _config_of(text: str, path: Path) -> Config:
    values = parse_json(text, path)
    try:
        return config_from_json(values)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path} has a config that this reclora does not know: {error}") from None


def _tensor(raw: NDArray[np.uint8], region: Region) -> Tensor:
    """View a region of a file's bytes; `raw` starts at the file's first byte."""
    dtype = DTYPES[region.dtype]
    part = raw[region.start : region.start + region.num_bytes]
    if not len(part):
        return torch.empty(region.shape, dtype=dtype)
    if region.start % ITEM_BYTES[region.dtype]:
        # Not as this version writes it; torch wants its numbers aligned.
        part = part.copy()
    return torch.from_numpy(part).view(dtype).reshape(region.shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
