"""This file is adapters on their way into a bank and out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reclora.adapters import Adapter, bank_rows, check_base, id_tensors, new_ids
from reclora.base import BaseModel
from reclora.configs import NOTHING, AdapterConfig, AdapterError
from reclora.deltas import BasisDelta, Delta, FullDelta, RowsDelta, TouchedRows
from reclora.interactions import IdMap

PER_ROW = (RowsDelta, BasisDelta, FullDelta)
"""The deltas whose parameters, but for `b`, have a row for each touched row."""

Deltas = Iterable[tuple[str, Delta]]
"""Deltas with what each changes: `user_table`, `item_bias`, `tower.0.weight`, ..."""


@torch.no_grad()
def fill(deltas: Deltas, code: int, adapter: Adapter, places: Mapping[str, Tensor]) -> None:
    """Copy an adapter's numbers into the segment's part of its deltas.

    Args:
        places: for `users` and `items` the place of each of the adapter's rows among those that
            the segment touches in this bank: it may touch more, and in another order.

    Raises:
        AdapterError: a tensor is missing or of another shape.
    """
    sides = {"user_table": "users", "item_table": "items", "item_bias": "items"}
    for name, delta in deltas:
        for parameter, part in delta.slices(code).items():
            place = delta.get_parameter(parameter)[part]
            full_name = f"{name}.{delta.kind}.{parameter}"
            stored = adapter.tensors.get(full_name)
            rows = places[sides[name]] if isinstance(delta, PER_ROW) and parameter != "b" else None
            shape = place.shape if rows is None else (len(rows), *place.shape[1:])
            if stored is None or stored.shape != shape:
                raise AdapterError(
                    f"the adapter of segment {adapter.segment!r} needs {full_name} of "
                    f"shape {tuple(shape)}, got "
                    f"{'none' if stored is None else tuple(stored.shape)}: it is damaged"
                )
            place[slice(None) if rows is None else rows] = stored


def stacked(
    deltas: Deltas, sides: Mapping[str, tuple[TouchedRows, IdMap]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors and offsets of a stack of all segments, in the deltas' own memory: of deltas that
    all segments own, without identifiers that the base does not know.
    """
    tensors: dict[str, Tensor] = {}
    offsets: dict[str, Tensor] = {}
    for name, (touched, ids) in sides.items():
        tensors[f"{name}.rows"], offsets[f"{name}.rows"] = touched.rows_T, touched.offsets_S1
        for key, nothing in id_tensors(name, ids.ids.slice(0, 0)).items():
            tensors[key], offsets[key] = nothing, torch.zeros_like(touched.offsets_S1)
    for name, delta in deltas:
        for parameter, numbers in delta.named_parameters():
            key = f"{name}.{delta.kind}.{parameter}"
            tensors[key] = numbers.detach()[:-1]
            offsets[key] = _offsets(delta, parameter)
    return tensors, offsets


def with_rows(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The same adapters, those that are served by their parent as ones that touch no row."""
    return [
        replace(adapter, config=NOTHING, tensors=_no_rows(adapter))
        if adapter.is_served
        else adapter
        for adapter in adapters
    ]


def _no_rows(adapter: Adapter) -> dict[str, Tensor]:
    below = adapter
    while below.is_served and below.parent is not None:
        below = below.parent
    sides = ("users.", "items.")
    return {name: t[:0] for name, t in below.tensors.items() if name.startswith(sides)}


def configs_of(adapters: Sequence[Adapter], base: BaseModel) -> list[AdapterConfig]:
    """The config of each adapter, all of this base and of one parent."""
    configs = []
    for adapter in adapters:
        check_base(adapter, base)
        if not isinstance(adapter.config, AdapterConfig):
            raise AdapterError(
                f"the adapter of segment {adapter.segment!r} is of modules of a model: load it "
                f"into what `adapt` returned for that model"
            )
        if adapter.parent is not adapters[0].parent:
            raise AdapterError(
                f"a bank holds adapters of one parent; {adapter.segment!r} stands on "
                f"{adapter.parent!r}, {adapters[0].segment!r} on {adapters[0].parent!r}: make a "
                f"bank of those of each parent"
            )
        configs.append(adapter.config)
    return configs


def stored_rows(adapter: Adapter, side: str, ids: IdMap, num_base_rows: int) -> Tensor:
    """The rows that an adapter touches in the table of these identifiers.

    Raises:
        AdapterError: it brings an identifier that is not among them.
    """
    brought = new_ids(adapter, side, ids)
    rows = bank_rows(adapter.tensors[f"{side}.rows"], brought, num_base_rows, ids)
    if bool((rows < 0).any()):
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} brings {len(brought):,} {side} that the "
            "base does not know, and the log's id maps lack some of them: grow the base by them, "
            "and take log.onto(...) of its id maps"
        )
    return rows


def check_start(
    adapter: Adapter, config: AdapterConfig, base: BaseModel, parent: Adapter | None
) -> None:
    """Refuse an adapter that a segment of this config and parent cannot begin with."""
    check_base(adapter, base)
    if adapter.config != config or adapter.parent is not parent:
        raise AdapterError(
            f"segment {adapter.segment!r} cannot begin with {adapter.config} on "
            f"{adapter.parent!r}: it is to have {config} on {parent!r}; leave it out of `start`"
        )


def _offsets(delta: Delta, parameter: str) -> Tensor:
    """Where each segment's numbers begin and end in a parameter that all segments own."""
    if isinstance(delta, PER_ROW) and parameter != "b":
        return delta.touched.offsets_S1
    num_segments = len(delta.owners)
    height = (len(delta.get_parameter(parameter)) - 1) // num_segments
    return torch.arange(num_segments + 1) * height
