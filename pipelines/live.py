"""What is live: the scorers of a release in the store."""

from __future__ import annotations

from collections.abc import Callable

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.ranking import Scorer
from reclora.store import AdapterStore, Release

KNOWN_UNTIL = "chosen on rows until"
"""In a release's metrics: the last moment that training and choosing knew, seconds since 1970."""


def scorer_of_release(
    store: AdapterStore, release: Release, base: BaseModel
) -> Callable[[str], Scorer]:
    """Segment name -> scorer of its adapter in a release; of a segment that it lacks: the base.

    Raises:
        BaseMismatch: the release's adapters belong to another base; raised for the first segment.
    """
    frozen = base.scorer()

    def scorer_of(segment: str) -> Scorer:
        if segment not in release.segments:
            return frozen
        adapter = store.load(segment, base_fingerprint=base.fingerprint, release=release)
        return AdapterBank.of(base, [adapter]).scorer(segment)

    return scorer_of
