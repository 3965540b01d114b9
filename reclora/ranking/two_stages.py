"""Ranking in two stages: retrieve by the dot product, rank what was retrieved by the tower.

A product with every item is cheap, the tower is not: it looks at the C best of the first stage. Its
lists are exact among those C; what the first stage missed is lost, which the metrics of the first
stage show.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from reclora.ranking.catalogue import RankedLists, Scorer, check_order, checked, rank
from reclora.ranking.user_items import UserItems

_PAIRS_AT_ONCE = 2**18


@runtime_checkable
class PairScorer(Protocol):
    """What scores some items for each user."""

    def pair_scores(self, user_rows_B: Tensor, item_rows_BC: Tensor) -> Tensor:
        """Scores of each user's own C items, float32, shape (B, C)."""


@runtime_checkable
class TwoStageScorer(Scorer, PairScorer, Protocol):
    """A scorer whose score has a cheap first part."""

    def retriever(self) -> Scorer:
        """The first stage, over the same items."""


def rank_in_two_stages(
    scorer: TwoStageScorer,
    user_rows_U: Tensor,
    k: int,
    retrieve: int,
    *,
    seen: UserItems | None = None,
    candidates_N: Tensor | None = None,
    segment: str = "",
) -> tuple[RankedLists, RankedLists]:
    """The lists of the first stage, `retrieve` long, and of the second, k long.

    Args:
        k: list length, 1 to `retrieve`.
        scorer, user_rows_U, seen, candidates_N, segment: as in `rank`.

    Raises:
        ValueError: as `rank` does, for a score of either stage; or k is above `retrieve`.
    """
    if not 1 <= k <= retrieve:
        raise ValueError(f"k must be within 1 to retrieve, {retrieve}, got {k}")
    retrieved = rank(
        scorer.retriever(),
        user_rows_U,
        retrieve,
        seen=seen,
        candidates_N=candidates_N,
        segment=segment,
    )
    # Ascending items and a stable sort by score: ties by item row, as everywhere.
    item_rows_UC = retrieved.item_rows_UK.sort(dim=1).values
    blocks = torch.split(torch.arange(len(user_rows_U)), max(1, _PAIRS_AT_ONCE // retrieve))
    lists = [
        _rank_pairs(scorer, user_rows_U[block], item_rows_UC[block], k, segment) for block in blocks
    ]
    return retrieved, RankedLists(
        torch.cat([each.item_rows_UK for each in lists]),
        torch.cat([each.scores_UK for each in lists]),
    )


@torch.no_grad()
def _rank_pairs(
    scorer: TwoStageScorer, user_rows_B: Tensor, item_rows_BC: Tensor, k: int, segment: str
) -> RankedLists:
    is_item_BC = item_rows_BC >= 0
    B, C = item_rows_BC.shape
    scores_BC = checked(scorer.pair_scores(user_rows_B, item_rows_BC.clamp(min=0)), (B, C), segment)
    scores_BC = scores_BC.masked_fill(~is_item_BC, -math.inf)
    check_order(scores_BC, user_rows_B, item_rows_BC, segment)
    scores_BC, order_BC = scores_BC.sort(dim=1, descending=True, stable=True)
    item_rows_BC = item_rows_BC.gather(1, order_BC).masked_fill(scores_BC == -math.inf, -1)
    return RankedLists(item_rows_BC[:, :k], scores_BC[:, :k])
