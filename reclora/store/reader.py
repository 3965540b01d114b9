"""This file is what a store gives to those who read: releases, adapters, history, differences.

It writes nothing, so that it works on a read-only disk.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reclora.files import sha256_of
from reclora.notebook import as_html
from reclora.store.changes import check_known
from reclora.store.folders import Folders
from reclora.store.maps import SegmentMap
from reclora.store.pins import beside_others, pinned
from reclora.store.reading import BaseMismatch, StoreError, UnknownSegment, near
from reclora.store.releases import Release, read_release, release_numbers, release_path
from reclora.store.retired import check_there

# What needs torch or pandas is imported where it is used: a history is shown without them.
if TYPE_CHECKING:
    import pandas as pd

    from reclora.adapters import Adapter
    from reclora.stacks import AdapterStack
    from reclora.store.checking import StoreCheck
    from reclora.store.loading import PackReader


class StoreReader:
    """The verbs of `AdapterStore` that change nothing.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._folders = Folders(self.root)
        # Releases never change, so what was read stays true.
        self._read_release = functools.lru_cache(maxsize=4)(self._release_of)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    def _repr_html_(self) -> str:
        history = self.history()
        facts = {name: [getattr(r, name) for r in history] for name in ("number", "time", "author")}
        segments = [len(release.segments) for release in history]
        reasons = [release.reason for release in history]
        return as_html(self, {**facts, "segments": segments, "reason": reasons})

    def current(self) -> Release | None:
        """Return the release with the highest number; None when nothing was published."""
        numbers = self.releases()
        return self._read_release(numbers[-1]) if numbers else None

    def releases(self) -> list[int]:
        """Return the numbers of all releases, ascending."""
        return release_numbers(self._folders.releases)

    def release(self, number: int) -> Release:
        """Return release `number`.

        Raises:
            StoreError: there is none, or its file is damaged or of a newer format.
        """
        try:
            return self._read_release(number)
        except FileNotFoundError:
            numbers = self.releases()
            known = f"1 to {numbers[-1]}" if numbers else "nothing"
            raise StoreError(f"{self.root} has no release {number}; it holds {known}") from None

    def sha256(self, release: Release) -> str:
        """Return the sha256 of a release's file, which names all that the release is by theirs: no
        two releases have the same, of whichever store.

        Raises:
            OSError: the file cannot be read.
        """
        return sha256_of(release_path(self._folders.releases, release.number))

    def history(self, at: datetime | None = None) -> list[Release]:
        """Return all releases, the newest first.

        Args:
            at: begin with what was live then: the highest number that was published by that time.
                Numbers alone order releases, whatever clocks did.

        Raises:
            StoreError: `at` has no time zone, or a release is damaged.
        """
        if at is not None and at.tzinfo is None:
            raise StoreError(f"{at} has no time zone, which moment it is cannot be told; add one")
        found = [read_release(self._folders.releases, number) for number in self.releases()]
        if at is not None:
            while found and found[-1].time > at:
                found.pop()
        return found[::-1]

    def earlier(self, segment: str | None = None) -> int:
        """Return the newest earlier release that differs from the current one: what a rollback
        that names none goes back to.

        Args:
            segment: whose adapter or its metrics differ, or which was not there; None: anything
                differs, candidates too.

        Raises:
            StoreError: none differs, or the files of one are damaged.
            UnknownSegment: no release has that segment; the error offers names.
        """
        current = self._choose(None)
        now = _state_of(current, segment)
        for number in reversed(self.releases()):
            if number < current.number and _state_of(self.release(number), segment) != now:
                return number
        if segment is not None and now is None:
            check_known([segment], [*current.segments])
        alone = "differs from no earlier one"
        if current.parent is None:
            alone = "is the first"
        elif segment is not None:
            alone = f"has segment {segment!r} as every earlier one has it"
        raise StoreError(
            f"release {current.number} of {self.root} {alone}; name release 0 (--to 0) to have "
            "nothing live, so that the base serves"
        )

    def decisions(self, release: Release | int | None = None) -> pd.DataFrame | None:
        """Return what was decided with a release, None where nothing was written.

        Raises:
            StoreError: there is no such release, or the table is missing or damaged.
        """
        from reclora.store.decisions import read_decisions

        name = self._choose(release).decisions
        return None if name is None else read_decisions(self._folders.decisions, name)

    def diff(self, before: Release | int, after: Release | int) -> pd.DataFrame:
        """Return what differs between two releases; packs need not be there any more.

        Returns:
            a row a segment, by name: `segment`; `change` (`added`, `removed`, `changed`, or
            `candidate` where only its candidate differs, which then is what the other columns are
            about); `before` and `after`, kinds and rank in a few words, `parent` where that serves
            it, empty where there is none; `M before` and `M after` for each metric M.

        Raises:
            StoreError: there is no such release, or a map is damaged.
        """
        from reclora.store.differences import difference

        return difference(self._choose(before), self._choose(after))

    def load(
        self,
        segment: str,
        *,
        base_fingerprint: str,
        release: Release | int | None = None,
        candidates: bool = False,
    ) -> Adapter:
        """Return the adapter of `segment`; only its own slices are read.

        That of a segment which its parent serves has no numbers (config `()`), and that parent.

        Args:
            segment: its exact name.
            base_fingerprint: of the base model that it shall adapt.
            release: which one; None is the current.
            candidates: its candidate instead of what is current.

        Raises:
            UnknownSegment: the release has no such segment; the error offers near names.
            BaseMismatch: the release's adapters belong to another base.
            StoreError: there is no such release, a file is damaged or missing, or gc removed it.
        """
        chosen = self._choose(release)
        self._check_base(chosen, base_fingerprint)
        segments = _map_of(chosen, candidates)
        try:
            place = segments[segment]
        except KeyError:
            raise UnknownSegment(
                f"release {chosen.number} of {self.root} has no "
                f"{'candidate' if candidates else 'adapter'} of segment {segment!r}"
                + near(segment, segments)
            ) from None
        return self._reader.adapter(chosen, segment, place)

    def load_stacks(
        self,
        *,
        base_fingerprint: str,
        release: Release | int | None = None,
        candidates: bool = False,
    ) -> list[AdapterStack]:
        """Return the adapters of all segments of a release, a stack for each of its packs.

        Every byte is checked against the packs' sha256s; nothing is done for each adapter. Segments
        that their parent serves come as a stack without tensors (config `()`) on that parent.

        For arguments and errors see `load`.
        """
        from reclora.stacks import AdapterStack

        chosen = self._choose(release)
        self._check_base(chosen, base_fingerprint)
        own, served = self._reader.stacks(chosen, _map_of(chosen, candidates))
        bare = [
            AdapterStack(tuple(segments), (), base_fingerprint, {}, {}, parent)
            for parent, segments in served
        ]
        return own + bare

    def load_all(
        self, *, base_fingerprint: str, release: Release | int | None = None
    ) -> list[Adapter]:
        """Return the adapters of all segments of a release, sorted by segment.

        They share the memory of the stacks; see `load` for arguments and errors.
        """
        from reclora.store.loading import served as serve

        chosen = self._choose(release)
        self._check_base(chosen, base_fingerprint)
        own, served = self._reader.stacks(chosen, chosen.segments)
        adapters = [adapter for stack in own for adapter in stack]
        adapters += [serve(segment, parent) for parent, names in served for segment in names]
        return sorted(adapters, key=lambda adapter: adapter.segment)

    @contextlib.contextmanager
    def pin(self, release: Release | int | None = None) -> Iterator[Release]:
        """Give a release that `gc` keeps whole until the block ends, or the process does.

            with store.pin() as release:
                stacks = store.load_stacks(base_fingerprint=base.fingerprint, release=release)

        Needs no right to write. Waits for a gc that is at work. Where the file system has no locks
        gc refuses to run.

        Args:
            release: which one; None is the current.

        Raises:
            StoreError: there is no such release, or packs of it are not there, as after `gc`.
        """
        with contextlib.ExitStack() as held:
            self._choose(release)
            with beside_others(self._folders.releases):
                chosen = self._choose(release)
                held.enter_context(pinned(release_path(self._folders.releases, chosen.number)))
            packs = {pack.pack: pack for pack in chosen.packs}
            check_there(self._folders.packs, packs, chosen.number, self._folders.releases)
            yield chosen

    def verify(self, release: Release | int | None = None) -> None:
        """Read every byte that a release depends on, the parents' too, and compare the sha256s.

        Raises:
            StoreError: naming every file that is missing or damaged.
        """
        from reclora.store.checking import Examination

        examination = Examination(self._folders)
        examination.examine([self._choose(release)])
        if examination.problems:
            raise StoreError("\n".join(examination.problems))

    def check(self) -> StoreCheck:
        """Read every byte of the store once: `verify` of all releases, and what none of them needs.

        Where gc removed packs of a release that is no problem, but the release is `retired`.
        """
        from reclora.store.checking import check_store

        return check_store(self._folders)

    def _choose(self, release: Release | int | None) -> Release:
        if isinstance(release, int):
            return self.release(release)
        chosen = self.current() if release is None else release
        if chosen is None:
            raise StoreError(
                f"{self.root} has no release yet; publish adapters first, as `reclora retrain` does"
            )
        return chosen

    def _check_base(self, release: Release | None, fingerprint: str) -> None:
        if release is not None and release.base_fingerprint != fingerprint:
            raise BaseMismatch(
                f"release {release.number} of {self.root} belongs to base "
                f"{release.base_fingerprint}, got base {fingerprint}; an adapter fits only the "
                "base it was trained on: use that base, or train again and publish elsewhere"
            )

    def _release_of(self, number: int) -> Release:
        return read_release(self._folders.releases, number)

    @functools.cached_property
    def _reader(self) -> PackReader:
        from reclora.store.loading import PackReader

        return PackReader(self._folders.packs, self._folders.releases)


def _state_of(release: Release, segment: str | None) -> object:
    """What is equal in two releases where they say the same of `segment`, or of all."""
    if segment is not None:
        return release.segments.get(segment)
    share = None if release.canary is None else release.canary.share
    return share, [(found.path, found.packs) for found in release.maps]


def _map_of(release: Release, candidates: bool) -> SegmentMap:
    if not candidates:
        return release.segments
    if release.canary is None:
        raise StoreError(f"release {release.number} has no candidates; it has no canary")
    return release.canary.segments
