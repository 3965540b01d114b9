"""AdapterBank: the deltas of all segments, stacked; what trains in one pass and scores mixed
batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reclora.adapters import (
    Adapter,
    bank_rows,
    id_tensors,
    new_ids,
)
from reclora.bank.assembly import (
    bias_deltas,
    check_parts,
    groups,
    table_deltas,
    tower_deltas,
)
from reclora.bank.stored import check_start, configs_of, fill, stacked, stored_rows, with_rows
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError
from reclora.counted import segment_seed
from reclora.deltas import (
    Delta,
    RowDropout,
    TouchedRows,
    WeightDelta,
)
from reclora.interactions import Interactions
from reclora.notebook import as_html
from reclora.scoring import CatalogueScorer, RemoteScorer
from reclora.stacks import AdapterStack
from reclora.tables import Table
from reclora.tower import Layer, Tower

MATERIALISED_ROWS = 1 << 16
"""Rows that are adapted at once where a whole table is."""


class AdapterBank(nn.Module):
    """The stacked deltas of S segments over one frozen base.

    Args:
        base: grown where the segments know identifiers that it does not (`BaseModel.grown`).
        segment_names: any distinct strings; a segment's code is its place.
        user_rows, item_rows: the rows each segment touches, one tensor a segment.
        config: the deltas, one for all segments or one for each: kinds and ranks may differ.
        seed: with a segment's name it fixes that segment's random factors; None where all numbers
            are about to be put in: they start at zero.
        parent: an adapter of the same base, frozen here, that every segment changes further; code
            -1, a segment that nobody knows, is served by it (without a parent by the base). The
            base is grown by the identifiers that it brings.

    A base without a tower has no tower deltas, whatever the config says.

    Raises:
        AdapterError: no segment, repeated names, another number of row lists or configs than of
            names, a rank above the tables' embedding_dim, or a parent of another base.
        IndexError: a touched row is outside its table.
    """

    def __init__(
        self,
        base: BaseModel,
        segment_names: Sequence[str],
        user_rows: Sequence[Tensor],
        item_rows: Sequence[Tensor],
        config: AdapterConfig | Sequence[AdapterConfig],
        seed: int | None = 0,
        parent: Adapter | None = None,
    ) -> None:
        super().__init__()
        configs = (
            (config,) * len(segment_names) if isinstance(config, AdapterConfig) else tuple(config)
        )
        self.parent: AdapterBank | None = None if parent is None else self.of(base, [parent])
        if self.parent is not None:
            self.parent.requires_grad_(False)
            base = self.parent.base
        check_parts(base, segment_names, (user_rows, item_rows), configs)
        self.base: BaseModel = base
        self.segment_names, self.configs = tuple(segment_names), configs
        self.parent_adapter = parent
        self._codes = {name: code for code, name in enumerate(segment_names)}
        self.touched_users = TouchedRows.of(user_rows, base.user_table.num_rows)
        self.touched_items = TouchedRows.of(item_rows, base.item_table.num_rows)
        generators: list[torch.Generator] = []
        if seed is not None:
            generators = [
                torch.Generator().manual_seed(segment_seed(seed, name)) for name in segment_names
            ]
        # The order of these lines fixes what a segment draws.
        self.user_table = table_deltas(
            [c.user_kinds for c in configs], self.touched_users, base, configs, generators
        )
        self.item_table = table_deltas(
            [c.item_kinds for c in configs], self.touched_items, base, configs, generators
        )
        self.item_bias = bias_deltas(configs, self.touched_items, generators)
        self.tower = tower_deltas(base.tower, configs, generators)

    @classmethod
    def for_log(
        cls,
        base: BaseModel,
        log: Interactions,
        config: AdapterConfig | Sequence[AdapterConfig],
        seed: int = 0,
        parent: Adapter | None = None,
        start: Mapping[str, Adapter] | None = None,
    ) -> AdapterBank:
        """A bank for the segments of a log; each touches the users and items of its interactions.

        Args:
            start: segment -> the adapter that it begins with, of its config and of this parent:
                it touches that one's rows too, and scores as that one does. The others are fresh.

        Raises:
            AdapterError: the log is not on the base's id maps (`Interactions.onto`), or does not
                hold the identifiers that an adapter in `start` brings; an adapter in `start` has
                another config, base or parent.
        """
        if log.users != base.users or log.items != base.items:
            raise AdapterError(
                "the log is not on the base's id maps; take log.onto(base.users, base.items)"
            )
        rows = {
            "users": _rows_by_segment(log.user_rows, log.offsets),
            "items": _rows_by_segment(log.item_rows, log.offsets),
        }
        known = {"users": base.users, "items": base.items}
        own = base.user_table.num_own_rows, base.item_table.num_own_rows
        begun: dict[int, dict[str, Tensor]] = {}
        for code, name in enumerate(log.segment_names):
            if start and name in start:
                begun[code] = {
                    side: stored_rows(start[name], side, known[side], num_own)
                    for side, num_own in zip(known, own, strict=True)
                }
                for side, stored in begun[code].items():
                    rows[side][code] = torch.cat([rows[side][code], stored])
        bank = cls(base, log.segment_names, rows["users"], rows["items"], config, seed, parent)
        for code, stored_by_side in begun.items():
            adapter = (start or {})[log.segment_names[code]]
            check_start(adapter, bank.configs[code], base, parent)
            bank._fill(code, adapter, stored_by_side)
        return bank

    @classmethod
    def of(cls, base: BaseModel, adapters: Sequence[Adapter]) -> AdapterBank:
        """A bank of stored adapters, whatever the config of each; the base is grown by the
        identifiers that they bring.

        Args:
            adapters: of one parent; those that are served by it have no deltas here.

        Raises:
            AdapterError: no adapter, one that belongs to another base or to modules of another
                model, adapters of different parents, or one whose tensors are not what its config
                and rows ask for.
        """
        if not adapters:
            raise AdapterError("a bank needs at least one adapter, got none")
        adapters = with_rows(adapters)
        configs, parent = configs_of(adapters, base), adapters[0].parent
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
        bank = cls(grown, names, rows["users"], rows["items"], configs, None, parent)
        for code, adapter in enumerate(adapters):
            bank._fill(code, adapter, {side: rows[side][code] for side in rows})
        return bank

    def put(self, adapter: Adapter) -> None:
        """Give a segment the numbers of an adapter, whose rows are among those that it touches.

        Raises:
            AdapterError: it is of another config, base or parent than the segment, or other rows.
        """
        code = self.code(adapter.segment)
        check_start(adapter, self.configs[code], self.base, self.parent_adapter)
        tables = {
            "users": (self.base.users, self.base.user_table, self.touched_users),
            "items": (self.base.items, self.base.item_table, self.touched_items),
        }
        rows = {
            side: stored_rows(adapter, side, ids, table.num_own_rows)
            for side, (ids, table, _) in tables.items()
        }
        for side, (_, _, touched) in tables.items():
            own = touched.rows_T[touched.slice(code)]
            if len(own) and not bool(torch.isin(rows[side], own).all()):
                raise AdapterError(
                    f"the adapter of segment {adapter.segment!r} touches {side} that the segment "
                    "does not touch in this bank: make the bank with `start`"
                )
        self._fill(code, adapter, rows)

    def _fill(self, code: int, adapter: Adapter, rows: Mapping[str, Tensor]) -> None:
        """Put in an adapter that touches these rows of the bank's tables."""
        touched = {"users": self.touched_users, "items": self.touched_items}
        places = {
            side: torch.searchsorted(of.rows_T[of.slice(code)], rows[side])
            for side, of in touched.items()
        }
        fill(self._own(code), code, adapter, places)

    # What a batch asks for. ids are rows of the tables, segments are codes.

    def users(
        self, ids_GB: Tensor, segments_G: Tensor, dropout: RowDropout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Adapted user vectors and the parent's, both (G, B, D)."""
        return self._adapted("user_table", ids_GB, segments_G, dropout)

    def items(
        self, ids_GB: Tensor, segments_G: Tensor, dropout: RowDropout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Adapted item vectors and the parent's, both (G, B, D)."""
        return self._adapted("item_table", ids_GB, segments_G, dropout)

    def biases(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted item biases, (G, B)."""
        return self._adapted("item_bias", ids_GB, segments_G)[0].squeeze(-1)

    def _adapted(
        self, name: str, ids_GB: Tensor, segments_G: Tensor, dropout: RowDropout | None = None
    ) -> tuple[Tensor, Tensor]:
        table: Table = getattr(self.base, name)
        if self.parent is None:
            rows_GBD = table.lookup(ids_GB)
        else:
            rows_GBD = self.parent._adapted(name, ids_GB, torch.zeros_like(segments_G))[0]
        return self._changed(name, rows_GBD, ids_GB, segments_G, dropout), rows_GBD

    def _changed(
        self,
        name: str,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: RowDropout | None = None,
    ) -> Tensor:
        """Rows of the parent, or of the base, as the segments' own deltas change them."""
        for delta in getattr(self, name):
            rows_GBD = delta(rows_GBD, ids_GB, segments_G, dropout)
        return rows_GBD

    def layers(self, segments_G: Tensor) -> list[Layer]:
        """Adapted tower layers of each segment; empty without a tower."""
        if self.base.tower is None:
            return []
        if self.parent is None:
            below = [
                (w.expand(len(segments_G), -1, -1), b.expand(len(segments_G), -1))
                for w, b in zip(self.base.tower.weights, self.base.tower.biases, strict=True)
            ]
        else:
            below = self.parent.layers(torch.zeros_like(segments_G))
        return [
            (
                self._adapted_weight(f"{i}_weight", weight_GOI, segments_G),
                self._adapted_weight(f"{i}_bias", bias_GO.unsqueeze(2), segments_G).squeeze(2),
            )
            for i, (weight_GOI, bias_GO) in enumerate(below)
        ]

    def _adapted_weight(self, key: str, weight_GOI: Tensor, segments_G: Tensor) -> Tensor:
        if key in self.tower:
            for delta in cast(nn.ModuleList, self.tower[key]):
                weight_GOI = delta(weight_GOI, segments_G)
        return weight_GOI

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
        layers = self.layers(torch.tensor([code]))
        tower = (
            Tower(tuple(w[0] for w, _ in layers), tuple(b[0] for _, b in layers))
            if layers
            else None
        )
        tables = [self._whole(name, code) for name in ("user_table", "item_table", "item_bias")]
        return BaseModel.of(
            self.base.users, self.base.items, tables[0], tables[1], tables[2].squeeze(1), tower
        )

    @torch.no_grad()
    def scorer(self, segment: str) -> CatalogueScorer | RemoteScorer:
        """Scores of all items for users of a segment; only the item side is materialised."""
        code = self.code(segment)
        if not self.base.item_table.is_whole:
            return RemoteScorer(self.adapter(segment), self.base.item_table.num_rows)
        segments_1 = torch.tensor([code])
        return CatalogueScorer(
            lambda rows: self.users(rows.unsqueeze(0), segments_1)[0][0],
            self._whole("item_table", code),
            self._whole("item_bias", code).squeeze(1),
            self.layers(segments_1),
        )

    def _whole(self, name: str, code: int) -> Tensor:
        """A copy of all rows of a table as the segment sees them."""
        whole = self._below(name)
        own = [delta for target, delta in self._own(code) if target == name]
        if any(delta.moves_all_rows for delta in own):
            rows = torch.arange(len(whole))
        else:
            touched = self.touched_users if name == "user_table" else self.touched_items
            rows = touched.rows_T[touched.slice(code)]
        for part in torch.split(rows, MATERIALISED_ROWS):
            below_1BD = whole[part].unsqueeze(0)
            whole[part] = self._changed(name, below_1BD, part.unsqueeze(0), torch.tensor([code]))[0]
        return whole

    def _below(self, name: str) -> Tensor:
        """A copy of all rows of a table as the parent sees them, or the base."""
        if self.parent is None:
            return cast(Table, getattr(self.base, name)).materialised()
        if name != "user_table":
            return self._parent_items[name].clone()
        return self.parent._whole(name, 0)

    @cached_property
    def _parent_items(self) -> dict[str, Tensor]:
        """The parent's item side, which every segment's scorer begins with; frozen, so kept."""
        assert self.parent is not None
        return {name: self.parent._whole(name, 0) for name in ("item_table", "item_bias")}

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
        for name, delta in self._own(code):
            for parameter, part in delta.slices(code).items():
                tensors[f"{name}.{delta.kind}.{parameter}"] = (
                    delta.get_parameter(parameter).detach()[part].clone()
                )
        return Adapter(
            segment, self.configs[code], self.base.fingerprint, tensors, self.parent_adapter
        )

    def adapters(self) -> list[Adapter]:
        """Every segment's adapter."""
        return [self.adapter(segment) for segment in self.segment_names]

    def stacks(self) -> list[AdapterStack]:
        """All adapters, stacked, one stack a config: what is published fastest.

        Where all segments have one config and no identifier of their own they are the bank's own
        memory, not a copy: publish before training goes on.
        """
        codes = groups(self.configs)
        own_rows = self.base.user_table.num_own_rows, self.base.item_table.num_own_rows
        touched = self.touched_users, self.touched_items
        if len(codes) > 1 or any(
            len(side) and int(side.rows_T.max()) >= own
            for side, own in zip(touched, own_rows, strict=True)
        ):
            return [
                AdapterStack.of([self.adapter(self.segment_names[code]) for code in group])
                for group in codes.values()
            ]
        tensors, offsets = stacked(
            self.deltas(),
            {
                "users": (self.touched_users, self.base.users),
                "items": (self.touched_items, self.base.items),
            },
        )
        return [
            AdapterStack(
                self.segment_names,
                self.configs[0],
                self.base.fingerprint,
                tensors,
                offsets,
                self.parent_adapter,
            )
        ]

    # All deltas.

    def deltas(self) -> Iterator[tuple[str, Delta]]:
        """Every delta with what it changes: `user_table`, `item_table`, `item_bias`,
        `tower.0.weight`, ...; the parent's are not among them.
        """
        for name in ("user_table", "item_table", "item_bias"):
            for delta in getattr(self, name):
                yield name, delta
        for key, deltas in self.tower.items():
            for delta in cast(nn.ModuleList, deltas):
                yield "tower." + key.replace("_", "."), cast(WeightDelta, delta)

    def has_delta(self, code: int) -> bool:
        """Whether a segment has anything of its own to train."""
        return any(True for _ in self._own(code))

    def _own(self, code: int) -> Iterator[tuple[str, Delta]]:
        return ((name, delta) for name, delta in self.deltas() if delta.owners.has(code))

    def __repr__(self) -> str:
        numbers = sum(p.numel() for _, delta in self.deltas() for p in delta.parameters())
        parent = "" if self.parent is None else f" on {self.parent.segment_names[0]!r}"
        return (
            f"AdapterBank({len(self.segment_names)} segments, {numbers:,} numbers{parent}, "
            f"of {self.base!r})"
        )

    def _repr_html_(self) -> str:
        users, items = (t.offsets_S1.diff() for t in (self.touched_users, self.touched_items))
        rows = {"users touched": users.numpy(), "items touched": items.numpy()}
        return as_html(self, {"segment": self.segment_names, **rows})


def _rows_by_segment(rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> list[Tensor]:
    return [torch.from_numpy(part) for part in np.split(rows, offsets[1:-1])]
