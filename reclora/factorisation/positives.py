"""This file is what a factorisation keeps of a log: its distinct (user, item) pairs, by either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reclora.interactions import Interactions

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Positives:
    """n pairs of a row of one side and a row of the other, each once, ordered by both.

    Attributes:
        offsets: the pairs of row r are `offsets[r]:offsets[r + 1]`.
        rows: n rows of the one side, ascending.
        others: n rows of the other, ascending within a row of the one.
        weights: n weights, of mean one.
        num_others: how many rows the other side has.
    """

    offsets: Rows
    rows: Rows
    others: Rows
    weights: NDArray[np.float32]
    num_others: int

    @classmethod
    def of(cls, log: Interactions) -> Positives:
        """The pairs of a log's users and items, whatever the segment; a pair that is there more
        than once has the largest of its weights.

        Raises:
            ValueError: the log has no row, or no row has a weight above 0.
        """
        if len(log) == 0:
            raise ValueError(f"{log!r} has no row to factorise; check its filters and windows")
        num_items = len(log.items)
        order = np.lexsort((log.item_rows, log.user_rows))
        keys = log.user_rows[order] * num_items + log.item_rows[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        weights = np.ones(len(first), np.float32)
        if log.weights is not None:
            weights = np.maximum.reduceat(log.weights[order], first)
            if not (weights > 0).any():
                raise ValueError(f"no row of {log!r} has a weight above 0: none would count")
            weights /= weights.mean()
        rows, others = np.divmod(keys[first], num_items)
        return cls(_offsets(rows, len(log.users)), rows, others, weights, num_items)

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def turned(self) -> Positives:
        """The same pairs by the other side."""
        order = np.argsort(self.others, kind="stable")
        rows, others = self.others[order], self.rows[order]
        offsets = _offsets(rows, self.num_others)
        return Positives(offsets, rows, others, self.weights[order], self.num_rows)

    def places_of(self, rows: Rows) -> tuple[Rows, Rows]:
        """Where the pairs of some rows are: (position in `rows`, position among the n pairs)."""
        sizes = np.diff(self.offsets)[rows]
        owner = np.repeat(np.arange(len(rows)), sizes)
        ends = np.cumsum(sizes)
        return owner, np.arange(len(owner)) + (self.offsets[rows] - ends + sizes)[owner]


def _offsets(rows: Rows, num_rows: int) -> Rows:
    return np.searchsorted(rows, np.arange(num_rows + 1)).astype(np.int64)
