"""Exact top-k over the catalogue, a tile of users and items at a time.

The list of a user holds the k best-scored candidates that the user has not seen, best first; of
equal scores the lower item row comes first. A tile of scores is made, reduced to what can still
enter a list (`selection`), and forgotten: it never leaves the processor's cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reclora.ranking.selection import keep_best, write_lists
from reclora.ranking.user_items import UserItems

TILE_BYTES = 4 * 2**20
_TILE_USERS = 512


class Scorer(Protocol):
    """What can be ranked: anything that scores items of the catalogue for some users."""

    @property
    def num_items(self) -> int:
        """N, the number of items in the catalogue."""

    def scores(self, user_rows_B: Tensor, items: slice) -> Tensor:
        """Scores of the C items of the slice, float32, shape (B, C), never written into; -inf: not
        a candidate.
        """


@dataclass(frozen=True, repr=False)
class RankedLists:
    """The lists of U users, best first."""

    item_rows_UK: Tensor
    """int64; -1 where a user has fewer than K candidates."""
    scores_UK: Tensor
    """float32; -inf where a user has fewer than K candidates."""

    def __repr__(self) -> str:
        users, k = self.item_rows_UK.shape
        shorter = int((self.item_rows_UK < 0).any(1).sum())
        few = f", {shorter:,} with fewer candidates" if shorter else ""
        return f"RankedLists({users:,} users, k={k}{few})"


def rank(
    scorer: Scorer,
    user_rows_U: Tensor,
    k: int,
    *,
    seen: UserItems | None = None,
    candidates_N: Tensor | None = None,
    tile_bytes: int = TILE_BYTES,
    segment: str = "",
) -> RankedLists:
    """The k best candidates of each user, exactly, ties by item row ascending.

    Args:
        scorer: scores items for a block of users.
        user_rows_U: int64, the users, as the scorer knows them.
        k: list length K, at least 1; lists are padded where k exceeds the candidates.
        seen: items to leave out; its user u is the user at user_rows_U[u].
        candidates_N: bool, the items that may be recommended; all of them if not given.
        tile_bytes: size of a tile of scores, B users x C items x 4 bytes, at least one score; the
            extra memory is a few such tiles, whatever the catalogue.
        segment: what errors call the segment.

    Raises:
        TypeError: the users are no tensor, but a list of rows or ids.
        ValueError: k is below 1, a shape or type does not fit, or a score is NaN or +inf: then no
            order is right.
    """
    if not isinstance(user_rows_U, Tensor):
        raise TypeError(
            f"user_rows_U must be a tensor of user rows, got {type(user_rows_U).__name__}: give "
            "torch.tensor(rows), or for ids torch.tensor(base.users.rows_of(ids))"
        )
    num_users, num_items = len(user_rows_U), scorer.num_items
    _check_arguments(num_items, user_rows_U, k, seen, candidates_N)
    if seen is None:
        nothing = torch.empty(0, dtype=torch.int64)
        seen = UserItems.from_pairs(nothing, nothing, num_users)
    item_rows_UK = torch.full((num_users, k), -1)
    scores_UK = torch.full((num_users, k), -math.inf)
    places = min(k, num_items)
    at_once = max(1, min(_TILE_USERS, num_users, tile_bytes // 4))
    tile_items = min(num_items, max(1, tile_bytes // (4 * at_once)))
    keys_BX = np.empty((at_once, 2 * places + tile_items), np.int64)
    for start in range(0, num_users, at_once):
        users = slice(start, min(start + at_once, num_users))
        counts_B = np.zeros(users.stop - start, np.int64)
        floors_B = np.full(len(counts_B), -np.inf, np.float32)
        seen_offsets_B1 = seen.offsets_U1[start : users.stop + 1].numpy()
        for first in range(0, num_items, tile_items):
            items = slice(first, min(first + tile_items, num_items))
            scores_BC = _tile(scorer, user_rows_U[users], items, candidates_N, segment)
            bad = keep_best(
                scores_BC.numpy(),
                first,
                places,
                seen_offsets_B1,
                seen.item_rows.numpy(),
                keys_BX,
                counts_B,
                floors_B,
            )
            if bad >= 0:
                bad_user, item_rows = (
                    user_rows_U[[start + bad]],
                    torch.arange(items.start, items.stop),
                )
                check_order(scores_BC[[bad]], bad_user, item_rows.unsqueeze(0), segment)
        write_lists(
            keys_BX, counts_B, places, item_rows_UK[users].numpy(), scores_UK[users].numpy()
        )
    return RankedLists(item_rows_UK, scores_UK)


@torch.no_grad()
def _tile(
    scorer: Scorer, user_rows_B: Tensor, items: slice, candidates_N: Tensor | None, segment: str
) -> Tensor:
    """The scores of a tile, contiguous; -inf where an item is no candidate."""
    shape = (len(user_rows_B), items.stop - items.start)
    scores_BC = checked(scorer.scores(user_rows_B, items), shape, segment)
    if candidates_N is not None:
        # A score without an order stays one: no list is to be made of such a model.
        closed_BC = ~candidates_N[items] & (scores_BC < math.inf)
        scores_BC = scores_BC.masked_fill(closed_BC, -math.inf)
    return scores_BC.contiguous()


def checked(scores_BC: Tensor, shape: tuple[int, int], segment: str) -> Tensor:
    """What a scorer gave, without its graph and on the CPU; another shape or type is refused
    (ValueError).
    """
    if scores_BC.shape != shape or scores_BC.dtype != torch.float32:
        raise ValueError(
            f"segment {segment!r}: scores must be float32 of shape {shape}, "
            f"got {scores_BC.dtype} of shape {tuple(scores_BC.shape)}"
        )
    return scores_BC.detach().cpu()


def check_order(scores_BC: Tensor, user_rows_B: Tensor, item_rows_BC: Tensor, segment: str) -> None:
    """Refuse scores that have no order, NaN and +inf (ValueError); they name segment and pair."""
    bad = (~(scores_BC < math.inf)).nonzero()
    if len(bad):
        user, column = bad[0].tolist()
        raise ValueError(
            f"segment {segment!r}: scores must be finite or -inf, but that of user row "
            f"{int(user_rows_B[user])} and item row {int(item_rows_BC[user, column])} is "
            f"{float(scores_BC[user, column])}; look for NaN or inf in the model's tensors"
        )


def _check_arguments(
    num_items: int,
    user_rows_U: Tensor,
    k: int,
    seen: UserItems | None,
    candidates_N: Tensor | None,
) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if num_items < 1:
        raise ValueError("the scorer has no items; there is nothing to rank")
    if seen is not None and len(seen) != len(user_rows_U):
        raise ValueError(
            f"seen must have one set per user, got {len(seen)} sets for {len(user_rows_U)} users; "
            "take the users' sets with UserItems.take"
        )
    if seen is not None and len(seen.item_rows) and int(seen.item_rows.max()) >= num_items:
        raise ValueError(
            f"seen holds item row {int(seen.item_rows.max())}, but the scorer has item rows 0 to "
            f"{num_items - 1}; use one item id map for both"
        )
    if candidates_N is not None and (
        candidates_N.shape != (num_items,) or candidates_N.dtype != torch.bool
    ):
        raise ValueError(
            f"candidates_N must be bool of shape ({num_items},), "
            f"got {candidates_N.dtype} of shape {tuple(candidates_N.shape)}"
        )
