"""This file is deltas on a table whose rows are looked up: Embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reclora.configs import DeltaConfig
from reclora.deltas import (
    BasisDelta,
    Delta,
    Dropout,
    MapDelta,
    Owners,
    RowsDelta,
    ScaleDelta,
    TableDelta,
    TouchedRows,
)
from reclora.modules.mixed import Tiles
from reclora.modules.sites import Change, Current, hook_outputs

MERGED_ROWS = 1 << 16
"""Rows that are adapted at once where a whole table is."""


class TableDeltas:
    """The deltas of one table, kind after kind, on rows that are laid out by segment.

    The row `padding_idx` is never changed.
    """

    def __init__(
        self,
        table: nn.Embedding | nn.EmbeddingBag,
        configs: Sequence[DeltaConfig],
        owners: Owners,
        touched: TouchedRows | None,
    ) -> None:
        self.table, self.touched, self.dropout = table, touched, 0.0
        self.deltas: dict[str, Delta] = {}
        dim = table.embedding_dim
        for config in configs:
            low_rank = config.low_rank
            self.dropout = self.dropout or config.dropout
            match config.kind:
                case "scale":
                    self.deltas["scale"] = ScaleDelta(owners, dim)
                case "map":
                    self.deltas["map"] = MapDelta(owners, dim, low_rank)
                case "basis":
                    rows = cast(TouchedRows, touched)
                    self.deltas["basis"] = BasisDelta(rows, owners, dim, low_rank)
                case "rows":
                    rows = cast(TouchedRows, touched)
                    self.deltas["rows"] = RowsDelta(rows, owners, dim, low_rank, config.magnitude)

    def adapted(self, rows_GBD: Tensor, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """The rows as their segments have them, shape (G, B, D)."""
        adapted_GBD = rows_GBD
        for delta in self.deltas.values():
            adapted_GBD = cast(TableDelta, delta)(
                adapted_GBD, ids_GB, segments_G, self.dropping(cast(nn.Module, delta))
            )
        if self.table.padding_idx is None:
            return adapted_GBD
        padding_GB1 = (ids_GB == self.table.padding_idx).unsqueeze(-1)
        return torch.where(padding_GB1, rows_GBD, adapted_GBD)

    def dropping(self, delta: nn.Module) -> Dropout | None:
        """What drops from the row factor in training."""
        if not (self.dropout and delta.training):
            return None
        return lambda a_GBR, _: F.dropout(a_GBR, self.dropout)

    def merged(self, code: int) -> Iterator[Change]:
        """The rows of the table that the segment has otherwise, part after part."""
        weight = self.table.weight
        if self.touched is None or any(d.moves_all_rows for d in self._tables()):
            rows = torch.arange(len(weight))
        else:
            rows = self.touched.rows_T[self.touched.slice(code)]
        for part in torch.split(rows, MERGED_ROWS):
            ids_1B = part.unsqueeze(0)
            values = self.adapted(weight[part].unsqueeze(0), ids_1B, torch.tensor([code]))
            yield Change(weight, part, values[0])

    def _tables(self) -> Iterator[TableDelta]:
        return (cast(TableDelta, delta) for delta in self.deltas.values())


class EmbeddingSite:
    """Row i of segment s becomes (e (1 + c_s)) (I + scaling A_s^T B_s) + scaling * a_s[i] B_s, of
    the kinds that are there: scale, map, and rows or basis.
    """

    def __init__(self, path: str, table: nn.Embedding, deltas: TableDeltas) -> None:
        self.path, self.owner, self.table = path, table, deltas
        self.deltas, self.touched = deltas.deltas, deltas.touched

    def attach(self, current: Current) -> Callable[[], None]:
        return hook_outputs(self.owner, current, self._adapted)

    def _adapted(self, tiles: Tiles, args: tuple[Any, ...], rows: Tensor) -> Tensor:
        ids = tiles.spread(self.path, args[0])
        rows = rows if rows.shape[:-1] == ids.shape else rows.expand(*ids.shape, -1)
        return adapted_rows(self.table, tiles, ids, rows)

    def merged(self, code: int) -> Iterator[Change]:
        return self.table.merged(code)


def adapted_rows(table: TableDeltas, tiles: Tiles, ids: Tensor, rows: Tensor) -> Tensor:
    """The rows (B, ..., D) of ids (B, ...) as the segments of the B samples have them."""
    if not ids.numel():
        return rows
    packed = tiles.pack(rows)
    adapted_GBD = table.adapted(packed.flatten(1, -2), tiles.pack(ids).flatten(1), tiles.segments_G)
    return tiles.unpack(adapted_GBD.view(packed.shape))
