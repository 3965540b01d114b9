"""This file is gc: what no kept release needs is removed, never what someone reads. Needs no torch.

Packs go when none of the newest releases needs them; the releases themselves, their maps and their
decisions stay, so that the history is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from reclora.store.folders import DECISIONS, Folders, is_temporary
from reclora.store.layout import SUFFIX, hashed_path, is_hash
from reclora.store.lineage import Lineages
from reclora.store.pins import alone, is_pinned
from reclora.store.reading import StoreError
from reclora.store.releases import Release, read_release, release_numbers, release_path
from reclora.store.retired import read_kept_from, write_kept_from


@dataclass(frozen=True)
class Collected:
    """What gc removed, or would."""

    files: Mapping[Path, int]
    """The files -> their bytes."""
    retired: tuple[int, ...]
    """Releases that lost a pack by it and cannot be loaded any more."""
    pinned: tuple[int, ...]
    """Releases that would be among them if no reader had pinned them."""


def collect(folders: Folders, keep: int, grace: timedelta, dry_run: bool) -> Collected:
    """Remove what none of the newest `keep` releases needs; see `AdapterStore.gc`."""
    if keep < 1 or grace < timedelta(0):
        raise StoreError(
            f"gc keeps at least 1 release and has no negative grace, got {keep} and {grace}"
        )
    numbers = release_numbers(folders.releases)
    if not numbers:
        raise StoreError(f"{folders.root} has no release yet; there is nothing to collect")
    with alone(folders.releases):
        old_files = _older_than(grace, folders)
        numbers = release_numbers(folders.releases)
        releases = [read_release(folders.releases, number) for number in numbers]
        packs = _named_by_hash(old_files, folders.packs, SUFFIX)
        retired, pinned = _retire(releases, keep, packs, folders)
        records = {
            *_named_by_hash(old_files, folders.maps, SUFFIX).values(),
            *_named_by_hash(old_files, folders.decisions, DECISIONS).values(),
        } - folders.records(releases)
        leftovers = filter(is_temporary, old_files)
        files = {path: old_files[path] for path in sorted({*packs.values(), *records, *leftovers})}
        if not dry_run:
            if retired:
                # Before the first goes, so that nobody takes for lost what was removed.
                write_kept_from(folders.releases, numbers[-keep:][0])
            for path in files:
                path.unlink(missing_ok=True)
    return Collected(files, retired, pinned)


def _retire(
    releases: Sequence[Release], keep: int, packs: dict[str, Path], folders: Folders
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Take from `packs` what is needed; return the numbers of who loses some, and of the pinned."""
    lineages = Lineages(folders.packs)
    for release in releases[-keep:]:
        needed = lineages.needed(release.packs)
        if release.number >= read_kept_from(folders.releases):
            _check_whole(needed, release, folders)
        _keep(needed, packs)
    needs = {release.number: _needs_of_old(release, lineages) for release in releases[:-keep]}
    losing = [number for number, needed in needs.items() if not needed.isdisjoint(packs)]
    pinned = [n for n in losing if is_pinned(release_path(folders.releases, n))]
    for number in pinned:
        _keep(needs[number], packs)
    losing = [number for number in losing if not needs[number].isdisjoint(packs)]
    return tuple(losing), tuple(pinned)


def _check_whole(needed: Collection[str], release: Release, folders: Folders) -> None:
    for name in sorted(needed):
        path = hashed_path(folders.packs, name)
        if not path.is_file():
            raise StoreError(
                f"{path} is missing, release {release.number} needs it, and what it stands on "
                "cannot be known; nothing was removed: restore it from a copy, or keep fewer "
                "releases"
            )


def _needs_of_old(release: Release, lineages: Lineages) -> set[str]:
    try:
        return lineages.needed(release.packs)
    except StoreError:
        # A damaged pack that goes anyway must not hold up the rest.
        return {name for pack in release.packs for name in (pack.pack, pack.parent) if name}


def _keep(names: Collection[str], packs: dict[str, Path]) -> None:
    for name in names:
        packs.pop(name, None)


def _older_than(grace: timedelta, folders: Folders) -> dict[Path, int]:
    """Return the files that are at least as old as `grace`, and their bytes.

    By the file system's clock, which is the one that wrote their times; what is from the future is
    young.
    """
    now, seconds = folders.check_writable(), grace.total_seconds()
    return {
        path: found.st_size for path, found in folders.files() if now - found.st_mtime >= seconds
    }


def _named_by_hash(files: Iterable[Path], folder: Path, suffix: str) -> dict[str, Path]:
    """Return sha256 -> file, for those of `folder` that have a name of the store."""
    return {
        path.stem: path
        for path in files
        if path.parent == folder and path.suffix == suffix and is_hash(path.stem)
    }
