"""This file is how a store is examined: every byte that releases need, each file read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reclora.store.decisions import check_decisions
from reclora.store.folders import Folders
from reclora.store.layout import hashed_path
from reclora.store.maps import SegmentMap
from reclora.store.packs import Pack, open_pack
from reclora.store.placements import PlacementTable, hash_of
from reclora.store.reading import MAX_PARENTS, StoreError, utf8
from reclora.store.releases import Release, read_release, release_numbers, release_path
from reclora.store.retired import NAME as RETIRED
from reclora.store.retired import is_missing, read_kept_from


@dataclass(frozen=True)
class StoreCheck:
    """What was found in a whole store."""

    problems: tuple[str, ...]
    """What is damaged, missing or contradicts itself; each with what to do."""
    unneeded: Mapping[Path, int]
    """Files that no release names, and what killed writers left -> their bytes."""
    retired: tuple[int, ...]
    """Releases of which gc removed packs; they cannot be loaded, which is no problem."""


@dataclass(frozen=True)
class _Examined:
    """What is kept of a pack of which every byte was read."""

    pack: Pack
    hashes: NDArray[np.uint64]
    """Of the segments' names, by index."""


class Examination:
    """Reads what releases depend on; what one release has in common with another is read once.

    Args:
        folders: of the store.
    """

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._packs: dict[str, _Examined | StoreError | None] = {}
        self._kept_from = read_kept_from(folders.releases)
        self._problems: dict[str, str] = {}
        self.retired: list[int] = []
        """Releases of which gc removed packs."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, each once, in the order in which it was found."""
        return tuple(self._problems.values())

    @property
    def packs(self) -> set[Path]:
        """The packs that what was examined needs."""
        return {hashed_path(self._folders.packs, name) for name in self._packs}

    def examine(self, releases: Sequence[Release]) -> None:
        """Add what is wrong with `releases`: maps, decisions, packs and their parents."""
        claims: dict[Path, dict[tuple[int, tuple[str, ...]], SegmentMap]] = {}
        for release in releases:
            for segments in release.maps:
                key = len(segments), segments.packs
                claims.setdefault(segments.path, {})[key] = segments
        for maps in claims.values():
            self._examine_maps(list(maps.values()))
        for name in dict.fromkeys(release.decisions for release in releases):
            self._examine_decisions(name)
        for release in releases:
            self._examine_packs(release)

    def note(self, problem: object, about: str | None = None) -> None:
        """Add a problem; of several about one thing the first stands."""
        self._problems.setdefault(about or str(problem), str(problem))

    def _note_missing(self, name: str, release: Release) -> None:
        if release.number >= self._kept_from:
            # gc may have begun since; it says so before it removes anything.
            self._kept_from = read_kept_from(self._folders.releases)
        if release.number >= self._kept_from:
            path = hashed_path(self._folders.packs, name)
            self.note(is_missing(path, release.number, self._folders.releases), name)

    def _examine_maps(self, maps: Sequence[SegmentMap]) -> None:
        """Examine one file, of which releases may say different packs."""
        try:
            table = maps[0].read()
            for segments in maps:
                if len(segments) != len(table) or _lacks_packs(table, segments):
                    # It raises what is wrong.
                    segments.read()
                for code, name in enumerate(segments.packs):
                    found = self._pack(name)
                    if isinstance(found, _Examined):
                        self._examine_places(found, table, code)
        except StoreError as error:
            self.note(error)

    def _examine_places(self, found: _Examined, table: PlacementTable, code: int) -> None:
        """Compare what a map says of a pack with the pack; `code` is the pack's in the map."""
        rows = np.flatnonzero(table.columns["packs"] == code)
        serves = table.columns["serves_parent"][rows].astype(bool)
        if serves.any():
            self._check_single(found.pack)
        rows = rows[~serves]
        indexes = table.columns["indexes"][rows]
        wrong = indexes >= len(found.hashes)
        inside = ~wrong
        wrong[inside] = found.hashes[indexes[inside]] != table.columns["hashes"][rows[inside]]
        if wrong.any():
            row = int(rows[wrong][0])
            self.note(
                f"{found.pack.path}: index {int(table.columns['indexes'][row])} is not segment "
                f"{table.names()[row]!r}, as a release has it, and {int(wrong.sum()) - 1:,} more; "
                "release and pack do not belong together: restore both from a copy"
            )

    def _examine_decisions(self, name: str | None) -> None:
        if name is not None:
            try:
                check_decisions(self._folders.decisions, name)
            except StoreError as error:
                self.note(error)

    def _examine_packs(self, release: Release) -> None:
        lost = False
        for name in self._needed(release):
            found = self._pack(name)
            if isinstance(found, StoreError):
                self.note(found)
            elif found is None:
                lost = True
                self._note_missing(name, release)
            else:
                self._examine_lineage(release, found.pack)
        if lost and release.number < self._kept_from:
            self.retired.append(release.number)

    def _examine_lineage(self, release: Release, pack: Pack) -> None:
        if pack.base_fingerprint != release.base_fingerprint:
            self.note(
                f"{pack.path} belongs to base {pack.base_fingerprint}, its release "
                f"{release.number} to {release.base_fingerprint}; restore both from a copy",
                about=f"base of {pack.path}",
            )
        below = pack
        for _ in range(MAX_PARENTS + 1):
            parent = None if below.parent is None else self._pack(below.parent)
            if not isinstance(parent, _Examined):
                return
            below = parent.pack
            self._check_single(below)
        self.note(
            f"{pack.path} stands on more than {MAX_PARENTS} parents or on itself; restore it "
            "and them from a copy"
        )

    def _check_single(self, pack: Pack) -> None:
        try:
            pack.check_single()
        except StoreError as error:
            self.note(error)

    def _needed(self, release: Release) -> Iterator[str]:
        """Every pack of `release`, and all that they stand on."""
        named = [name for pack in release.packs for name in (pack.pack, pack.parent)]
        wanted = dict.fromkeys(name for name in named if name is not None)
        queue = list(wanted)
        for name in queue:
            yield name
            found = self._pack(name)
            parent = found.pack.parent if isinstance(found, _Examined) else None
            if parent is not None and parent not in wanted:
                wanted[parent] = None
                queue.append(parent)

    def _pack(self, name: str) -> _Examined | StoreError | None:
        """Every byte of a pack read, what is wrong with it, or None where it is not there."""
        if name not in self._packs:
            try:
                pack = open_pack(hashed_path(self._folders.packs, name))
                names = pack.stack(None).segments
                hashes = np.array([hash_of(utf8(segment)) for segment in names], np.uint64)
                self._packs[name] = _Examined(pack, hashes)
            except FileNotFoundError:
                self._packs[name] = None
            except StoreError as error:
                self._packs[name] = error
        return self._packs[name]


def check_store(folders: Folders) -> StoreCheck:
    """Examine every release of a store and every file of its folders."""
    # Before the releases: what a publish writes meanwhile is then no file without a release.
    files = {path: found.st_size for path, found in folders.files()}
    numbers = release_numbers(folders.releases)
    examination, releases = Examination(folders), []
    for number in numbers:
        try:
            releases.append(read_release(folders.releases, number))
        except StoreError as error:
            examination.note(error)
    for gap in sorted({*range(1, max(numbers, default=0))} - {*numbers}):
        path = release_path(folders.releases, gap)
        examination.note(f"{path} is missing, later releases are there; restore it from a copy")
    # The newest first: of a file that is missing, it says who needs it.
    examination.examine(releases[::-1])
    named = folders.records(releases) | examination.packs | {folders.releases / RETIRED}
    named |= {release_path(folders.releases, number) for number in numbers}
    unneeded = {path: files[path] for path in sorted(files.keys() - named)}
    return StoreCheck(examination.problems, unneeded, tuple(sorted(examination.retired)))


def _lacks_packs(table: PlacementTable, segments: SegmentMap) -> bool:
    return bool((table.columns["packs"] >= len(segments.packs)).any())
