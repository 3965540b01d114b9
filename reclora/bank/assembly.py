"""This file is which deltas stand in a bank: one for each kind and size in its segments'
configs, with the segments that own it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from reclora.base import BaseModel
from reclora.configs import LADDER, AdapterConfig, AdapterError
from reclora.deltas import (
    BasisDelta,
    FullDelta,
    FullWeight,
    LowRankWeight,
    MapDelta,
    Owners,
    RowsDelta,
    ScaleDelta,
    TouchedRows,
)
from reclora.tower import Tower

Key = TypeVar("Key", bound=Hashable)


def check_parts(
    base: BaseModel,
    segment_names: Sequence[str],
    rows: tuple[Sequence[Tensor], Sequence[Tensor]],
    configs: Sequence[AdapterConfig],
) -> None:
    if not segment_names:
        raise AdapterError("a bank needs at least one segment, got none")
    if len(set(segment_names)) < len(segment_names):
        raise AdapterError("segment names must be distinct")
    if not len(segment_names) == len(rows[0]) == len(rows[1]) == len(configs):
        raise AdapterError(
            f"each of {len(segment_names)} segments needs its user rows, its item rows and its "
            f"config, got {len(rows[0])}, {len(rows[1])} and {len(configs)} of them"
        )
    for config in set(configs):
        low_rank = {"map", "basis", "rows"} & {*config.user_kinds, *config.item_kinds}
        if low_rank and config.rank > base.embedding_dim:
            raise AdapterError(
                f"rank {config.rank} is above the tables' embedding_dim {base.embedding_dim}; "
                f"use a smaller rank, or the kind `full`"
            )


def groups(keys: Iterable[Key | None]) -> dict[Key, list[int]]:
    """The codes of the segments of each key; None is no key."""
    codes: dict[Key, list[int]] = {}
    for code, key in enumerate(keys):
        if key is not None:
            codes.setdefault(key, []).append(code)
    return codes


def table_deltas(
    kinds_S: Sequence[tuple[str, ...]],
    touched: TouchedRows,
    base: BaseModel,
    configs: Sequence[AdapterConfig],
    generators: Sequence[torch.Generator],
) -> nn.ModuleList:
    """The deltas of one table, kind after kind; segments of one kind and size share one."""
    deltas = nn.ModuleList()
    dim = base.embedding_dim
    for kind in (*LADDER, "full"):
        sizes = (
            (config.low_rank, config.magnitude) if kind in kinds else None
            for kinds, config in zip(kinds_S, configs, strict=True)
        )
        for (low_rank, magnitude), codes in groups(sizes).items():
            owners = Owners.of(codes, len(configs), generators)
            rows = touched if len(codes) == len(configs) else touched.only(codes)
            match kind:
                case "scale":
                    deltas.append(ScaleDelta(owners, dim))
                case "map":
                    deltas.append(MapDelta(owners, dim, low_rank))
                case "basis":
                    deltas.append(BasisDelta(rows, owners, dim, low_rank))
                case "rows":
                    deltas.append(RowsDelta(rows, owners, dim, low_rank, magnitude))
                case "full":
                    deltas.append(FullDelta(rows, owners, dim))
    return deltas


def bias_deltas(
    configs: Sequence[AdapterConfig],
    touched: TouchedRows,
    generators: Sequence[torch.Generator],
) -> nn.ModuleList:
    codes = [code for code, config in enumerate(configs) if config.item_bias == "bias"]
    if not codes:
        return nn.ModuleList()
    rows = touched if len(codes) == len(configs) else touched.only(codes)
    return nn.ModuleList([FullDelta(rows, Owners.of(codes, len(configs), generators), 1)])


def tower_deltas(
    tower: Tower | None,
    configs: Sequence[AdapterConfig],
    generators: Sequence[torch.Generator],
) -> nn.ModuleDict:
    deltas = nn.ModuleDict()
    if tower is None:
        return deltas
    sizes = (c.low_rank if c.tower == "low_rank" else None for c in configs)
    low_rank = {
        size: Owners.of(codes, len(configs), generators) for size, codes in groups(sizes).items()
    }
    full = groups(True if c.tower == "full" else None for c in configs).get(True, [])
    for layer, (weight, bias) in enumerate(zip(tower.weights, tower.biases, strict=True)):
        shape = (weight.shape[0], weight.shape[1])
        own = nn.ModuleList()
        for size, owners in low_rank.items():
            own.append(LowRankWeight(owners, shape, replace(size, rank=min(size.rank, *shape))))
        if full:
            owners = Owners.of(full, len(configs), generators)
            own.append(FullWeight(owners, shape))
            # The last bias is added to every item alike: its gradient is nothing but rounding,
            # of which Adagrad would make whole steps.
            if layer < len(tower.weights) - 1:
                deltas[f"{layer}_bias"] = nn.ModuleList([FullWeight(owners, (len(bias), 1))])
        if len(own):
            deltas[f"{layer}_weight"] = own
    return deltas
