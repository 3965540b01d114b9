"""Exact top-k over the catalogue, in blocks of users.

The list of a user holds the k best-scored candidates that the user has not seen, best first; of
equal scores the lower item row comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

BLOCK_BYTES = 16 * 2**20


class Scorer(Protocol):
    """What can be ranked: anything that scores the whole catalogue for some users."""

    @property
    def num_items(self) -> int:
        """N, the number of items in the catalogue."""

    def scores(self, user_rows_B: Tensor) -> Tensor:
        """Scores of all items, float32, shape (B, N), never written into; -inf: not a candidate."""


@dataclass(frozen=True)
class UserItems:
    """A set of items for each of U users.

    Those of user u are `item_rows[offsets_U1[u] : offsets_U1[u + 1]]`, each once, ascending.
    """

    offsets_U1: Tensor
    item_rows: Tensor

    @classmethod
    def from_pairs(cls, positions: Tensor, item_rows: Tensor, num_users: int) -> UserItems:
        """From (user position, item row) pairs in any order; repeated pairs count once.

        Args:
            positions: int64, each within 0 to num_users - 1.
            item_rows: int64, as many, each at least 0.
            num_users: U.

        Raises:
            IndexError: a position or an item row is out of range.
        """
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < num_users:
            raise IndexError(
                f"positions must be within 0 to {num_users - 1}, "
                f"got {int(positions.min())} to {int(positions.max())}"
            )
        if len(item_rows) and int(item_rows.min()) < 0:
            raise IndexError(f"item rows must be at least 0, got {int(item_rows.min())}")
        stride = int(item_rows.max()) + 1 if len(item_rows) else 1
        keys = torch.unique(positions * stride + item_rows)
        offsets_U1 = torch.searchsorted(keys, torch.arange(num_users + 1) * stride)
        return cls(offsets_U1, keys % stride)

    def __len__(self) -> int:
        return len(self.offsets_U1) - 1

    @property
    def sizes_U(self) -> Tensor:
        """How many items each user has, int64, shape (U,)."""
        return self.offsets_U1.diff()

    def contains(self, positions_V: Tensor, item_rows_VK: Tensor) -> Tensor:
        """Whether item_rows_VK[v] are in the set of user positions_V[v]; -1 is in no set."""
        if len(self.item_rows) == 0:
            return torch.zeros_like(item_rows_VK, dtype=torch.bool)
        keys_VK = positions_V.unsqueeze(1) * self._stride + item_rows_VK
        slots_VK = torch.searchsorted(self._keys, keys_VK).clamp_(max=len(self._keys) - 1)
        in_range_VK = (item_rows_VK >= 0) & (item_rows_VK < self._stride)
        return in_range_VK & (self._keys[slots_VK] == keys_VK)

    def take(self, positions_V: Tensor) -> UserItems:
        """The sets of some users: user v of the result is user positions_V[v] of this."""
        sizes_V = self.sizes_U[positions_V]
        offsets_V1 = torch.cat([torch.zeros(1, dtype=torch.int64), sizes_V.cumsum(0)])
        shift_V = self.offsets_U1[positions_V] - offsets_V1[:-1]
        slots = torch.arange(int(offsets_V1[-1])) + shift_V.repeat_interleave(sizes_V)
        return UserItems(offsets_V1, self.item_rows[slots])

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(position - start, item row) of all items of the users at positions start to stop - 1."""
        first, last = int(self.offsets_U1[start]), int(self.offsets_U1[stop])
        sizes = self.offsets_U1[start : stop + 1].diff()
        return torch.arange(stop - start).repeat_interleave(sizes), self.item_rows[first:last]

    @cached_property
    def _keys(self) -> Tensor:
        positions = torch.arange(len(self)).repeat_interleave(self.sizes_U)
        return positions * self._stride + self.item_rows

    @cached_property
    def _stride(self) -> int:
        return int(self.item_rows.max()) + 1 if len(self.item_rows) else 1


@dataclass(frozen=True)
class RankedLists:
    """The lists of U users, best first."""

    item_rows_UK: Tensor
    """int64; -1 where a user has fewer than K candidates."""
    scores_UK: Tensor
    """float32; -inf where a user has fewer than K candidates."""


def rank(
    scorer: Scorer,
    user_rows_U: Tensor,
    k: int,
    *,
    seen: UserItems | None = None,
    candidates_N: Tensor | None = None,
    block_bytes: int = BLOCK_BYTES,
    segment: str = "",
) -> RankedLists:
    """The k best candidates of each user, exactly, ties by item row ascending.

    Args:
        scorer: scores N items for a block of users.
        user_rows_U: int64, the users, as the scorer knows them.
        k: list length K, at least 1; lists are padded where k exceeds the candidates.
        seen: items to leave out; its user u is the user at user_rows_U[u].
        candidates_N: bool, the items that may be recommended; all of them if not given.
        block_bytes: size of a block of scores, B users x N items x 4 bytes, at least one user; the
            extra memory is a few such blocks.
        segment: what errors call the segment.

    Raises:
        ValueError: k is below 1, a shape or type does not fit, or a score is NaN or +inf: then no
            order is right.
    """
    _check_arguments(scorer.num_items, user_rows_U, k, seen, candidates_N)
    num_users = len(user_rows_U)
    item_rows_UK = torch.full((num_users, k), -1)
    scores_UK = torch.full((num_users, k), -math.inf)
    block = max(1, block_bytes // (4 * scorer.num_items))
    with torch.no_grad():
        for start in range(0, num_users, block):
            stop = min(start + block, num_users)
            user_rows_B = user_rows_U[start:stop]
            scores_BN = scorer.scores(user_rows_B)
            _check_scores(scores_BN, scorer.num_items, user_rows_B, segment)
            if candidates_N is None:
                open_BN = scores_BN.clone(memory_format=torch.contiguous_format)
            else:
                open_BN = scores_BN.masked_fill(~candidates_N, -math.inf)
            if seen is not None:
                open_BN[seen.pairs(start, stop)] = -math.inf
            items, scores = _top(open_BN, min(k, scorer.num_items))
            item_rows_UK[start:stop, : items.shape[1]] = items
            scores_UK[start:stop, : items.shape[1]] = scores
    item_rows_UK[scores_UK == -math.inf] = -1
    return RankedLists(item_rows_UK, scores_UK)


def _top(scores_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Item rows and scores of the k <= N best, by score descending, then by item row ascending."""
    values, items = scores_BN.topk(min(k + 1, scores_BN.shape[1]))
    items_BK = items[:, :k]
    if scores_BN.shape[1] > k:
        # topk takes any of several equal scores: it shows where the last in equals the first out.
        tied_B = (values[:, k - 1] == values[:, k]) & (values[:, k] > -math.inf)
        if tied_B.any():
            items_BK[tied_B] = _lowest_rows(scores_BN[tied_B], values[tied_B, k - 1], k)
    items_BK = items_BK.sort(dim=1).values
    scores_BK, order_BK = scores_BN.gather(1, items_BK).sort(dim=1, descending=True, stable=True)
    return items_BK.gather(1, order_BK), scores_BK


def _lowest_rows(scores_BN: Tensor, threshold_B: Tensor, k: int) -> Tensor:
    """The items above the k-th best score, then of those equal to it the lowest rows, k in all."""
    above_BN = scores_BN > threshold_B.unsqueeze(1)
    equal_BN = scores_BN == threshold_B.unsqueeze(1)
    room_B1 = k - above_BN.sum(dim=1, keepdim=True)
    chosen_BN = above_BN | (equal_BN & (equal_BN.cumsum(dim=1, dtype=torch.int32) <= room_B1))
    return chosen_BN.nonzero()[:, 1].view(-1, k)


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


def _check_scores(scores_BN: Tensor, num_items: int, user_rows_B: Tensor, segment: str) -> None:
    shape = (len(user_rows_B), num_items)
    if scores_BN.shape != shape or scores_BN.dtype != torch.float32:
        raise ValueError(
            f"segment {segment!r}: scores must be float32 of shape {shape}, "
            f"got {scores_BN.dtype} of shape {tuple(scores_BN.shape)}"
        )
    # One pass finds both: the maximum of a row that holds NaN is NaN, and NaN < inf is false.
    bad_B = ~(scores_BN.amax(dim=1) < math.inf)
    if bad_B.any():
        user = int(bad_B.nonzero()[0])
        item = int((~(scores_BN[user] < math.inf)).nonzero()[0])
        raise ValueError(
            f"segment {segment!r}: scores must be finite or -inf, but that of user row "
            f"{int(user_rows_B[user])} and item row {item} is {float(scores_BN[user, item])}; "
            "look for NaN or inf in the model's tensors"
        )
