"""AdapterStack: the adapters of S segments as one stack of tensors; a pack is one on disk.

Each tensor of an adapter is stacked over the segments along its first dimension; its offsets say
whose rows are whose, so that segments may touch as many rows as they like:

    tensors[x]   (sum of T_s, ...)      segment s owns x[offsets[x][s] : offsets[x][s + 1]]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from reclora.adapters import Adapter
from reclora.configs import AdapterError, Config


@dataclass(frozen=True, eq=False, repr=False)
class AdapterStack(Sequence[Adapter]):
    """The adapters of S segments of one config, one base and one parent; `stack[i]` is one of them.

    Its adapters are views: they share the stack's memory, each its own part of it.

    Raises:
        AdapterError: a segment twice, or offsets that do not divide their tensor among S segments.
    """

    segments: tuple[str, ...]
    """S distinct names, any strings."""
    config: Config
    """Of every adapter."""
    base_fingerprint: str
    """Of the base model that they adapt."""
    tensors: Mapping[str, Tensor]
    """name -> the segments' tensors of that name, one after the other."""
    offsets: Mapping[str, Tensor]
    """name -> int64 (S+1), from 0 to the tensor's length."""
    parent: Adapter | None = None
    """The adapter that all of them stand on."""

    def __post_init__(self) -> None:
        if len(set(self.segments)) < len(self.segments):
            twice = Counter(self.segments).most_common(1)[0][0]
            raise AdapterError(f"segment {twice!r} comes twice; a stack has one adapter a segment")
        if self.tensors.keys() != self.offsets.keys():
            odd = sorted(self.tensors.keys() ^ self.offsets.keys())
            raise AdapterError(f"{odd} lacks its tensor or its offsets")
        for name, bounds in self.offsets.items():
            check_offsets(name, bounds, self.tensors[name], len(self.segments))

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> AdapterStack:
        """The stack of `adapters`, in their order; a copy of their numbers.

        Raises:
            AdapterError: no adapter, several configs, bases or parents, a segment twice, or tensors
                of other names, types or shapes than in the first; the error names the segment.
        """
        if not adapters:
            raise AdapterError("a stack needs at least one adapter, got none")
        first = adapters[0]
        for adapter in adapters:
            _check_alike(adapter, first)
        parts = {name: [adapter.tensors[name] for adapter in adapters] for name in first.tensors}
        for name, tensors in parts.items():
            _check_shapes(name, tensors, adapters)
        with torch.no_grad():
            stacked = {name: torch.cat(tensors) for name, tensors in parts.items()}
        return cls(
            tuple(adapter.segment for adapter in adapters),
            first.config,
            first.base_fingerprint,
            stacked,
            {name: _offsets_of([len(part) for part in tensors]) for name, tensors in parts.items()},
            first.parent,
        )

    def __len__(self) -> int:
        return len(self.segments)

    @overload
    def __getitem__(self, index: int) -> Adapter: ...
    @overload
    def __getitem__(self, index: slice) -> AdapterStack: ...
    def __getitem__(self, index: int | slice) -> Adapter | AdapterStack:
        """One adapter, views of the stack; or the stack of some of them, a copy."""
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        code = range(len(self))[index]
        bounds = {name: self.offsets[name][code : code + 2].tolist() for name in self.tensors}
        return self._adapter(
            self.segments[code],
            {name: tensor[slice(*bounds[name])] for name, tensor in self.tensors.items()},
        )

    def __iter__(self) -> Iterator[Adapter]:
        parts = [
            torch.split(tensor, self.offsets[name].diff().tolist())
            for name, tensor in self.tensors.items()
        ]
        rows: Iterable[tuple[Tensor, ...]] = zip(*parts, strict=True) if parts else ()
        if not parts:
            rows = ((),) * len(self)
        for segment, tensors in zip(self.segments, rows, strict=True):
            yield self._adapter(segment, dict(zip(self.tensors, tensors, strict=True)))

    def take(self, codes: Sequence[int]) -> AdapterStack:
        """The stack of the adapters at `codes` (each 0..S-1, none twice), in that order; a copy."""
        chosen = torch.tensor(codes, dtype=torch.int64)
        taken = {
            name: _taken(tensor, self.offsets[name], chosen)
            for name, tensor in self.tensors.items()
        }
        return AdapterStack(
            tuple(self.segments[code] for code in codes),
            self.config,
            self.base_fingerprint,
            {name: tensor for name, (tensor, _) in taken.items()},
            {name: bounds for name, (_, bounds) in taken.items()},
            self.parent,
        )

    def _adapter(self, segment: str, tensors: Mapping[str, Tensor]) -> Adapter:
        return Adapter(segment, self.config, self.base_fingerprint, tensors, self.parent)

    def __repr__(self) -> str:
        numbers = sum(t.numel() for t in self.tensors.values() if t.is_floating_point())
        return (
            f"AdapterStack({len(self):,} segments, {numbers:,} numbers, "
            f"of base {self.base_fingerprint[:12]})"
        )


def _taken(tensor: Tensor, bounds: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the segments `codes`, and their offsets."""
    starts = bounds[codes]
    sizes = bounds[codes + 1] - starts
    offsets = _offsets_of(sizes)
    rows = torch.arange(int(offsets[-1])) + torch.repeat_interleave(starts - offsets[:-1], sizes)
    return tensor[rows.to(tensor.device)], offsets


def _offsets_of(sizes: Sequence[int] | Tensor) -> Tensor:
    offsets = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    offsets[1:] = torch.as_tensor(sizes, dtype=torch.int64).cumsum(0)
    return offsets


def check_offsets(name: str, bounds: Tensor, tensor: Tensor, num_segments: int) -> None:
    """Refuse offsets that do not divide `tensor` among its segments.

    Raises:
        AdapterError: they are not int64 (S+1) that rise from 0 to the tensor's length.
    """
    if bounds.dtype != torch.int64 or bounds.shape != (num_segments + 1,) or tensor.ndim == 0:
        raise AdapterError(
            f"the offsets of {name!r} are {bounds.dtype} {tuple(bounds.shape)}, those of a tensor "
            f"of {tensor.ndim} dimensions; {num_segments:,} segments need int64 "
            f"({num_segments + 1:,},), of a tensor of at least 1"
        )
    if bounds[0] != 0 or bounds[-1] != len(tensor) or bool((bounds.diff() < 0).any()):
        raise AdapterError(f"the offsets of {name!r} do not rise from 0 to {len(tensor):,}")


def _check_alike(adapter: Adapter, first: Adapter) -> None:
    """Check that `adapter` stacks on `first`."""
    where = f"segment {adapter.segment!r}"
    if adapter.base_fingerprint != first.base_fingerprint:
        raise AdapterError(
            f"{where} belongs to base {adapter.base_fingerprint}, segment {first.segment!r} to "
            f"{first.base_fingerprint}; stack those of one base"
        )
    if adapter.config != first.config:
        raise AdapterError(
            f"{where} has {adapter.config}, segment {first.segment!r} has {first.config}; stack "
            "those of one config"
        )
    if adapter.parent is not first.parent:
        raise AdapterError(
            f"{where} has parent {adapter.parent!r}, segment {first.segment!r} has "
            f"{first.parent!r}; stack those of one parent, the same object"
        )
    if adapter.tensors.keys() != first.tensors.keys():
        odd = sorted(adapter.tensors.keys() ^ first.tensors.keys())
        raise AdapterError(
            f"{where} and segment {first.segment!r} have one config but not the same tensors: "
            f"{odd} in one of them only"
        )


def _check_shapes(name: str, tensors: Sequence[Tensor], adapters: Sequence[Adapter]) -> None:
    """Check that the `tensors` of `adapters` stack."""
    kinds = [(tensor.ndim, tensor.dtype, tensor.shape[1:]) for tensor in tensors]
    like = tensors[0]
    if like.ndim and len(set(kinds)) == 1:
        return
    at = next(at for at, kind in enumerate(kinds) if kind != kinds[0] or not like.ndim)
    raise AdapterError(
        f"segment {adapters[at].segment!r}: {name} is {kinds[at][1]} {tuple(tensors[at].shape)}, "
        f"expected at least 1 dimension, and as in segment {adapters[0].segment!r} "
        f"{like.dtype} {('any', *like.shape[1:])}"
    )
