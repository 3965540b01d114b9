"""This file is where the adapters of a release are: one row a segment, as columns.

    hashes          U64 (S)      the first 8 bytes of the name's sha256, little-endian; ascending
    packs           U32 (S)      which of the release's packs holds its adapter
    indexes         I64 (S)      where in the pack
    serves_parent   U8 (S)       1: its own adapter did not help, the pack is its parent's
    metrics         F64 (S, M)   what was measured for it, NaN where unknown
    names           U8           the names in UTF-8, one after the other
    names.offsets   I64 (S+1)    row s has names[offsets[s] : offsets[s + 1]]

Columns, so that a publish carries 100,000 segments over without an object for each. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reclora.store.reading import utf8

Columns = Mapping[str, NDArray[Any]]

NAMES, OFFSETS = "names", "names.offsets"


@dataclass(frozen=True)
class Placement:
    """Where the adapter of one segment is, and how good it was."""

    pack: str
    """sha256 of the pack that holds it, in hex."""
    index: int
    """Its position in the pack, 0..S-1."""
    metrics: Mapping[str, float]
    """What was measured for it when it was published; what is unknown is not in it."""
    serves_parent: bool = False
    """Its own adapter did not help: pack and index are its parent's."""


def hash_of(name: bytes) -> int:
    """The first 8 bytes of the sha256 of a segment's name."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")


@dataclass(frozen=True, eq=False)
class PlacementTable:
    """The placements of all segments of a release, sorted by the hash of the name."""

    columns: Columns
    packs: tuple[str, ...]
    """sha256s, ascending; `columns["packs"]` says which of them."""
    metrics: tuple[str, ...]
    """Names of the M columns of metrics, ascending."""

    @classmethod
    def of(cls, placements: Mapping[str, Placement]) -> PlacementTable:
        """The table of segment -> placement.

        Raises:
            StoreError: a segment's name is no text.
        """
        places = list(placements.values())
        packs = sorted({place.pack for place in places})
        code_of = {pack: code for code, pack in enumerate(packs)}
        metrics = sorted({name for place in places for name in place.metrics})
        values = [[place.metrics.get(name, math.nan) for name in metrics] for place in places]
        names = [utf8(segment) for segment in placements]
        columns = {
            "hashes": np.array([hash_of(name) for name in names], "<u8"),
            "packs": np.array([code_of[place.pack] for place in places], "<u4"),
            "indexes": np.array([place.index for place in places], "<i8"),
            "serves_parent": np.array([place.serves_parent for place in places], "u1"),
            "metrics": np.array(values, "<f8").reshape(len(places), len(metrics)),
        }
        return _sorted(columns, names, packs, metrics)

    def __len__(self) -> int:
        return len(self.columns["hashes"])

    def on_top_of(self, older: PlacementTable) -> PlacementTable:
        """This table, and the rows of `older` for the segments that it has not."""
        packs = sorted({*older.packs, *self.packs})
        metrics = sorted({*older.metrics, *self.metrics})
        names = self.encoded_names()
        older_names = older.encoded_names()
        kept = _rows_not_in(older, older_names, self, set(names))
        columns = {
            name: np.concatenate([column[kept], own])
            for (name, column), own in zip(
                _renumbered(older, packs, metrics).items(),
                _renumbered(self, packs, metrics).values(),
                strict=True,
            )
        }
        return _sorted(columns, [older_names[row] for row in kept.tolist()] + names, packs, metrics)

    def only(self, segments: Iterable[str]) -> PlacementTable:
        """The rows of these segments; those that are not in it do not count."""
        return self._taken(segments, True)

    def without(self, segments: Iterable[str]) -> PlacementTable:
        """The rows of all other segments."""
        return self._taken(segments, False)

    def encoded_names(self) -> list[bytes]:
        """The segments' names in UTF-8, row by row."""
        text = self.columns[NAMES].tobytes()
        return [text[a:b] for a, b in pairwise(self.columns[OFFSETS].tolist())]

    def names(self) -> list[str]:
        """The segments' names, row by row."""
        return [name.decode() for name in self.encoded_names()]

    def _taken(self, segments: Iterable[str], taking: bool) -> PlacementTable:
        chosen = {utf8(segment) for segment in segments}
        names = self.encoded_names()
        rows = [row for row, name in enumerate(names) if (name in chosen) is taking]
        if len(rows) == len(names):
            return self
        columns = {
            name: column[rows]
            for name, column in self.columns.items()
            if name not in (NAMES, OFFSETS)
        }
        return _sorted(columns, [names[row] for row in rows], self.packs, self.metrics)

    def rows_of(self, pack: str) -> NDArray[np.int64]:
        """The rows whose adapter is in `pack`, ascending by its place there."""
        rows = np.flatnonzero(self.columns["packs"] == self.packs.index(pack))
        return rows[np.argsort(self.columns["indexes"][rows], kind="stable")]


def _sorted(
    columns: Columns, names: Sequence[bytes], packs: Sequence[str], metrics: Sequence[str]
) -> PlacementTable:
    """The table of these rows; its bytes depend on what it says, not on how it came about."""
    order = np.argsort(columns["hashes"], kind="stable")
    ordered = {name: column[order] for name, column in columns.items()}
    ordered |= _joined([names[row] for row in order.tolist()])
    table = PlacementTable(ordered, tuple(packs), tuple(metrics))
    used = [packs[code] for code in np.unique(ordered["packs"]).tolist()]
    known = [
        name
        for name, values in zip(metrics, ordered["metrics"].T, strict=True)
        if not np.isnan(values).all()
    ]
    return PlacementTable({**ordered, **_renumbered(table, used, known)}, tuple(used), tuple(known))


def _renumbered(table: PlacementTable, packs: Sequence[str], metrics: Sequence[str]) -> Columns:
    """The columns but for the names, by the numbers that packs and metrics have in these."""
    code_of = {pack: code for code, pack in enumerate(packs)}
    # A pack that is not among them has no row.
    codes = np.array([code_of.get(pack, 0) for pack in table.packs], "<u4")
    values = np.full((len(table), len(metrics)), math.nan, "<f8")
    for at, name in enumerate(metrics):
        if name in table.metrics:
            values[:, at] = table.columns["metrics"][:, table.metrics.index(name)]
    kept = {name: table.columns[name] for name in ("hashes", "indexes", "serves_parent")}
    return {**kept, "packs": codes[table.columns["packs"]], "metrics": values}


def _rows_not_in(
    older: PlacementTable, names: Sequence[bytes], newer: PlacementTable, replaced: set[bytes]
) -> NDArray[np.int64]:
    alike = np.flatnonzero(np.isin(older.columns["hashes"], newer.columns["hashes"]))
    keep = np.ones(len(older), bool)
    keep[[row for row in alike.tolist() if names[row] in replaced]] = False
    return np.flatnonzero(keep)


def _joined(names: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    offsets = np.zeros(len(names) + 1, "<i8")
    np.cumsum([len(name) for name in names], out=offsets[1:])
    return {NAMES: np.frombuffer(b"".join(names), np.uint8), OFFSETS: offsets}
