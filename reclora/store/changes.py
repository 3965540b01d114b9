"""This file is what a release makes of the one below it: a function of its tables each.

    publish    the new adapters are current, the others stay
    try        the new adapters are candidates beside what is current
    promote    candidates become current
    roll back  segments become what they were

So that a writer who lost a number to another does the same again on top of the winner. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reclora.store.placements import PlacementTable
from reclora.store.reading import StoreError, UnknownSegment, near
from reclora.store.releases import PackSummary, Release

NOTHING = PlacementTable.of({})


@dataclass(frozen=True)
class Tables:
    """What a release has of every segment."""

    current: PlacementTable = NOTHING
    candidates: PlacementTable = NOTHING
    share: float | None = None
    """The share of users that the candidates are for; None without candidates."""

    @classmethod
    def of(cls, release: Release | None) -> Tables:
        """Those of `release`; raises StoreError where a map is missing or damaged."""
        if release is None:
            return cls()
        if release.canary is None:
            return cls(release.segments.table)
        canary = release.canary
        return cls(release.segments.table, canary.segments.table, canary.share)

    def names(self) -> list[str]:
        """The segments that have an adapter or a candidate; those with both twice."""
        return self.current.names() + self.candidates.names()


@dataclass(frozen=True)
class Change:
    """What a writer wants."""

    apply: Callable[[Tables], Tables]
    """The tables below -> those of the new release; raises StoreError where they do not allow it.
    """
    packs: Sequence[PackSummary] = ()
    """Those that the tables below may not have."""
    brings_back: bool = False
    """What it makes current was written long ago: its packs are read and compared with their
    sha256s before."""


def publication(
    adapters: PlacementTable, remove: Sequence[str], share: float | None
) -> Callable[[Tables], Tables]:
    """`adapters` become current, or with a share candidates; `remove` go."""

    def apply(below: Tables) -> Tables:
        check_known(remove, below.names())
        current, candidates = below.current.without(remove), below.candidates.without(remove)
        if share is not None:
            return Tables(current, adapters.on_top_of(candidates), share)
        replaced = adapters.names()
        return Tables(adapters.on_top_of(current), candidates.without(replaced), below.share)

    return apply


def promotion(segments: Sequence[str] | None) -> Callable[[Tables], Tables]:
    """The candidates of `segments`, or all, become current."""

    def apply(below: Tables) -> Tables:
        waiting = below.candidates.names()
        if not waiting:
            raise StoreError("there is no candidate to promote; publish one with canary=")
        chosen = waiting if segments is None else segments
        check_known(chosen, waiting)
        promoted, rest = below.candidates.only(chosen), below.candidates.without(chosen)
        return Tables(promoted.on_top_of(below.current), rest, below.share)

    return apply


def restoration(
    earlier: Tables, segments: Sequence[str] | None, called: str
) -> Callable[[Tables], Tables]:
    """`segments`, or all, become what they were; candidates too, but of all only.

    Where they are that already it raises StoreError: `called` is live.
    """

    def apply(below: Tables) -> Tables:
        made = earlier
        if segments is not None:
            check_known(segments, [*below.current.names(), *earlier.current.names()])
            restored, rest = earlier.current.only(segments), below.current.without(segments)
            made = Tables(restored.on_top_of(rest), below.candidates, below.share)
        if is_same(below, made):
            of = "" if segments is None else f" for {some_of(segments)}"
            raise StoreError(f"{called} is what is live already{of}: name another --to")
        return made

    return apply


def is_same(one: Tables, other: Tables) -> bool:
    """Whether two releases of these tables say the same of every segment and every user."""
    shares_differ = len(one.candidates) > 0 and one.share != other.share
    pairs = (one.current, other.current), (one.candidates, other.candidates)
    return not shares_differ and all(_is_same_table(*pair) for pair in pairs)


def _is_same_table(one: PlacementTable, other: PlacementTable) -> bool:
    if (one.packs, one.metrics) != (other.packs, other.metrics):
        return False
    return all(
        np.array_equal(values, other.columns[name], equal_nan=name == "metrics")
        for name, values in one.columns.items()
    )


def brought(below: Tables, made: Tables) -> set[str]:
    """The sha256s of the packs of which `made` has adapters that `below` had not."""
    pairs = (below.current, made.current), (below.candidates, made.candidates)
    return {pack for old, new in pairs for _, pack, *_ in _places(new) - _places(old)}


def _places(table: PlacementTable) -> set[tuple[int, str, int, int]]:
    hashes, codes, indexes, serves = (
        table.columns[name].tolist() for name in ("hashes", "packs", "indexes", "serves_parent")
    )
    packs = [table.packs[code] for code in codes]
    return set(zip(hashes, packs, indexes, serves, strict=True))


def check_known(segments: Iterable[str], known: Sequence[str]) -> None:
    """Raise UnknownSegment, with near names, for the first of `segments` that is not known."""
    names = set(known)
    for segment in segments:
        if segment not in names:
            alike = near(segment, names) or f"; there is {some_of(sorted(names)) or 'none'}"
            raise UnknownSegment(f"there is no segment {segment!r} to change{alike}")


def some_of(segments: Sequence[str]) -> str:
    """The first three of them, and how many more there are."""
    more = f" and {len(segments) - 3:,} more" if len(segments) > 3 else ""
    return ", ".join(map(repr, segments[:3])) + more
