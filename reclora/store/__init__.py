"""This file is the store of adapters: publish, load, and refuse what belongs to another base model.

    store/packs/<sha256>.safetensors            the adapters of one publish, config and parent
    store/releases/00000042.json                who, when, why, and which packs and map
    store/releases/maps/<sha256>.safetensors    segment -> (pack, index, metrics)

All of them are immutable. A release is complete: segments that a publish leaves out are carried
over from its parent. It is created by link-if-absent: one writer wins a number, the others read the
winner's release and publish on top of it, so nothing is lost. Names of segments are never part of a
path.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reclora.files import make_folder
from reclora.store.maps import SegmentMap, map_file
from reclora.store.placements import Placement, PlacementTable
from reclora.store.reading import BaseMismatch, StoreError
from reclora.store.releases import (
    MAPS,
    PackSummary,
    Release,
    read_release,
    release_numbers,
    write_release,
)

# What needs torch is imported where adapters are read or written: a history is shown without torch.
if TYPE_CHECKING:
    from reclora.adapters import Adapter
    from reclora.stacks import AdapterStack
    from reclora.store.loading import PackReader

__all__ = [
    "AdapterStore",
    "BaseMismatch",
    "PackSummary",
    "Placement",
    "Release",
    "StoreError",
    "UnknownSegment",
]


class UnknownSegment(StoreError, KeyError):
    """A segment was asked for that has no adapter."""

    # KeyError would show the message quoted.
    __str__ = Exception.__str__


class AdapterStore:
    """A folder of adapters, safe with many writers and readers at once.

        store = AdapterStore(Path("store"))
        store.publish(adapters, reason="nightly", metrics={"de": {"ndcg@10": 0.081}})
        adapter = store.load("de", base_fingerprint=base.fingerprint)

    Args:
        root: the folder; the first `publish` makes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._packs = self.root / "packs"
        self._releases = self.root / "releases"
        # Releases never change, so what was read stays true.
        self._read_release = functools.lru_cache(maxsize=4)(self._release_of)

    def __repr__(self) -> str:
        return f"AdapterStore({str(self.root)!r})"

    def publish(
        self,
        adapters: Sequence[Adapter],
        *,
        reason: str,
        author: str | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        serves_parent: Sequence[str] = (),
        parent: Adapter | None = None,
    ) -> Release:
        """Make `adapters` the current ones of their segments; the other segments stay as they are.

        Whole or not at all: readers see the old release or the new one, also of a killed publish.

        Args:
            adapters: at most one a segment, all of one base model; any string names a segment. An
                `AdapterStack` is written as it is, without work for each adapter.
            reason: why, for the history.
            author: who, for the history.
            metrics: segment -> name -> value, kept with the release; NaN where it is unknown.
            serves_parent: segments whose own adapter did not help; from now on they are served by
                the parent.
            parent: that parent; needed where `adapters` have none, or several.

        Raises:
            StoreError: nothing to publish, a segment twice, numbers that are not finite, segments
                without the parent that shall serve them, an adapter that stands on more than
                `MAX_PARENTS`; the error names segment and tensor.
            AdapterError: tensors differ between adapters of one config and parent.
            BaseMismatch: the adapters are of several bases, or of another than the current release.
            OSError: the disk refused. The old release stays current, but where the very last step
                failed, the fsync of the folder: then the new one shows, and may not outlast a
                power cut.
        """
        from reclora.store.publishing import check_one_base, plan_publish, segments_of

        if isinstance(serves_parent, str):
            raise StoreError(f"serves_parent must be a list of segments, got {serves_parent!r}")
        measured = metrics or {}
        _check_segments([*segments_of(adapters), *serves_parent], measured)
        fingerprint = check_one_base(adapters, parent)
        self._check_base(self.current(), fingerprint)
        plan = plan_publish(adapters, measured, serves_parent, parent)
        table = PlacementTable.of(plan.placements)
        for folder in (self._packs, self._releases / MAPS):
            make_folder(folder)
        for pack in plan.packs:
            pack.file.write(self._packs)
        summaries = [pack.summary for pack in plan.packs]
        return self._publish_on_top(table, summaries, fingerprint, reason, author)

    def current(self) -> Release | None:
        """Return the release with the highest number; None when nothing was published."""
        numbers = self.releases()
        return self._read_release(numbers[-1]) if numbers else None

    def releases(self) -> list[int]:
        """Return the numbers of all releases, ascending."""
        return release_numbers(self._releases)

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

    def load(
        self, segment: str, *, base_fingerprint: str, release: Release | int | None = None
    ) -> Adapter:
        """Return the adapter of `segment`; only its own slices are read.

        That of a segment which its parent serves has no numbers (config `()`), and that parent.

        Args:
            segment: its exact name.
            base_fingerprint: of the base model that it shall adapt.
            release: which one; None is the current.

        Raises:
            UnknownSegment: the release has no such segment; the error offers near names.
            BaseMismatch: the release's adapters belong to another base.
            StoreError: there is no such release, or a file is damaged or missing.
        """
        chosen = self._choose(release)
        self._check_base(chosen, base_fingerprint)
        try:
            place = chosen.segments[segment]
        except KeyError:
            raise UnknownSegment(
                f"release {chosen.number} of {self.root} has no adapter of segment {segment!r}"
                + _near(segment, chosen.segments)
            ) from None
        return self._reader.adapter(chosen, segment, place)

    def load_stacks(
        self, *, base_fingerprint: str, release: Release | int | None = None
    ) -> list[AdapterStack]:
        """Return the adapters of all segments of a release, a stack for each of its packs.

        Every byte is checked against the packs' sha256s; nothing is done for each adapter. Segments
        that their parent serves come as a stack without tensors (config `()`) on that parent.

        For arguments and errors see `load`.
        """
        from reclora.stacks import AdapterStack

        chosen = self._choose(release)
        self._check_base(chosen, base_fingerprint)
        own, served = self._reader.stacks(chosen)
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
        own, served = self._reader.stacks(chosen)
        adapters = [adapter for stack in own for adapter in stack]
        adapters += [serve(segment, parent) for parent, names in served for segment in names]
        return sorted(adapters, key=lambda adapter: adapter.segment)

    def verify(self, release: Release | int | None = None) -> None:
        """Read every byte that a release depends on, the parents' too, and compare the sha256s.

        Raises:
            StoreError: naming every file that is missing or damaged.
        """
        problems = self._reader.problems(self._choose(release))
        if problems:
            raise StoreError("\n".join(problems))

    def _publish_on_top(
        self,
        table: PlacementTable,
        summaries: Iterable[PackSummary],
        fingerprint: str,
        reason: str,
        author: str | None,
    ) -> Release:
        """Publish `table` on top of the newest release, whoever else is publishing."""
        while True:
            parent = self.current()
            self._check_base(parent, fingerprint)
            whole = table if parent is None else table.on_top_of(parent.segments.table)
            older = () if parent is None else parent.packs
            known = {summary.pack: summary for summary in (*older, *summaries)}
            file = map_file(whole)
            file.write(self._releases / MAPS)
            release = Release(
                number=1 if parent is None else parent.number + 1,
                time=datetime.now(UTC).replace(microsecond=0),
                author=author,
                reason=reason,
                parent=None if parent is None else parent.number,
                base_fingerprint=fingerprint,
                packs=tuple(known[pack] for pack in whole.packs),
                segments=SegmentMap(self._releases / MAPS, file.name, len(whole), whole.packs),
            )
            try:
                write_release(self._releases, release)
            except FileExistsError:
                continue
            return release

    def _choose(self, release: Release | int | None) -> Release:
        if isinstance(release, int):
            return self.release(release)
        chosen = self.current() if release is None else release
        if chosen is None:
            raise StoreError(f"{self.root} has no release yet; publish adapters first")
        return chosen

    def _check_base(self, release: Release | None, fingerprint: str) -> None:
        if release is not None and release.base_fingerprint != fingerprint:
            raise BaseMismatch(
                f"release {release.number} of {self.root} belongs to base "
                f"{release.base_fingerprint}, got base {fingerprint}; an adapter fits only the "
                "base it was trained on: use that base, or train again and publish elsewhere"
            )

    def _release_of(self, number: int) -> Release:
        return read_release(self._releases, number)

    @functools.cached_property
    def _reader(self) -> PackReader:
        from reclora.store.loading import PackReader

        return PackReader(self._packs)


def _check_segments(segments: Sequence[str], metrics: Mapping[str, Mapping[str, float]]) -> None:
    if not segments:
        raise StoreError("nothing to publish: expected at least one adapter, got none")
    distinct = set(segments)
    if len(distinct) < len(segments):
        twice = Counter(segments).most_common(1)[0][0]
        raise StoreError(f"segment {twice!r} comes twice; publish one adapter a segment")
    for segment, values in metrics.items():
        if segment not in distinct:
            raise StoreError(
                f"metrics of segment {segment!r}, which is not published" + _near(segment, distinct)
            )
        infinite = [name for name, value in values.items() if math.isinf(value)]
        if infinite:
            raise StoreError(f"segment {segment!r}: metric {infinite[0]!r} is infinite")


def _near(segment: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(segment, known, n=3)
    return f"; near names: {', '.join(map(repr, near))}" if near else ""
