"""This file is how ranks that work at their own pace help each other at what takes all of them.

Fetching rows of the base and letting its items pass by are collective. But a rank trains as long as
its segments take, and knows nothing of the others' epochs. So whoever needs something calls for a
round, and the others join when they need something themselves, or stand by with nothing to do. In a
round every rank says first what it wants; only what somebody wants is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from reclora.base import BaseModel
from reclora.distributed.placement import DistributedError
from reclora.distributed.ranking import Request, rank_sharded
from reclora.distributed.shards import ShardedBase
from reclora.ranking import RankedLists


class Rounds:
    """The rounds of the ranks of a sharded base, until all of them stand by.

    Raises:
        DistributedError: in a round that could not be finished; then the ranks cannot go on.
    """

    def __init__(self, base: ShardedBase) -> None:
        self._base = base

    def part(self, user_rows: Tensor, item_rows: Tensor) -> BaseModel:
        """The base with these rows; as `ShardedBase.part`, as soon as all have joined."""
        return self._round((user_rows, item_rows), [])[0]

    def lists(self, requests: Sequence[Request], k: int) -> list[RankedLists]:
        """The lists of some users; as `rank_sharded`, as soon as all have joined."""
        return self._round(None, requests, k)[1] if requests else []

    def stand_by(self) -> None:
        """Help the others until every rank stands by: then all that any of them did is done."""
        while self._round(None, [], is_busy=False)[2]:
            pass

    def _round(
        self,
        rows: tuple[Tensor, Tensor] | None,
        requests: Sequence[Request],
        k: int = 1,
        *,
        is_busy: bool = True,
    ) -> tuple[BaseModel, list[RankedLists], bool]:
        """A part, lists, and whether any rank is busy."""
        wanted = torch.tensor([is_busy, rows is not None, bool(requests)], dtype=torch.uint8)
        part, lists = self._base.without_rows, list[RankedLists]()
        try:
            dist.all_reduce(wanted, dist.ReduceOp.MAX, group=self._base.group)
            if wanted[1]:
                nothing = torch.empty(0, dtype=torch.int64)
                part = self._base.part(*(rows or (nothing, nothing)))
            if wanted[2]:
                lists = rank_sharded(self._base, requests, k)
        except (MemoryError, RuntimeError) as error:
            # The others are in the middle of it: nobody may go on with something else.
            raise DistributedError(f"a round of the ranks has failed: {error}") from error
        return part, lists, bool(wanted[0])
