"""Who is served by what in a release, and the lists that come of it, chunk by chunk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.interactions.contract import NO_VALUE
from reclora.ranking import Scorer, UserItems, rank
from reclora.stacks import AdapterStack
from reclora.store import AdapterStore, Release

from .candidate_items import CandidateItems
from .wanted import Rows, Wanted

CHUNK = 2048
"""Lists that are ranked at once: whole tiles of `rank`."""


class Served:
    """The scorers of a release: who is served by what is decided here.

    Its `base` is grown by the identifiers that the release's adapters bring.

    Args:
        candidates: read what waits in the release's canary too; it brings identifiers as well.

    Raises:
        BaseMismatch, StoreError: as `AdapterStore.load_stacks`.
    """

    def __init__(
        self, base: BaseModel, store: AdapterStore, release: Release, *, candidates: bool = False
    ) -> None:
        load = partial(store.load_stacks, base_fingerprint=base.fingerprint, release=release)
        waiting = load(candidates=True) if candidates and release.canary is not None else []
        self.release = release
        self.base, banks = _banks(base, (load(), waiting))
        self._bank_of, self._bank_of_candidate = (
            {name: bank for bank in found for name in bank.segment_names} for found in banks
        )
        self._frozen = self.base.scorer()
        self._of_parents: dict[int, Scorer] = {}

    def scorer(self, segment: str | None, candidate: bool = False) -> Scorer:
        """The scorer of a segment's users; of no segment, or one without an adapter: the base's.

        Args:
            candidate: that of the segment's candidate, where it has one.
        """
        has_own = candidate and segment in self._bank_of_candidate
        banks = self._bank_of_candidate if has_own else self._bank_of
        bank = None if segment is None else banks.get(segment)
        if segment is None or bank is None:
            return self._frozen
        if bank.has_delta(bank.code(segment)):
            return bank.scorer(segment)
        # All that a parent serves have its scores.
        if id(bank) not in self._of_parents:
            self._of_parents[id(bank)] = bank.scorer(segment)
        return self._of_parents[id(bank)]

    @property
    def main_parent(self) -> Adapter | None:
        """What most segments stand on; None where that is the base."""
        segments = Counter[int]()
        parents: dict[int, Adapter | None] = {}
        for bank in self._bank_of.values():
            segments[id(bank.parent_adapter)] += 1
            parents[id(bank.parent_adapter)] = bank.parent_adapter
        return parents[segments.most_common(1)[0][0]] if segments else None

    def standing_on(self, parent: Adapter | None) -> dict[str, Adapter]:
        """Segment -> its own adapter, of those that stand on this parent."""
        return {
            name: bank.adapter(name)
            for name, bank in self._bank_of.items()
            if bank.parent_adapter is parent and bank.has_delta(bank.code(name))
        }

    def has_adapter(self, segment: str) -> bool:
        """Whether what is current in a segment is anything but the base."""
        return segment in self._bank_of

    def is_candidate(self, wanted: Wanted) -> NDArray[np.bool_]:
        """Which lists a candidate makes, bool, shape (L,): their segment has one, and their user is
        among the canary's share.
        """
        found_L = np.zeros(len(wanted), np.bool_)
        canary = self.release.canary
        if canary is None:
            return found_L
        has_one = [name in self._bank_of_candidate for name in (*wanted.segments, None)]
        places = np.flatnonzero(np.array(has_one)[wanted.codes_L])
        users, user_of = np.unique(wanted.user_rows_L[places], return_inverse=True)
        found_L[places] = canary.is_for(self.base.users.ids_of(users))[user_of]
        return found_L


def _banks(
    base: BaseModel, maps: Sequence[Sequence[AdapterStack]]
) -> tuple[BaseModel, list[list[AdapterBank]]]:
    """For each map a bank for the adapters of each parent, all over one base that has the ids of
    all of them.
    """
    grown, found = base, [list[AdapterBank]() for _ in maps]
    for banks, stacks in zip(found, maps, strict=True):
        for group in _by_parent(stacks):
            banks.append(AdapterBank.of(grown, [adapter for stack in group for adapter in stack]))
            grown = banks[-1].base
    bases = [bank.base for banks in found for bank in banks]
    if any(each.users != grown.users or each.items != grown.items for each in bases):
        return _banks(grown, maps)
    return grown, found


def _by_parent(stacks: Sequence[AdapterStack]) -> list[list[AdapterStack]]:
    groups: dict[int, list[AdapterStack]] = {}
    for stack in stacks:
        groups.setdefault(id(stack.parent), []).append(stack)
    return list(groups.values())


@dataclass(frozen=True)
class Chunk:
    """Some lists of one segment, all by one scorer."""

    lists: int
    rows: pa.Table
    places: Rows
    """Of each row: the place of its list among those that are wanted."""
    opening_cpu_s: float | None
    """What making the scorer took; None where the chunk before it had the same."""
    ranking_cpu_s: float


def in_order(chunks: Sequence[Chunk]) -> pa.Table:
    """The rows of chunks in the order of their lists."""
    rows = pa.concat_tables([chunk.rows for chunk in chunks])
    places = np.concatenate([chunk.places for chunk in chunks])
    if (places[1:] >= places[:-1]).all():
        return rows
    return rows.take(pa.array(np.argsort(places, kind="stable")))


@dataclass(frozen=True)
class Work:
    """The lists to make, part by part."""

    served: Served
    wanted: Wanted
    seen: UserItems
    items: CandidateItems
    k: int
    lists_per_part: int

    def __post_init__(self) -> None:
        if self.k > len(self.served.base.items):
            raise ValueError(
                f"k must be at most the number of items, {len(self.served.base.items):,}, got "
                f"{self.k:,}; shorter lists hold all there is"
            )

    @property
    def num_parts(self) -> int:
        return -(-len(self.wanted) // self.lists_per_part)

    @cached_property
    def is_candidate_L(self) -> NDArray[np.bool_]:
        """Which of the lists that are wanted a candidate makes."""
        return self.served.is_candidate(self.wanted)

    @property
    def num_of_candidates(self) -> int:
        return int(self.is_candidate_L.sum())

    def lists(self, part: int) -> slice:
        """The places of a part's lists among those that are wanted."""
        first = part * self.lists_per_part
        return slice(first, min(first + self.lists_per_part, len(self.wanted)))

    def warm_up(self) -> None:
        """Rank one list: the first one waits for code to be compiled and tables to be read."""
        for segment, places in self.wanted.runs(slice(0, 1)):
            self._rank(self.served.scorer(segment), segment, places, None)

    def by_scorer(self, part: int) -> Iterator[tuple[str | None, Rows]]:
        """(segment, the places of its lists) of all that one scorer makes of a part."""
        for segment, places in self.wanted.runs(self.lists(part)):
            is_candidate = self.is_candidate_L[places]
            shares = (places[~is_candidate], places[is_candidate])
            yield from ((segment, share) for share in shares if len(share))

    def chunks(self, part: int) -> Iterator[Chunk]:
        """The lists of a part; those of a segment's candidate follow its others, see `in_order`."""
        for segment, places in self.by_scorer(part):
            began = time.process_time()
            scorer = self.served.scorer(segment, bool(self.is_candidate_L[places[0]]))
            mask_N = self.items.mask(segment)
            opening: float | None = time.process_time() - began
            for first in range(0, len(places), CHUNK):
                some = places[first : first + CHUNK]
                began = time.process_time()
                table, of_rows = self._rank(scorer, segment, some, mask_N)
                yield Chunk(len(some), table, of_rows, opening, time.process_time() - began)
                opening = None

    def _rank(
        self, scorer: Scorer, segment: str | None, places: Rows, mask_N: Tensor | None
    ) -> tuple[pa.Table, Rows]:
        """The rows of some lists, and the place of each row's list."""
        user_rows = self.wanted.user_rows_L[places]
        users_U = torch.from_numpy(user_rows)
        lists = rank(
            scorer,
            users_U,
            self.k,
            seen=self.seen.take(users_U),
            candidates_N=mask_N,
            segment=NO_VALUE if segment is None else segment,
        )
        is_item_UK = lists.item_rows_UK.numpy() >= 0
        own, ranks = np.nonzero(is_item_UK)
        base = self.served.base
        rows = pa.table(
            {
                "user_id": base.users.ids_of(user_rows[own]),
                "segment": pa.repeat(pa.scalar(segment, pa.large_string()), len(own)),
                "rank": pa.array(ranks + 1, pa.int32()),
                "item_id": base.items.ids_of(lists.item_rows_UK.numpy()[is_item_UK]),
                "score": pa.array(lists.scores_UK.numpy()[is_item_UK], pa.float32()),
                "release": np.full(len(own), self.served.release.number, np.int64),
                "candidate": self.is_candidate_L[places[own]],
            }
        )
        return rows, places[own]
