"""Who is served by what in a release, and the lists that come of it, chunk by chunk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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

from .wanted import Candidates, Wanted

CHUNK = 2048
"""Lists that are ranked at once: whole tiles of `rank`."""


class Served:
    """The scorers of a release: who is served by what is decided here, in `scorer`.

    Its `base` is grown by the identifiers that the release's adapters bring.

    Raises:
        BaseMismatch, StoreError: as `AdapterStore.load_stacks`.
    """

    def __init__(self, base: BaseModel, store: AdapterStore, release: Release) -> None:
        stacks = store.load_stacks(base_fingerprint=base.fingerprint, release=release)
        self.release = release
        self.base, banks = _banks(base, stacks)
        self._bank_of = {name: bank for bank in banks for name in bank.segment_names}
        self._frozen = self.base.scorer()
        self._of_parents: dict[int, Scorer] = {}

    def scorer(self, segment: str | None) -> Scorer:
        """The scorer of a segment's users; of no segment, or one without an adapter: the base's."""
        bank = None if segment is None else self._bank_of.get(segment)
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
        """Whether a segment is served by anything but the base."""
        return segment in self._bank_of


def _banks(base: BaseModel, stacks: Sequence[AdapterStack]) -> tuple[BaseModel, list[AdapterBank]]:
    """A bank for the adapters of each parent, all over one base that has the ids of all of them."""
    by_parent: dict[int, list[AdapterStack]] = {}
    for stack in stacks:
        by_parent.setdefault(id(stack.parent), []).append(stack)
    grown, banks = base, list[AdapterBank]()
    for group in by_parent.values():
        banks.append(AdapterBank.of(grown, [adapter for stack in group for adapter in stack]))
        grown = banks[-1].base
    if any(bank.base.users != grown.users or bank.base.items != grown.items for bank in banks):
        return _banks(grown, stacks)
    return grown, banks


@dataclass(frozen=True)
class Chunk:
    """Some lists of one segment."""

    lists: int
    rows: pa.Table
    opening_cpu_s: float | None
    """What making the scorer took; None where the chunk before it had the same."""
    ranking_cpu_s: float


@dataclass(frozen=True)
class Work:
    """The lists to make, part by part."""

    served: Served
    wanted: Wanted
    seen: UserItems
    candidates: Candidates
    k: int
    lists_per_part: int

    @property
    def num_parts(self) -> int:
        return -(-len(self.wanted) // self.lists_per_part)

    def lists(self, part: int) -> slice:
        """The places of a part's lists among those that are wanted."""
        first = part * self.lists_per_part
        return slice(first, min(first + self.lists_per_part, len(self.wanted)))

    def warm_up(self) -> None:
        """Rank one list: the first one waits for code to be compiled and tables to be read."""
        for segment, user_rows in self.wanted.runs(slice(0, 1)):
            self._rank(self.served.scorer(segment), segment, user_rows, None)

    def chunks(self, part: int) -> Iterator[Chunk]:
        for segment, user_rows in self.wanted.runs(self.lists(part)):
            began = time.process_time()
            scorer = self.served.scorer(segment)
            mask_N = self.candidates.mask(segment)
            opening: float | None = time.process_time() - began
            for first in range(0, len(user_rows), CHUNK):
                some = user_rows[first : first + CHUNK]
                began = time.process_time()
                table = self._rank(scorer, segment, some, mask_N)
                yield Chunk(len(some), table, opening, time.process_time() - began)
                opening = None

    def _rank(
        self,
        scorer: Scorer,
        segment: str | None,
        user_rows: NDArray[np.int64],
        mask_N: Tensor | None,
    ) -> pa.Table:
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
        places, ranks = np.nonzero(is_item_UK)
        base = self.served.base
        return pa.table(
            {
                "user_id": base.users.ids_of(user_rows[places]),
                "segment": pa.repeat(pa.scalar(segment, pa.large_string()), len(places)),
                "rank": pa.array(ranks + 1, pa.int32()),
                "item_id": base.items.ids_of(lists.item_rows_UK.numpy()[is_item_UK]),
                "score": pa.array(lists.scores_UK.numpy()[is_item_UK], pa.float32()),
                "release": np.full(len(places), self.served.release.number, np.int64),
            }
        )
