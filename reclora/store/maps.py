"""This file is the map of a release: segment -> placement, in one immutable file of columns.

    releases/maps/<sha256>.safetensors     the columns of `PlacementTable`

A segment is found by binary search with a few reads, so that one of 5,000 opens as fast as one of
five. Whoever needs all of them, or misses one, reads the whole and checks its sha256. Names that
share a hash are told apart by the names. Needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reclora.store.layout import HashedFile, Layout, Region, hashed_path, header_of, read_layout
from reclora.store.placements import (
    NAMES,
    OFFSETS,
    Columns,
    Placement,
    PlacementTable,
    hash_of,
)
from reclora.store.reading import StoreError, open_regular, parse_json, read_into, utf8

MAX_BYTES = 2**28
"""Largest map that is read whole: about four million segments."""

TWINS = 16
"""How many names may share a hash; more are no accident."""

BLOCK = 512
"""So many hashes are read at once when the search has come close."""

TYPES = {
    "hashes": "U64",
    "metrics": "F64",
    "indexes": "I64",
    OFFSETS: "I64",
    "packs": "U32",
    "serves_parent": "U8",
    NAMES: "U8",
}
"""Every column with its type, in the order of the file: wide numbers first, so that all align."""

NUMPY = {"U64": "<u8", "F64": "<f8", "I64": "<i8", "U32": "<u4", "U8": "u1"}

Read = Callable[[str, int, int], NDArray[Any]]
"""(column, first, last) -> its rows first .. last - 1."""


def map_file(table: PlacementTable) -> HashedFile:
    """Return the file of `table`.

    Raises:
        StoreError: it would be larger than what is read.
    """
    header = header_of(
        {"metrics": json.dumps({name: at for at, name in enumerate(table.metrics)})},
        {name: (dtype, table.columns[name].shape) for name, dtype in TYPES.items()},
    )
    size = len(header) + sum(column.nbytes for column in table.columns.values())
    if size > MAX_BYTES:
        raise StoreError(
            f"{len(table):,} segments need a map of {size:,} bytes, at most {MAX_BYTES:,} are "
            "read; keep several stores"
        )
    columns = (np.ascontiguousarray(table.columns[name]) for name in TYPES)
    return HashedFile.of([header, *(_bytes_of(column) for column in columns)])


class SegmentMap(Mapping[str, Placement]):
    """The map of one release, read when it is asked.

    Asking raises StoreError where the file is missing or damaged.

    Args:
        folder: of the maps.
        name: sha256 of the map.
        num_segments: S.
        packs: sha256s of the release's packs; the map says which of them.
    """

    def __init__(self, folder: Path, name: str, num_segments: int, packs: tuple[str, ...]) -> None:
        self.path = hashed_path(folder, name)
        self.packs = packs
        self._num_segments = num_segments

    def __len__(self) -> int:
        return self._num_segments

    def __getitem__(self, segment: str) -> Placement:
        try:
            name = utf8(segment)
        except StoreError:
            raise KeyError(segment) from None
        if "table" not in self.__dict__:
            with self._opened() as descriptor:
                place = self._find(_reader(descriptor, self._layout, self.path), name)
            if place is not None:
                return place
        # Before a segment is said to be absent, every byte is checked.
        place = self._find(self._read_table, name)
        if place is None:
            raise KeyError(segment)
        return place

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(name.decode() for name in self.table.encoded_names()))

    def __repr__(self) -> str:
        return f"SegmentMap({len(self):,} segments, {str(self.path)!r})"

    @cached_property
    def table(self) -> PlacementTable:
        """All of it, as `read` gives it."""
        return self.read()

    def read(self) -> PlacementTable:
        """Read the whole file and check every byte of it against its name.

        Raises:
            StoreError: it is missing, damaged, or larger than `MAX_BYTES`.
        """
        with self._opened() as descriptor:
            layout = self._layout_of(descriptor)
            if layout.size > MAX_BYTES:
                raise StoreError(
                    f"{self.path} has {layout.size:,} bytes; a map has at most {MAX_BYTES:,}"
                )
            raw = np.empty(layout.size, np.uint8)
            read_into(descriptor, raw.data, 0, self.path)
        if hashlib.sha256(raw.data).hexdigest() != self.path.stem:
            raise self._damaged("its sha256 is not its name")
        columns = {name: _column(raw, layout.regions[name]) for name in TYPES}
        table = PlacementTable(columns, self.packs, self._metrics_of(layout))
        self._check_places(columns)
        self._check_names(table)
        return table

    def _read_table(self, column: str, first: int, last: int) -> NDArray[Any]:
        return self.table.columns[column][first:last]

    def _find(self, read: Read, name: bytes) -> Placement | None:
        """Return the placement of the segment of this name, if there is one."""
        wanted = np.uint64(hash_of(name))
        low, high = 0, len(self)
        while high - low > BLOCK:
            middle = (low + high) // 2
            if read("hashes", middle, middle + 1)[0] < wanted:
                low = middle + 1
            else:
                high = middle
        hashes = read("hashes", low, min(high + TWINS, len(self)))
        rows = low + np.flatnonzero(hashes == wanted)[:TWINS]
        row = next((row for row in rows.tolist() if self._has_name(read, row, name)), None)
        return None if row is None else self._placement(read, row)

    def _has_name(self, read: Read, row: int, name: bytes) -> bool:
        start, end = read(OFFSETS, row, row + 2).tolist()
        if not 0 <= start <= end <= self._layout.regions[NAMES].shape[0]:
            raise self._damaged(f"the name of row {row} is no part of the names")
        return end - start == len(name) and read(NAMES, start, end).tobytes() == name

    def _placement(self, read: Read, row: int) -> Placement:
        columns = {name: read(name, row, row + 1) for name in TYPES if name not in (NAMES, OFFSETS)}
        self._check_places(columns)
        measured = zip(self._metrics_of(self._layout), columns["metrics"][0].tolist(), strict=True)
        return Placement(
            self.packs[int(columns["packs"][0])],
            int(columns["indexes"][0]),
            {name: value for name, value in measured if value == value},
            bool(columns["serves_parent"][0]),
        )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            with open_regular(self.path) as descriptor:
                yield descriptor
        except FileNotFoundError:
            raise StoreError(
                f"{self.path} is missing, a release needs it; restore it from a copy"
            ) from None

    @cached_property
    def _layout(self) -> Layout:
        with self._opened() as descriptor:
            return self._layout_of(descriptor)

    def _layout_of(self, descriptor: int) -> Layout:
        """Read the layout and check that it has the columns of a map of S segments."""
        layout = read_layout(descriptor, self.path, {"metrics"})
        rows = self._num_segments
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(TYPES, (rows,))
        shapes["metrics"] = rows, len(self._metrics_of(layout))
        shapes[OFFSETS] = (rows + 1,)
        found = {name: (region.dtype, region.shape) for name, region in layout.regions.items()}
        if NAMES in found:
            shapes[NAMES] = found[NAMES][1][:1]
        expected = {name: (dtype, shapes[name]) for name, dtype in TYPES.items()}
        if found != expected:
            odd = sorted(
                name for name in found.keys() | expected if found.get(name) != expected.get(name)
            )[:3]
            raise self._damaged(
                f"expected {[(name, expected.get(name)) for name in odd]}, "
                f"got {[(name, found.get(name)) for name in odd]}"
            )
        return layout

    def _metrics_of(self, layout: Layout) -> tuple[str, ...]:
        numbers = parse_json(layout.metadata["metrics"], self.path)
        if list(numbers.values()) != list(range(len(numbers))):
            raise self._damaged("its metrics are not numbered 0, 1, 2 ...")
        return tuple(numbers)

    def _check_names(self, table: PlacementTable) -> None:
        hashes, offsets, text = (table.columns[name] for name in ("hashes", OFFSETS, NAMES))
        if offsets[0] != 0 or offsets[-1] != len(text) or (offsets[1:] < offsets[:-1]).any():
            raise self._damaged(f"the offsets of its names do not rise from 0 to {len(text):,}")
        if (hashes[1:] < hashes[:-1]).any() or (hashes[TWINS:] == hashes[:-TWINS]).any():
            raise self._damaged("its hashes do not ascend")
        names = table.encoded_names()
        try:
            distinct = {name.decode() for name in names}
        except UnicodeDecodeError as error:
            raise self._damaged(f"a segment's name: {error}") from None
        if len(distinct) < len(names):
            raise self._damaged("a segment is in it twice")
        if hashes.tolist() != [hash_of(name) for name in names]:
            raise self._damaged("a hash is not that of its segment's name")

    def _check_places(self, columns: Columns) -> None:
        if (columns["packs"] >= len(self.packs)).any():
            raise self._damaged(f"a segment is in none of its {len(self.packs):,} packs")
        if (columns["indexes"] < 0).any() or (columns["serves_parent"] > 1).any():
            raise self._damaged("a segment has no place in its pack")
        if np.isinf(columns["metrics"]).any():
            raise self._damaged("a metric is infinite")

    def _damaged(self, why: str) -> StoreError:
        return StoreError(f"{self.path} is damaged: {why}; restore it from a copy")


def _reader(descriptor: int, layout: Layout, path: Path) -> Read:
    """Read rows of an open file."""

    def read(column: str, first: int, last: int) -> NDArray[Any]:
        region = layout.regions[column]
        rows = np.empty((last - first, *region.shape[1:]), NUMPY[region.dtype])
        read_into(descriptor, _bytes_of(rows), region.start + first * region.row_bytes, path)
        return rows

    return read


def _column(raw: NDArray[np.uint8], region: Region) -> NDArray[Any]:
    """View a region of a file's bytes."""
    part = raw[region.start : region.start + region.num_bytes]
    return part.view(NUMPY[region.dtype]).reshape(region.shape)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
