"""AdapterBank: the deltas of all segments, stacked; what trains in one pass and scores mixed
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reclora.adapters import (
    Adapter,
    AdapterConfig,
    AdapterError,
    TableKind,
    bank_rows,
    check_base,
    id_tensors,
    new_ids,
)
from reclora.base import BaseModel
from reclora.batches import segment_seed
from reclora.deltas import (
    FullDelta,
    FullWeight,
    LowRankWeight,
    RowsDelta,
    TableDelta,
    TouchedRows,
    WeightDelta,
)
from reclora.interactions import Interactions
from reclora.scoring import CatalogueScorer
from reclora.tables import Table
from reclora.tower import Layer, Tower

Lookup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class AdapterBank(nn.Module):
    """The stacked deltas of S segments over one frozen base.

    Args:
        base: grown where the segments know identifiers that it does not (`BaseModel.grown`).
        segment_names: any distinct strings; a segment's code is its place.
        user_rows, item_rows: the rows each segment touches, one tensor a segment.
        config: the deltas.
        seed: with a segment's name it fixes that segment's random factors.

    A base without a tower has no tower deltas, whatever the config says.

    Raises:
        AdapterError: no segment, repeated names, another number of row lists than of names, or a
            rank above the tables' embedding_dim.
        IndexError: a touched row is outside its table.
    """

    def __init__(
        self,
        base: BaseModel,
        segment_names: Sequence[str],
        user_rows: Sequence[Tensor],
        item_rows: Sequence[Tensor],
        config: AdapterConfig,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not segment_names:
            raise AdapterError("a bank needs at least one segment, got none")
        if len(set(segment_names)) < len(segment_names):
            raise AdapterError("segment names must be distinct")
        if not len(segment_names) == len(user_rows) == len(item_rows):
            raise AdapterError(
                f"each of {len(segment_names)} segments needs its user rows and its item rows, "
                f"got {len(user_rows)} and {len(item_rows)} lists of them"
            )
        kinds = config.user_table, config.item_table
        if "rows" in kinds and config.rank > base.embedding_dim:
            raise AdapterError(
                f"rank {config.rank} is above the tables' embedding_dim {base.embedding_dim}; "
                f"use a smaller rank, or the kind `full`"
            )
        self.base, self.segment_names, self.config = base, tuple(segment_names), config
        self._codes = {name: code for code, name in enumerate(segment_names)}
        self.touched_users = TouchedRows.of(user_rows, base.user_table.num_rows)
        self.touched_items = TouchedRows.of(item_rows, base.item_table.num_rows)
        generators = [torch.Generator().manual_seed(segment_seed(seed, s)) for s in segment_names]
        self.user_table = _table_delta(
            config.user_table, self.touched_users, base, config, generators
        )
        self.item_table = _table_delta(
            config.item_table, self.touched_items, base, config, generators
        )
        self.item_bias = FullDelta(self.touched_items, 1) if config.item_bias == "bias" else None
        self.tower = nn.ModuleDict(
            dict(_tower_deltas(base.tower, config, generators)) if base.tower is not None else {}
        )

    @classmethod
    def for_log(
        cls, base: BaseModel, log: Interactions, config: AdapterConfig, seed: int = 0
    ) -> AdapterBank:
        """A fresh bank for the segments of a log; each touches the users and items of its
        interactions.

        Raises:
            AdapterError: the log is not on the base's id maps (`Interactions.onto`).
        """
        if log.users != base.users or log.items != base.items:
            raise AdapterError(
                "the log is not on the base's id maps; take log.onto(base.users, base.items)"
            )
        return cls(
            base,
            log.segment_names,
            _rows_by_segment(log.user_rows, log.offsets),
            _rows_by_segment(log.item_rows, log.offsets),
            config,
            seed,
        )

    @classmethod
    def of(cls, base: BaseModel, adapters: Sequence[Adapter]) -> AdapterBank:
        """A bank of stored adapters; the base is grown by the identifiers that they bring.

        Raises:
            AdapterError: no adapter, adapters of different settings, one that belongs to another
                base, or one whose tensors are not what its config and rows ask for.
        """
        if not adapters:
            raise AdapterError("a bank needs at least one adapter, got none")
        for adapter in adapters:
            check_base(adapter, base)
            if adapter.config != adapters[0].config:
                raise AdapterError(
                    f"a bank holds adapters of one config; {adapter.segment!r} has "
                    f"{adapter.config}, {adapters[0].segment!r} has {adapters[0].config}"
                )
        known = {"users": base.users, "items": base.items}
        new = {side: [new_ids(a, side, known[side]) for a in adapters] for side in known}
        grown = base.grown(*(known[side].extended(pa.concat_arrays(new[side])) for side in known))
        wanted = {"users": grown.users, "items": grown.items}
        num_base_rows = {
            "users": base.user_table.num_own_rows,
            "items": base.item_table.num_own_rows,
        }
        rows = {
            side: [
                bank_rows(adapter.tensors[f"{side}.rows"], ids, num_base_rows[side], wanted[side])
                for adapter, ids in zip(adapters, new[side], strict=True)
            ]
            for side in known
        }
        names = [adapter.segment for adapter in adapters]
        bank = cls(grown, names, rows["users"], rows["items"], adapters[0].config)
        for code, adapter in enumerate(adapters):
            bank._fill(code, adapter, {side: rows[side][code].argsort() for side in rows})
        return bank

    # What a batch asks for. ids are rows of the tables, segments are codes.

    def users(self, ids_GB: Tensor, segments_G: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted user vectors and how far each is from the base's, both (G, B, D)."""
        return _adapted(self.base.user_table, self.user_table, ids_GB, segments_G)

    def items(self, ids_GB: Tensor, segments_G: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted item vectors and how far each is from the base's, both (G, B, D)."""
        return _adapted(self.base.item_table, self.item_table, ids_GB, segments_G)

    def biases(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted item biases, (G, B)."""
        return _adapted(self.base.item_bias, self.item_bias, ids_GB, segments_G)[0].squeeze(-1)

    def layers(self, segments_G: Tensor) -> list[Layer]:
        """Adapted tower layers of each segment; empty without a tower."""
        if self.base.tower is None:
            return []
        pairs = zip(self.base.tower.weights, self.base.tower.biases, strict=True)
        return [
            (
                self._adapted_weight(f"{i}.weight", weight, segments_G),
                self._adapted_weight(f"{i}.bias", bias.unsqueeze(1), segments_G).squeeze(-1),
            )
            for i, (weight, bias) in enumerate(pairs)
        ]

    def _adapted_weight(self, name: str, weight_OI: Tensor, segments_G: Tensor) -> Tensor:
        key = name.replace(".", "_")
        if key in self.tower:
            return cast(Tensor, self.tower[key](weight_OI, segments_G))
        return weight_OI.expand(len(segments_G), -1, -1)

    # One segment.

    def code(self, segment: str) -> int:
        """The code of a segment.

        Raises:
            AdapterError: the bank has no such segment.
        """
        if segment not in self._codes:
            raise AdapterError(
                f"the bank has no segment {segment!r}; its {len(self._codes)} are such as "
                f"{', '.join(map(repr, self.segment_names[:3]))}"
            )
        return self._codes[segment]

    @torch.no_grad()
    def merged(self, segment: str) -> BaseModel:
        """The segment's adapted tables and tower as a base model of its own."""
        code = self.code(segment)
        users = self._materialised(self.base.user_table, self.users, self.touched_users, code)
        items, bias, layers = self._item_side(code)
        tower = (
            Tower(tuple(w[0] for w, _ in layers), tuple(b[0] for _, b in layers))
            if layers
            else None
        )
        return BaseModel.of(self.base.users, self.base.items, users, items, bias, tower)

    @torch.no_grad()
    def scorer(self, segment: str) -> CatalogueScorer:
        """Scores of all items for users of a segment; only the item side is materialised."""
        code = self.code(segment)
        segments_1 = torch.tensor([code])
        items, bias, layers = self._item_side(code)
        return CatalogueScorer(
            lambda rows: self.users(rows.unsqueeze(0), segments_1)[0][0], items, bias, layers
        )

    def _item_side(self, code: int) -> tuple[Tensor, Tensor, list[Layer]]:
        items = self._materialised(self.base.item_table, self.items, self.touched_items, code)
        bias = self.base.item_bias.materialised().squeeze(1)
        rows = self.touched_items.rows_T[self.touched_items.slice(code)]
        bias[rows] = self.biases(rows.unsqueeze(0), torch.tensor([code]))[0]
        return items, bias, self.layers(torch.tensor([code]))

    def _materialised(
        self, table: Table, lookup: Lookup, touched: TouchedRows, code: int
    ) -> Tensor:
        whole = table.materialised()
        rows = touched.rows_T[touched.slice(code)]
        whole[rows] = lookup(rows.unsqueeze(0), torch.tensor([code]))[0][0]
        return whole

    def adapter(self, segment: str) -> Adapter:
        """A copy of the segment's numbers."""
        code = self.code(segment)
        tensors: dict[str, Tensor] = {}
        for name, touched, base_rows, ids in (
            ("users", self.touched_users, self.base.user_table.num_own_rows, self.base.users),
            ("items", self.touched_items, self.base.item_table.num_own_rows, self.base.items),
        ):
            rows = touched.rows_T[touched.slice(code)]
            known = rows[rows < base_rows]
            new_ids = ids.ids_of(rows[rows >= base_rows].numpy())
            local = torch.arange(base_rows, base_rows + len(rows) - len(known))
            tensors[f"{name}.rows"] = torch.cat([known, local])
            tensors.update(id_tensors(name, new_ids))
        for name, delta in self.deltas():
            for parameter, part in delta.slices(code).items():
                tensors[f"{name}.{parameter}"] = (
                    delta.get_parameter(parameter).detach()[part].clone()
                )
        return Adapter(segment, self.config, self.base.fingerprint, tensors)

    def adapters(self) -> list[Adapter]:
        """Every segment's adapter."""
        return [self.adapter(segment) for segment in self.segment_names]

    # All deltas.

    def deltas(self) -> Iterator[tuple[str, TableDelta | WeightDelta]]:
        """Every delta with its name: `user_table`, `item_table`, `item_bias`, `tower.0.weight`,
        ...
        """
        for name in ("user_table", "item_table", "item_bias"):
            delta = getattr(self, name)
            if delta is not None:
                yield name, delta
        for key, delta in self.tower.items():
            yield "tower." + key.replace("_", "."), cast(WeightDelta, delta)

    @torch.no_grad()
    def _fill(self, code: int, adapter: Adapter, order: Mapping[str, Tensor]) -> None:
        # The rows of new identifiers may stand in another order in this bank than in the adapter.
        sides = {"user_table": "users", "item_table": "items", "item_bias": "items"}
        for name, delta in self.deltas():
            for parameter, part in delta.slices(code).items():
                place = delta.get_parameter(parameter)[part]
                stored = adapter.tensors.get(f"{name}.{parameter}")
                if stored is None or stored.shape != place.shape:
                    raise AdapterError(
                        f"the adapter of segment {adapter.segment!r} needs {name}.{parameter} of "
                        f"shape {tuple(place.shape)}, got "
                        f"{'none' if stored is None else tuple(stored.shape)}: it is damaged"
                    )
                if name in sides and parameter in ("a", "d"):
                    stored = stored[order[sides[name]]]
                place.copy_(stored)

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"AdapterBank({len(self.segment_names)} segments, {numbers:,} numbers, "
            f"rank {self.config.rank}, on {self.base!r})"
        )


def _adapted(
    table: Table, delta: TableDelta | None, ids_GB: Tensor, segments_G: Tensor
) -> tuple[Tensor, Tensor]:
    rows_GBD = table.lookup(ids_GB)
    if delta is None:
        return rows_GBD, torch.zeros_like(rows_GBD)
    adapted_GBD = delta(rows_GBD, ids_GB, segments_G)
    return adapted_GBD, adapted_GBD - rows_GBD


def _table_delta(
    kind: TableKind,
    touched: TouchedRows,
    base: BaseModel,
    config: AdapterConfig,
    generators: Sequence[torch.Generator],
) -> TableDelta | None:
    if kind == "none":
        return None
    if kind == "full":
        return FullDelta(touched, base.embedding_dim)
    return RowsDelta(touched, config.rank, base.embedding_dim, config.scaling, generators)


def _tower_deltas(
    tower: Tower, config: AdapterConfig, generators: Sequence[torch.Generator]
) -> Iterator[tuple[str, WeightDelta]]:
    for layer, (weight, bias) in enumerate(zip(tower.weights, tower.biases, strict=True)):
        shape = (weight.shape[0], weight.shape[1])
        if config.tower == "full":
            yield f"{layer}_weight", FullWeight(shape, len(generators))
            # The last bias is added to every item alike: its gradient is nothing but rounding,
            # of which Adagrad would make whole steps.
            if layer < len(tower.weights) - 1:
                yield f"{layer}_bias", FullWeight((len(bias), 1), len(generators))
        elif config.tower == "low_rank":
            rank = min(config.rank, *shape)
            yield f"{layer}_weight", LowRankWeight(shape, rank, config.scaling, generators)


def _rows_by_segment(rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> list[Tensor]:
    return [torch.from_numpy(part) for part in np.split(rows, offsets[1:-1])]
