"""This file is exact ranking over a sharded catalogue: users stay, blocks of items pass by.

Each rank ranks its own users. Every block of items is brought to every rank, is adapted there for
each segment, and is forgotten: the k best so far and the k best of the block make the new k best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterError
from reclora.distributed.shards import ShardedBase
from reclora.evaluation import HeldOutSegment
from reclora.ranking import RankedLists, UserItems, rank
from reclora.scoring import CatalogueScorer

BLOCK_ITEMS = 1 << 16
"""Items that pass by at once."""


@dataclass(frozen=True)
class Request:
    """Some users of a segment, who want lists."""

    adapter: Adapter | None
    """None is the base alone."""
    user_rows_U: Tensor
    """int64, rows of the base."""
    seen: UserItems | None = None
    """Items to leave out; its user u is the user at user_rows_U[u]."""
    candidates_N: Tensor | None = None
    """bool, the items that may be recommended; all of them if not given."""
    segment: str = ""
    """What errors call it."""

    @classmethod
    def of(cls, piece: HeldOutSegment, adapter: Adapter | None) -> Request:
        """Of the users of a held-out segment, or of a piece of it."""
        users_U, candidates_N = piece.user_rows_U, piece.candidates_N
        return cls(adapter, users_U, piece.seen, candidates_N, piece.name)


def rank_sharded(base: ShardedBase, requests: Sequence[Request], k: int) -> list[RankedLists]:
    """The k best candidates of each request's users, as `rank` finds them; collective.

    The last bit of a score may be another where other users are scored at once, as it may be with
    `rank`.

    Args:
        requests: of this rank, of adapters that bring no item of their own; ranks
            may have different numbers of them, also none.
        k: list length, at least 1; the same on every rank.

    Raises:
        AdapterError: as `AdapterBank.of`; or an adapter brings items that the base does not know.
        ValueError: as `rank`.
    """
    nothing = torch.empty(0, dtype=torch.int64)
    users = base.part(torch.cat([nothing, *(r.user_rows_U for r in requests)]), nothing)
    found = [_nothing_yet(len(request.user_rows_U), k) for request in requests]
    for first in range(0, base.num_items, BLOCK_ITEMS):
        items = torch.arange(first, min(first + BLOCK_ITEMS, base.num_items))
        # A rank without requests only helps the others.
        block = base.part(nothing, items if requests else nothing)
        here = replace(users, item_table=block.item_table, item_bias=block.item_bias)
        for at, request in enumerate(requests):
            found[at] = _merged(found[at], _of_block(here, request, items, k), k)
    return found


def _nothing_yet(num_users: int, k: int) -> RankedLists:
    return RankedLists(torch.full((num_users, k), -1), torch.full((num_users, k), -torch.inf))


@torch.no_grad()
def _of_block(base: BaseModel, request: Request, items_C: Tensor, k: int) -> RankedLists:
    """The k best of a block, by the items' rows in the catalogue."""
    scorer = _scorer(base, request.adapter, items_C)
    first, stop = int(items_C[0]), int(items_C[-1]) + 1
    lists = rank(
        scorer,
        request.user_rows_U,
        k,
        seen=None if request.seen is None else _within(request.seen, first, stop),
        candidates_N=None if request.candidates_N is None else request.candidates_N[first:stop],
        segment=request.segment,
    )
    rows_UK = torch.where(lists.item_rows_UK < 0, -1, lists.item_rows_UK + first)
    return RankedLists(rows_UK, lists.scores_UK)


def _scorer(base: BaseModel, adapter: Adapter | None, items_C: Tensor) -> CatalogueScorer:
    """Of some items alone, as a catalogue of their own."""
    if adapter is None:
        vectors_CD, bias_C1 = base.item_table.lookup(items_C), base.item_bias.lookup(items_C)
        layers = base.tower.layers() if base.tower else []
        return CatalogueScorer(base.user_table.lookup, vectors_CD, bias_C1.squeeze(1), layers)
    bank = AdapterBank.of(base, [adapter])
    if bank.base.item_table.num_rows > base.item_table.num_rows:
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} brings items that the base does not know: "
            "its catalogue is not the base's; rank it with `rank`"
        )
    segments_1, items_1C = torch.tensor([0]), items_C.unsqueeze(0)
    return CatalogueScorer(
        lambda rows: bank.users(rows.unsqueeze(0), segments_1)[0][0],
        bank.items(items_1C, segments_1)[0][0],
        bank.biases(items_1C, segments_1)[0],
        bank.layers(segments_1),
    )


def _within(sets: UserItems, first: int, stop: int) -> UserItems:
    """The items of each user's set that are in a block, as rows of the block."""
    inside = (sets.item_rows >= first) & (sets.item_rows < stop)
    before = torch.cat([torch.zeros(1, dtype=torch.int64), inside.cumsum(0)])
    return UserItems(before[sets.offsets_U1], sets.item_rows[inside] - first)


def _merged(best: RankedLists, more: RankedLists, k: int) -> RankedLists:
    """The k best of two lists, of which the second's items all have higher rows.

    A stable sort keeps the lower item rows first among equal scores.
    """
    scores = torch.cat([best.scores_UK, more.scores_UK], 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    rows = torch.cat([best.item_rows_UK, more.item_rows_UK], 1).gather(1, order)
    return RankedLists(rows[:, :k], scores[:, :k])
