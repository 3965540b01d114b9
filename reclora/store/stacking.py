"""This file is how adapters become packs: grouped by config, checked, stacked, written.

A pack is written twice through, first into its sha256 and then to the disk, so that nothing of it
is held in memory but the tensor at hand, and nothing is written before all of it was checked.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reclora.adapters import Adapter, AdapterConfig
from reclora.files import atomic_write
from reclora.store.packs import DTYPES, MAX_HEADER, OFFSETS, SEGMENTS, is_finite, pack_path
from reclora.store.reading import FORMAT, NEEDS, BaseMismatch, StoreError


def check_one_base(adapters: Sequence[Adapter]) -> str:
    """Return the fingerprint of the base that all of `adapters` belong to.

    Raises:
        BaseMismatch: there are several.
    """
    first = adapters[0]
    for adapter in adapters:
        if adapter.base_fingerprint != first.base_fingerprint:
            raise BaseMismatch(
                f"segment {first.segment!r} belongs to base {first.base_fingerprint}, segment "
                f"{adapter.segment!r} to base {adapter.base_fingerprint}; publish those of one base"
            )
    return first.base_fingerprint


def group_by_config(adapters: Sequence[Adapter]) -> list[list[Adapter]]:
    """Return the adapters of each pack, sorted by segment: their order as given changes no pack.

    Raises:
        StoreError: adapters of one config that cannot be stacked, or numbers that are not finite;
            the error names segment and tensor.
    """
    groups: dict[AdapterConfig, list[Adapter]] = {}
    for adapter in sorted(adapters, key=lambda adapter: adapter.segment):
        groups.setdefault(adapter.config, []).append(adapter)
    for group in groups.values():
        _check_stackable(group)
    return list(groups.values())


def write_pack(folder: Path, adapters: Sequence[Adapter]) -> str:
    """Write the pack of `adapters`, one group of `group_by_config`, and return its sha256.

    The adapter of index i in the pack is `adapters[i]`.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(adapters):
        digest.update(chunk)
    name = digest.hexdigest()
    with atomic_write(pack_path(folder, name)) as temporary, temporary.open("wb") as file:
        for chunk in _chunks(adapters):
            file.write(chunk)
    return name


def _check_stackable(adapters: Sequence[Adapter]) -> None:
    """Check that `adapters` can share a pack and that their numbers are finite."""
    first = adapters[0]
    for name in first.tensors:
        if name == SEGMENTS or name.endswith(OFFSETS):
            raise StoreError(
                f"segment {first.segment!r}: the name {name!r} is the pack's own; rename the tensor"
            )
    for adapter in adapters:
        if adapter.tensors.keys() != first.tensors.keys():
            odd = sorted(adapter.tensors.keys() ^ first.tensors.keys())
            raise StoreError(
                f"segment {adapter.segment!r} and segment {first.segment!r} have one config but "
                f"not the same tensors: {odd} in one of them only"
            )
        for name, tensor in adapter.tensors.items():
            _check_tensor(tensor, first.tensors[name], f"segment {adapter.segment!r}: {name}")
    for name in first.tensors:
        if not is_finite(_stacked(name, adapters)):
            worst = next(a for a in adapters if not is_finite(a.tensors[name]))
            raise StoreError(
                f"segment {worst.segment!r}: {name} has NaN or infinite numbers; "
                "such an adapter is never published"
            )


def _check_tensor(tensor: Tensor, like: Tensor, where: str) -> None:
    if tensor.dtype not in DTYPES.values() or tensor.ndim == 0:
        raise StoreError(
            f"{where} is {tensor.dtype} with {tensor.ndim} dimensions; a pack stacks tensors of at "
            f"least 1 dimension of {', '.join(str(dtype) for dtype in DTYPES.values())}"
        )
    if tensor.dtype != like.dtype or tensor.shape[1:] != like.shape[1:]:
        raise StoreError(
            f"{where} is {tensor.dtype} {tuple(tensor.shape)}, expected as in the other segments "
            f"{like.dtype} {('any', *like.shape[1:])}"
        )


def _chunks(adapters: Sequence[Adapter]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file: the header, then one tensor at a time."""
    index = _index(adapters)
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in index.items()}
    for name, tensor in adapters[0].tensors.items():
        rows = int(index[name + OFFSETS][-1])
        shapes[name] = (tensor.dtype, (rows, *tensor.shape[1:]))
    # Wide numbers first: then every tensor is aligned for readers that map the file.
    order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    yield _header(adapters[0], {name: shapes[name] for name in order})
    for name in order:
        tensor = index[name] if name in index else _stacked(name, adapters)
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _index(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return what the pack adds to the stacks: the segments' names, and whose rows are whose."""
    names = [adapter.segment.encode() for adapter in adapters]
    index = {
        SEGMENTS: torch.tensor(list(b"".join(names)), dtype=torch.uint8),
        SEGMENTS + OFFSETS: _offsets_of([len(name) for name in names]),
    }
    for name in adapters[0].tensors:
        index[name + OFFSETS] = _offsets_of([len(a.tensors[name]) for a in adapters])
    return index


def _offsets_of(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def _header(first: Adapter, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {
        "__metadata__": {
            "format": str(FORMAT),
            "needs": NEEDS,
            "base_fingerprint": first.base_fingerprint,
            "config": json.dumps(dataclasses.asdict(first.config), allow_nan=False),
        }
    }
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise StoreError(
            f"segment {first.segment!r}: {len(shapes):,} tensors do not fit a pack's header of "
            f"{MAX_HEADER:,} bytes; adapt fewer layers"
        )
    return len(text).to_bytes(8, "little") + text


def _stacked(name: str, adapters: Sequence[Adapter]) -> Tensor:
    return torch.cat([adapter.tensors[name].detach().cpu() for adapter in adapters])
