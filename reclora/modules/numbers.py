"""This file is the numbers of all segments as stacks of tensors, and stored ones put in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from reclora.configs import AdapterError
from reclora.deltas import BasisDelta, Delta, RowsDelta
from reclora.modules.sites import Site
from reclora.stacks import AdapterStack

Stacked = dict[str, tuple[Tensor, Tensor]]
"""name -> (the segments' tensors one after the other, int64 offsets (S + 1))."""


def stacked(sites: Sequence[Site]) -> Stacked:
    """The numbers of every segment, in the model's own memory, and the rows of the tables."""
    found: Stacked = {}
    for site in sites:
        prefix = f"{site.path}." if site.path else ""
        if site.touched is not None:
            found[f"{prefix}rows"] = (site.touched.rows_T, site.touched.offsets_S1)
        for kind, delta in site.deltas.items():
            for factor, parameter in cast(nn.Module, delta).named_parameters():
                # The last row is padding, and no segment's.
                numbers = parameter.detach()[:-1]
                found[f"{prefix}{kind}.{factor}"] = numbers, _offsets(delta, factor, numbers)
    return found


def is_rows(name: str) -> bool:
    """Whether a tensor of an adapter holds the rows of a table that it touches."""
    return name == "rows" or name.endswith(".rows")


def filled(
    sites: Sequence[Site], stack: AdapterStack, codes: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What to write: a tensor of the model's, its rows, and their new values.

    Args:
        codes: of the stack's segments in this model.

    Raises:
        AdapterError: the stack's tensors are not those of the model; before the first of them.
    """
    own = stacked(sites)
    if own.keys() != stack.tensors.keys():
        odd = sorted(own.keys() ^ stack.tensors.keys())
        raise AdapterError(
            f"the adapter of segment {stack.segments[0]!r} and this model do not have the same "
            f"tensors: {odd} in one of them only"
        )
    found = []
    for name, (tensor, offsets) in own.items():
        values, bounds = stack.tensors[name], stack.offsets[name]
        if values.shape[1:] != tensor.shape[1:] or values.dtype != tensor.dtype:
            raise AdapterError(
                f"{name} of the adapters is {values.dtype} {('any', *values.shape[1:])}, of this "
                f"model {tensor.dtype} {('any', *tensor.shape[1:])}"
            )
        sizes, wanted = bounds.diff(), offsets.diff()[codes]
        wrong = (sizes != wanted).nonzero().flatten().tolist()
        if wrong:
            raise AdapterError(
                f"{name} of segment {stack.segments[wrong[0]]!r} has {int(sizes[wrong[0]])} rows, "
                f"this model has {int(wanted[wrong[0]])} for it: {_REBUILD}"
            )
        shift = offsets[codes] - bounds[:-1]
        places = torch.arange(len(values)) + shift.repeat_interleave(sizes)
        if is_rows(name):
            if not torch.equal(tensor[places], values):
                raise AdapterError(
                    f"{name} of the adapters are not those of this model: {_REBUILD}"
                )
            continue
        found.append((tensor, places, values))
    yield from found


_REBUILD = "AdaptedModel.of builds a model with an adapter's own rows"


def _offsets(delta: Delta, factor: str, numbers: Tensor) -> Tensor:
    if isinstance(delta, RowsDelta | BasisDelta) and factor != "b":
        return delta.touched.offsets_S1
    num_segments = len(delta.owners)
    return torch.arange(num_segments + 1) * (len(numbers) // num_segments)
