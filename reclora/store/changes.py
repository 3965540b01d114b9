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


def restoration(earlier: Tables, segments: Sequence[str] | None) -> Callable[[Tables], Tables]:
    """`segments`, or all, become what they were; candidates too, but of all only."""

    def apply(below: Tables) -> Tables:
        if segments is None:
            return earlier
        check_known(segments, [*below.current.names(), *earlier.current.names()])
        restored, rest = earlier.current.only(segments), below.current.without(segments)
        return Tables(restored.on_top_of(rest), below.candidates, below.share)

    return apply


def check_known(segments: Iterable[str], known: Sequence[str]) -> None:
    """Raise UnknownSegment, with near names, for the first of `segments` that is not known."""
    names = set(known)
    for segment in segments:
        if segment not in names:
            raise UnknownSegment(
                f"there is no segment {segment!r} to change" + near(segment, names)
            )
