"""This file is where a store's files are, whether it is writable, and what killed writers left.

Needs no torch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reclora.files import make_folder, temporary_path
from reclora.store.layout import hashed_path
from reclora.store.releases import MAPS, Release

DECISIONS = ".parquet"
"""How the name of a table of decisions ends."""

ABANDONED_S = 3600
"""A temporary file that was not written to for so long has no writer any more."""


@dataclass(frozen=True)
class Folders:
    """The folders of the store at `root`."""

    root: Path

    @property
    def packs(self) -> Path:
        """Where the adapters are."""
        return self.root / "packs"

    @property
    def releases(self) -> Path:
        """Where the releases are."""
        return self.root / "releases"

    @property
    def maps(self) -> Path:
        """Where the releases' maps are."""
        return self.releases / MAPS

    @property
    def decisions(self) -> Path:
        """Where the tables of decisions are."""
        return self.releases / "decisions"

    @property
    def all(self) -> tuple[Path, ...]:
        """Every folder that has files."""
        return self.packs, self.releases, self.maps, self.decisions

    def check_writable(self) -> float:
        """Make the folders and in each a file, which is removed again.

        Returns:
            the time by the file system's own clock, in seconds as in `st_mtime`.

        Raises:
            OSError: a folder cannot be made or written to; the error names it.
        """
        for folder in self.all:
            make_folder(folder)
            now = _time_in(folder)
        return now

    def files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file of every folder; links are not followed."""
        for folder in self.all:
            for name in os.listdir(folder) if folder.is_dir() else ():
                path = folder / name
                try:
                    found = path.lstat()
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(found.st_mode):
                    yield path, found

    def records(self, releases: Iterable[Release]) -> set[Path]:
        """The maps and tables of decisions that `releases` name."""
        releases = list(releases)
        maps = {segments.path for release in releases for segments in release.maps}
        decided = {release.decisions for release in releases} - {None}
        return maps | {hashed_path(self.decisions, str(name), DECISIONS) for name in decided}

    def sweep(self, now: float) -> None:
        """Remove what killed writers left; `now` is the file system's, as of `check_writable`."""
        for path, found in self.files():
            if is_temporary(path) and now - found.st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file of this name is unfinished work."""
    return ".tmp." in path.name


def _time_in(folder: Path) -> float:
    """Make and remove a file in `folder`; return its time of making."""
    path = temporary_path(folder / "writable")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"the store cannot be written to: {error.strerror}", str(folder)
        ) from None
