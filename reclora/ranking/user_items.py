"""A set of items for each of many users: what they have seen, what is relevant to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.compiled import compiled


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
        found_VK = torch.empty(item_rows_VK.shape, dtype=torch.bool)
        _contains(
            self.offsets_U1.numpy(),
            self.item_rows.numpy(),
            positions_V.numpy(),
            item_rows_VK.numpy(),
            found_VK.numpy(),
        )
        return found_VK

    def take(self, positions_V: Tensor) -> UserItems:
        """The sets of some users: user v of the result is user positions_V[v] of this."""
        starts_V = self.offsets_U1[positions_V]
        # Not `sizes_U`: of a million users a few are taken, thousands of times.
        sizes_V = self.offsets_U1[positions_V + 1] - starts_V
        offsets_V1 = torch.cat([torch.zeros(1, dtype=torch.int64), sizes_V.cumsum(0)])
        shift_V = starts_V - offsets_V1[:-1]
        slots = torch.arange(int(offsets_V1[-1])) + shift_V.repeat_interleave(sizes_V)
        return UserItems(offsets_V1, self.item_rows[slots])


@compiled
def _contains(
    offsets_U1: NDArray[np.int64],
    item_rows: NDArray[np.int64],
    positions_V: NDArray[np.int64],
    item_rows_VK: NDArray[np.int64],
    found_VK: NDArray[np.bool_],
) -> None:
    for v in range(len(positions_V)):
        start, stop = offsets_U1[positions_V[v]], offsets_U1[positions_V[v] + 1]
        for place in range(item_rows_VK.shape[1]):
            item, low, high = item_rows_VK[v, place], start, stop
            while low < high:
                middle = (low + high) // 2
                if item_rows[middle] < item:
                    low = middle + 1
                else:
                    high = middle
            found_VK[v, place] = low < stop and item_rows[low] == item
