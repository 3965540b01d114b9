"""This file is the store of adapters: publish, load, and refuse what belongs to another base model.

    store/packs/<sha256>.safetensors     the adapters of one publish with one config, immutable
    store/releases/00000042.json         segment -> (pack, index, metrics), immutable

A release is complete: segments that a publish leaves out are carried over from its parent. It is
created by link-if-absent: one writer wins a number, the others read the winner's release and
publish on top of it, so nothing is lost. Names of segments are never part of a path.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reclora.files import make_folder, sha256_of
from reclora.store.reading import BaseMismatch, StoreError
from reclora.store.releases import (
    Placement,
    Release,
    read_release,
    release_numbers,
    write_release,
)

# What needs torch is imported where adapters are read or written: a history is shown without torch.
if TYPE_CHECKING:
    from reclora.adapters import Adapter
    from reclora.store.packs import Pack

__all__ = [
    "AdapterStore",
    "BaseMismatch",
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
        # Packs and releases never change, so what was read stays true.
        self._read_release = functools.lru_cache(maxsize=4)(self._release_of)
        self._open_pack = functools.lru_cache(maxsize=64)(self._pack_named)

    def __repr__(self) -> str:
        return f"AdapterStore({str(self.root)!r})"

    def publish(
        self,
        adapters: Sequence[Adapter],
        *,
        reason: str,
        author: str | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Release:
        """Make `adapters` the current ones of their segments; the other segments stay as they are.

        Whole or not at all: readers see the old release or the new one, also of a killed publish.

        Args:
            adapters: at most one a segment, all of one base model; any string names a segment.
            reason: why, for the history.
            author: who, for the history.
            metrics: segment -> name -> value, kept with the release; NaN where it is unknown.

        Raises:
            StoreError: nothing to publish, a segment twice, numbers that are not finite, tensors
                that differ between adapters of one config; the error names segment and tensor.
            BaseMismatch: the adapters are of several bases, or of another than the current release.
            OSError: the disk refused. The old release stays current, but where the very last step
                failed, the fsync of the folder: then the new one shows, and may not outlast a
                power cut.
        """
        from reclora.store.stacking import check_one_base, group_by_config, write_pack

        measured = metrics or {}
        _check_segments([adapter.segment for adapter in adapters], measured)
        fingerprint = check_one_base(adapters)
        self._check_base(self.current(), fingerprint)
        groups = group_by_config(adapters)
        make_folder(self._packs)
        make_folder(self._releases)
        placements: dict[str, Placement] = {}
        for group in groups:
            name = write_pack(self._packs, group)
            for index, adapter in enumerate(group):
                own = {
                    key: float(value) for key, value in measured.get(adapter.segment, {}).items()
                }
                placements[adapter.segment] = Placement(name, index, own)
        return self._publish_on_top(placements, fingerprint, reason, author)

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
        placement = chosen.segments.get(segment)
        if placement is None:
            raise UnknownSegment(
                f"release {chosen.number} of {self.root} has no adapter of segment {segment!r}"
                + _near(segment, chosen.segments)
            )
        return self._pack_of(chosen, placement.pack).load({segment: placement.index})[0]

    def load_all(
        self, *, base_fingerprint: str, release: Release | int | None = None
    ) -> list[Adapter]:
        """Return the adapters of all segments of a release, sorted by segment.

        They are views of one memory block a tensor; see `load` for arguments and errors.
        """
        chosen = self._choose(release)
        self._check_base(chosen, base_fingerprint)
        adapters = [
            adapter
            for name, indexes in _by_pack(chosen).items()
            for adapter in self._pack_of(chosen, name).load(indexes)
        ]
        return sorted(adapters, key=lambda adapter: adapter.segment)

    def verify(self, release: Release | int | None = None) -> None:
        """Read every byte that a release depends on; `load` checks structure, this the sha256s too.

        Raises:
            StoreError: naming every pack that is missing or damaged.
        """
        chosen = self._choose(release)
        problems = []
        for name, indexes in _by_pack(chosen).items():
            try:
                pack = self._pack_of(chosen, name)
                if sha256_of(pack.path) != name:
                    raise StoreError(f"{pack.path} is damaged: its sha256 is not its name")
                pack.load(indexes)
            except StoreError as error:
                problems.append(str(error))
        if problems:
            raise StoreError("\n".join(problems))

    def _publish_on_top(
        self, placements: Mapping[str, Placement], fingerprint: str, reason: str, author: str | None
    ) -> Release:
        """Publish `placements` on top of the newest release, whoever else is publishing."""
        while True:
            parent = self.current()
            self._check_base(parent, fingerprint)
            carried = {} if parent is None else parent.segments
            release = Release(
                number=1 if parent is None else parent.number + 1,
                time=datetime.now(UTC).replace(microsecond=0),
                author=author,
                reason=reason,
                parent=None if parent is None else parent.number,
                base_fingerprint=fingerprint,
                segments=dict(sorted({**carried, **placements}.items())),
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

    def _pack_of(self, release: Release, name: str) -> Pack:
        try:
            pack = self._open_pack(name)
        except FileNotFoundError as error:
            raise StoreError(
                f"{error.filename} is missing, release {release.number} needs it; "
                "restore it from a copy"
            ) from None
        if pack.base_fingerprint != release.base_fingerprint:
            raise BaseMismatch(
                f"{pack.path} belongs to base {pack.base_fingerprint}, its release "
                f"{release.number} to {release.base_fingerprint}; restore both from a copy"
            )
        return pack

    def _release_of(self, number: int) -> Release:
        return read_release(self._releases, number)

    def _pack_named(self, name: str) -> Pack:
        from reclora.store.packs import open_pack, pack_path

        return open_pack(pack_path(self._packs, name))


def _check_segments(segments: Sequence[str], metrics: Mapping[str, Mapping[str, float]]) -> None:
    if not segments:
        raise StoreError("nothing to publish: expected at least one adapter, got none")
    seen: set[str] = set()
    for segment in segments:
        if segment in seen:
            raise StoreError(f"segment {segment!r} comes twice; publish one adapter a segment")
        seen.add(segment)
        try:
            segment.encode()
        except UnicodeEncodeError:
            raise StoreError(
                f"segment {segment!r} has half of a surrogate pair, which is no text; rename it"
            ) from None
    for segment, values in metrics.items():
        if segment not in seen:
            raise StoreError(
                f"metrics of segment {segment!r}, which is not published" + _near(segment, seen)
            )
        infinite = [name for name, value in values.items() if math.isinf(value)]
        if infinite:
            raise StoreError(f"segment {segment!r}: metric {infinite[0]!r} is infinite")


def _by_pack(release: Release) -> dict[str, dict[str, int]]:
    """Return pack -> segment -> index."""
    packs: dict[str, dict[str, int]] = {}
    for segment, placement in release.segments.items():
        packs.setdefault(placement.pack, {})[segment] = placement.index
    return packs


def _near(segment: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(segment, known, n=3)
    return f"; near names: {', '.join(map(repr, near))}" if near else ""
