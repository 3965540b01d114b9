"""This file is how a release's adapters are read: packs, the parents they stand on, all checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from reclora.adapters import Adapter
from reclora.stacks import AdapterStack
from reclora.store.layout import hashed_path
from reclora.store.maps import SegmentMap
from reclora.store.packs import Pack, open_pack
from reclora.store.placements import Placement, PlacementTable
from reclora.store.reading import MAX_PARENTS, BaseMismatch, StoreError
from reclora.store.releases import Release
from reclora.store.retired import is_missing

Served = tuple[Adapter, Sequence[str]]
"""A parent, and the segments that it serves."""


def served(segment: str, parent: Adapter) -> Adapter:
    """The adapter of a segment that has nothing of its own."""
    return Adapter(segment, (), parent.base_fingerprint, {}, parent)


class PackReader:
    """Reads the packs of one folder for releases; keeps the layouts and parents that it has read.

    Packs never change, so what was read stays true, and adapters of one parent share one object.

    Args:
        folder: of the packs.
        releases: the folder of the releases.
    """

    def __init__(self, folder: Path, releases: Path) -> None:
        self._folder = folder
        self._releases = releases
        self._open = lru_cache(maxsize=64)(self._opened)
        self._read_single = lru_cache(maxsize=16)(self._single_named)

    def adapter(self, release: Release, segment: str, place: Placement) -> Adapter:
        """Return the adapter of `segment`; of its pack only its own slices are read."""
        with self._present(release):
            pack = self._pack_of(release, place.pack)
            if place.serves_parent:
                return served(segment, self._single(release, pack))
            return pack.adapter(segment, place.index, self._parent_of(release, pack))

    def stacks(
        self, release: Release, segments: SegmentMap
    ) -> tuple[list[AdapterStack], list[Served]]:
        """Return the adapters that segments own, a stack a pack, and the parents that serve.

        Args:
            release: whose adapters they are.
            segments: its map, or that of its candidates.
        """
        table, names = segments.table, segments.table.names()
        stacks: list[AdapterStack] = []
        parents: list[Served] = []
        for name in table.packs:
            own, served = _contents_of(table, names, name)
            with self._present(release):
                pack = self._pack_of(release, name)
                if own:
                    stacks.append(_part(pack, pack.stack(self._parent_of(release, pack)), own))
                if served:
                    parent = self._single(release, pack)
                    parents.append((parent, [segment for segment, _ in served]))
        return stacks, parents

    @contextlib.contextmanager
    def _present(self, release: Release) -> Iterator[None]:
        """Say what became of a pack that is not there, or not any more."""
        try:
            yield
        except FileNotFoundError as error:
            raise is_missing(Path(error.filename), release.number, self._releases) from None

    def _parent_of(self, release: Release, pack: Pack) -> Adapter | None:
        self._check_parents(release, pack)
        return None if pack.parent is None else self._read_single(pack.parent)

    def _single(self, release: Release, pack: Pack) -> Adapter:
        """Return the adapter of a pack that holds no other."""
        self._check_parents(release, pack)
        pack.check_single()
        return self._read_single(pack.path.stem)

    def _check_parents(self, release: Release, pack: Pack) -> None:
        """Check that all that `pack` stands on is there, of one base, and comes to an end."""
        below = pack
        for _ in range(MAX_PARENTS):
            if below.parent is None:
                return
            below = self._pack_of(release, below.parent)
            below.check_single()
        if below.parent is not None:
            raise StoreError(
                f"{pack.path} stands on more than {MAX_PARENTS} parents or on itself; restore it "
                "and them from a copy"
            )

    def _pack_of(self, release: Release, name: str) -> Pack:
        pack = self._open(name)
        if pack.base_fingerprint != release.base_fingerprint:
            raise BaseMismatch(
                f"{pack.path} belongs to base {pack.base_fingerprint}, its release "
                f"{release.number} to {release.base_fingerprint}; restore both from a copy"
            )
        return pack

    def _opened(self, name: str) -> Pack:
        return open_pack(hashed_path(self._folder, name))

    def _single_named(self, name: str) -> Adapter:
        pack = self._open(name)
        return pack.stack(None if pack.parent is None else self._read_single(pack.parent))[0]


Rows = list[tuple[str, int]]
"""(segment, index in the pack), ascending by index."""


def _contents_of(table: PlacementTable, names: Sequence[str], pack: str) -> tuple[Rows, Rows]:
    """Return the segments that have their own adapter in `pack`, and those that it serves."""
    rows = table.rows_of(pack)
    indexes, serves = (table.columns[name][rows] for name in ("indexes", "serves_parent"))
    segments = [names[row] for row in rows.tolist()]
    own, served = Rows(), Rows()
    for segment, index, serving in zip(segments, indexes.tolist(), serves.tolist(), strict=True):
        (served if serving else own).append((segment, index))
    return own, sorted(served)


def _part(pack: Pack, stack: AdapterStack, rows: Rows) -> AdapterStack:
    """Return the stack of those of a whole pack that a release has.

    Raises:
        StoreError: release and pack do not belong together.
    """
    indexes = [index for _, index in rows]
    if indexes:
        pack.check_index(*rows[-1])
    found = [stack.segments[index] for index in indexes]
    if found != [segment for segment, _ in rows]:
        for (segment, index), other in zip(rows, found, strict=True):
            pack.check_segment(segment, index, other)
    return stack if indexes == list(range(len(stack))) else stack.take(indexes)
