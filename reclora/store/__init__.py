"""This file is the store of adapters: its verbs, and the refusal of what belongs to another base.

    store/packs/<sha256>.safetensors               the adapters of one publish, config and parent
    store/releases/00000042.json                   who, when, why, and which packs and maps
    store/releases/maps/<sha256>.safetensors       segment -> (pack, index, metrics)
    store/releases/decisions/<sha256>.parquet      what was decided on every segment

All of them are immutable. A release is complete: segments that a publish leaves out are carried
over from its parent. It is created by link-if-absent: one writer wins a number, the others read the
winner's release and publish on top of it, so nothing is lost. Rolling back writes a new release.
Names of segments are never part of a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from reclora.store.changes import Change, Tables, promotion, publication, restoration
from reclora.store.committing import Note, commit, writing
from reclora.store.placements import Placement, PlacementTable
from reclora.store.reader import StoreReader
from reclora.store.reading import BaseMismatch, StoreError, Superseded, UnknownSegment
from reclora.store.releases import Canary, PackSummary, Release
from reclora.store.retired import check_there

# What needs torch or pandas is imported where it is used: a history is shown without them.
if TYPE_CHECKING:
    import pandas as pd

    from reclora.adapters import Adapter
    from reclora.store.collecting import Collected

__all__ = [
    "AdapterStore",
    "BaseMismatch",
    "Canary",
    "PackSummary",
    "Placement",
    "Release",
    "StoreError",
    "Superseded",
    "UnknownSegment",
]


class AdapterStore(StoreReader):
    """A folder of adapters, safe with many writers and readers at once.

        store = AdapterStore(Path("store"))
        store.publish(adapters, reason="nightly", metrics={"de": {"ndcg@10": 0.081}})
        adapter = store.load("de", base_fingerprint=base.fingerprint)
        store.rollback(reason="clicks fell", segments=["de"])

    Args:
        root: the folder; the first `publish` makes it.
    """

    def publish(
        self,
        adapters: Sequence[Adapter],
        *,
        reason: str,
        author: str | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        serves_parent: Sequence[str] = (),
        parent: Adapter | None = None,
        run: str | None = None,
        decisions: pd.DataFrame | None = None,
        canary: float | None = None,
        remove: Sequence[str] = (),
        onto: int | None = None,
    ) -> Release:
        """Make `adapters` the current ones of their segments; the other segments stay as they are.

        Whole or not at all: readers see the old release or the new one, also of a killed publish.
        A segment that is published or removed loses the candidate that it had.

        Args:
            adapters: at most one a segment, all of one base model; any string names a segment. An
                `AdapterStack` is written as it is, without work for each adapter. May be empty
                where decisions or removals are published on a release.
            reason: why, for the history.
            author: who, for the history.
            metrics: segment -> name -> value, kept with the release; NaN where it is unknown.
            serves_parent: segments whose own adapter did not help; from now on they are served by
                the parent.
            parent: that parent; needed where `adapters` have none, or several.
            run: id of the run that made them.
            decisions: what was decided on every segment, by which numbers; see `decisions`.
            canary: a share of users, above 0 and below 1: what is published becomes the candidates
                of its segments, for that share, and what is current stays. Candidates of other
                segments stay too, from now on for the same share.
            remove: segments that the release shall not have any more.
            onto: the number of the release that must be current, 0 where there must be none; None
                is whichever is.

        Raises:
            Superseded: another release than `onto` is current; nothing is published.
            StoreError: nothing to publish, a segment twice, numbers that are not finite, segments
                without the parent that shall serve them, an adapter that stands on more than
                `MAX_PARENTS`; the error names segment and tensor.
            UnknownSegment: a segment to remove that is not there.
            AdapterError: tensors differ between adapters of one config and parent.
            BaseMismatch: the adapters are of several bases, or of another than the current release.
            OSError: the disk refused. The old release stays current, but where the very last step
                failed, the fsync of the folder: then the new one shows, and may not outlast a
                power cut.
        """
        from reclora.store.decisions import decisions_file
        from reclora.store.publishing import check_segments, plan_publish, segments_of

        served, removed = _listed(serves_parent, "serves_parent"), _listed(remove, "remove")
        measured = metrics or {}
        published = [*segments_of(adapters), *served]
        check_segments(published, removed, measured)
        if canary is not None and not (published and 0 < canary < 1):
            raise StoreError(
                f"a canary is a share of users above 0 and below 1, of segments that are published "
                f"with it; got {canary} of {len(published):,} segments"
            )
        says_more = decisions is not None or bool(removed)
        fingerprint = self._base_of(adapters, served, parent, says_more)
        plan = plan_publish(adapters, measured, served, parent)
        table = None if decisions is None else decisions_file(decisions)
        placed = PlacementTable.of(plan.placements)
        change = Change(publication(placed, removed, canary), [pack.summary for pack in plan.packs])
        note = Note(reason, author, run, None if table is None else table.name)
        with writing(self._folders):
            for pack in plan.packs:
                pack.file.write(self._folders.packs)
            if table is not None:
                table.write(self._folders.decisions)
            return self._commit(change, fingerprint, note, onto)

    def promote(
        self,
        segments: Sequence[str] | None = None,
        *,
        reason: str,
        author: str | None = None,
    ) -> Release:
        """Make candidates of the current release the current adapters of their segments.

        Args:
            segments: which; None is all that have a candidate.
            reason, author: why and who, for the history.

        Raises:
            StoreError: there is no candidate, or a pack of one is damaged or missing.
            UnknownSegment: one of `segments` has none; the error offers near names.
            OSError: see `publish`.
        """
        chosen = None if segments is None else _named(segments)
        below = self._choose(None)
        with writing(self._folders):
            change = Change(promotion(chosen), brings_back=True)
            return self._commit(change, below.base_fingerprint, Note(reason, author))

    def rollback(
        self,
        to: int | None = None,
        segments: Sequence[str] | None = None,
        *,
        reason: str,
        author: str | None = None,
    ) -> Release:
        """Publish a new release in which segments are as they were.

        A segment that the earlier release has not is gone. With all segments the candidates are
        what they were too; with some, candidates stay as they are. The packs whose adapters become
        current again are compared with their sha256s, and nothing else is read of them.

        Args:
            to: the earlier release; 0 has nothing, the base serves. None is the newest that differs
                from the current (see `earlier`), for each of `segments` its own; so a second
                rollback undoes the first.
            segments: which; None is all.
            reason, author: why and who, for the history.

        Raises:
            StoreError: there is no such release, or nothing would change, or packs of it are
                damaged or not there, as after `gc`; nothing was published.
            UnknownSegment: one of `segments` is in neither release; the error offers names.
            OSError: see `publish`.
        """
        chosen = None if segments is None else _named(segments)
        below = self._choose(None)
        sources = self._sources(to, chosen)
        called = " and ".join(f"release {number}" for number in sources)
        with writing(self._folders):
            tables, packs = self._restored(sources)
            change = Change(restoration(tables, chosen, called), packs, brings_back=True)
            return self._commit(change, below.base_fingerprint, Note(reason, author))

    def gc(
        self, *, keep: int = 30, grace: timedelta = timedelta(days=7), dry_run: bool = False
    ) -> Collected:
        """Remove the packs that none of the newest releases needs, and what no release names.

        Releases, their maps and their decisions stay: the history is whole, but older releases
        cannot be loaded or rolled back to any more. A release that a reader has pinned is kept.

        Args:
            keep: how many of the newest releases stay whole, at least 1.
            grace: nothing younger is removed, by the clock of the file system.
            dry_run: remove nothing; say what would be.

        Returns:
            the files with their bytes, the releases that lost packs, and the pinned.

        Raises:
            StoreError: a release is damaged, others publish all the time, or the file system has no
                locks; nothing was removed.
            OSError: the store cannot be written to.
        """
        from reclora.store.collecting import collect

        return collect(self._folders, keep, grace, dry_run)

    def check_writable(self) -> None:
        """Make the folders, and in each a file that is removed again.

        Raises:
            OSError: the store cannot be written to; the error names the folder.
        """
        self._folders.check_writable()

    def _commit(
        self, change: Change, fingerprint: str, note: Note, onto: int | None = None
    ) -> Release:
        def newest() -> Release | None:
            parent = self.current()
            number = 0 if parent is None else parent.number
            if onto not in (None, number):
                raise Superseded(f"{self.root}: release {number} is current, not {onto}")
            self._check_base(parent, fingerprint)
            return parent

        return commit(self._folders, newest, change, fingerprint, note)

    def _base_of(
        self,
        adapters: Sequence[Adapter],
        served: Sequence[str],
        parent: Adapter | None,
        says_more: bool,
    ) -> str:
        """Return the base of what is published; without adapters that of the current release."""
        from reclora.store.publishing import check_one_base

        current = self.current()
        if adapters or served:
            fingerprint = check_one_base(adapters, parent)
            self._check_base(current, fingerprint)
            return fingerprint
        if current is None or not says_more:
            raise StoreError("nothing to publish: expected at least one adapter, got none")
        return current.base_fingerprint

    def _sources(
        self, to: int | None, segments: Sequence[str] | None
    ) -> Mapping[int, Sequence[str] | None]:
        """Return which releases a rollback goes back to, and with which segments; None is all."""
        if to is not None or segments is None:
            return {self.earlier() if to is None else to: segments}
        sources: dict[int, list[str]] = {}
        for segment in segments:
            sources.setdefault(self.earlier(segment), []).append(segment)
        return sources

    def _restored(
        self, sources: Mapping[int, Sequence[str] | None]
    ) -> tuple[Tables, list[PackSummary]]:
        """Return what was in these releases, and their packs, which are there."""
        restored, packs = Tables(), list[PackSummary]()
        for number, segments in sources.items():
            if number == 0:
                continue
            earlier = self.release(number)
            tables = Tables.of(earlier)
            self._check_there(earlier, tables, segments)
            packs += earlier.packs
            if segments is None:
                return tables, packs
            restored = Tables(tables.current.only(segments).on_top_of(restored.current))
        return restored, packs

    def _check_there(
        self, earlier: Release, tables: Tables, segments: Sequence[str] | None
    ) -> None:
        """Check that the packs are there that a rollback brings back."""
        brought = {*tables.current.packs, *tables.candidates.packs}
        if segments is not None:
            brought = {*tables.current.only(segments).packs}
        wanted = {pack.pack: pack for pack in earlier.packs if pack.pack in brought}
        check_there(self._folders.packs, wanted, earlier.number, self._folders.releases)


def _listed(segments: Sequence[str], name: str) -> Sequence[str]:
    if isinstance(segments, str):
        raise StoreError(f"{name} must be a list of segments, got {segments!r}")
    return segments


def _named(segments: Sequence[str]) -> Sequence[str]:
    if not _listed(segments, "segments"):
        raise StoreError("segments is empty; name some, or leave it out to mean all")
    return segments
