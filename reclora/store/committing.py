"""This file is how a release is made: by link-if-absent, on top of the newest, whoever else writes.

Needs no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from reclora.files import sha256_of
from reclora.store.changes import Change, Tables, brought
from reclora.store.folders import Folders
from reclora.store.layout import hashed_path
from reclora.store.lineage import Lineages
from reclora.store.maps import SegmentMap, map_file
from reclora.store.pins import beside_others
from reclora.store.placements import PlacementTable
from reclora.store.reading import StoreError
from reclora.store.releases import Canary, PackSummary, Release, write_release
from reclora.store.retired import is_missing


@dataclass(frozen=True)
class Note:
    """What a release says of how it came about; see `Release`."""

    reason: str
    author: str | None
    run: str | None = None
    decisions: str | None = None


@contextlib.contextmanager
def writing(folders: Folders) -> Iterator[None]:
    """Have the folders, keep gc away from what is written, and remove what killed writers left.

    Raises:
        OSError: the store cannot be written to.
    """
    now = folders.check_writable()
    with beside_others(folders.releases):
        folders.sweep(now)
        yield


def commit(
    folders: Folders,
    newest: Callable[[], Release | None],
    change: Change,
    base_fingerprint: str,
    note: Note,
) -> Release:
    """Publish `change` on top of the newest release, inside `writing`; packs are written already.

    Args:
        newest: returns the newest release, or raises where the change does not belong on it.
        base_fingerprint: of the base that all adapters belong to.

    Raises:
        StoreError: the tables of the newest do not allow it, or a pack that it brings back is
            damaged or missing; nothing is published.
        OSError: the disk refused; see `AdapterStore.publish`.
    """
    while True:
        parent = newest()
        below = Tables.of(parent)
        tables = change.apply(below)
        older = () if parent is None else parent.packs
        known = {summary.pack: summary for summary in (*older, *change.packs)}
        if change.brings_back:
            packs = [known[pack] for pack in brought(below, tables)]
            _check_whole(folders, packs, 0 if parent is None else parent.number)
        segments = _write_map(folders, tables.current)
        canary = None
        if tables.share is not None and len(tables.candidates):
            canary = Canary(tables.share, _write_map(folders, tables.candidates))
        used = dict.fromkeys((*tables.current.packs, *tables.candidates.packs))
        release = Release(
            number=1 if parent is None else parent.number + 1,
            time=datetime.now(UTC).replace(microsecond=0),
            author=note.author,
            reason=note.reason,
            parent=None if parent is None else parent.number,
            base_fingerprint=base_fingerprint,
            packs=tuple(known[pack] for pack in used),
            segments=segments,
            run=note.run,
            decisions=note.decisions,
            canary=canary,
        )
        try:
            write_release(folders.releases, release)
        except FileExistsError:
            continue
        return release


def _check_whole(folders: Folders, packs: Iterable[PackSummary], number: int) -> None:
    """Read every byte of `packs`, and of all that they stand on, on behalf of release `number`."""
    for name in sorted(Lineages(folders.packs).needed(packs)):
        path = hashed_path(folders.packs, name)
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            raise is_missing(path, number, folders.releases) from None
        if found != name:
            raise StoreError(
                f"{path} is damaged: its sha256 is not its name; restore it from a copy, or choose "
                "another release"
            )


def _write_map(folders: Folders, table: PlacementTable) -> SegmentMap:
    file = map_file(table)
    file.write(folders.maps)
    return SegmentMap(folders.maps, file.name, len(table), table.packs)
