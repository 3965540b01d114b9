"""This file is what a factorisation keeps of a log: its distinct (user, item) pairs, by either; and
of the rows that say no, those that can teach.
"""

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
        weights: n weights, of mean one; of declined pairs in the measure of the positive ones.
        num_others: how many rows the other side has.
        mean_weight: what the log's weights were divided by.
    """

    offsets: Rows
    rows: Rows
    others: Rows
    weights: NDArray[np.float32]
    num_others: int
    mean_weight: float = 1.0

    @classmethod
    def of(cls, log: Interactions) -> Positives:
        """The pairs of a log's users and items, whatever the segment; a pair that is there more
        than once has the largest of its weights.

        Raises:
            ValueError: the log has no row, or no row has a weight above 0.
        """
        if len(log) == 0:
            raise ValueError(f"{log!r} has no row to factorise; check its filters and windows")
        keys, weights = _distinct(log)
        mean = np.float32(1)
        if log.weights is not None:
            if not (weights > 0).any():
                raise ValueError(f"no row of {log!r} has a weight above 0: none would count")
            mean = weights.mean()
            weights /= mean
        rows, others = np.divmod(keys, len(log.items))
        offsets = _offsets(rows, len(log.users))
        return cls(offsets, rows, others, weights, len(log.items), float(mean))

    def declined(self, log: Interactions) -> Positives:
        """The pairs of a log of declined rows, on the same id maps: of users who have a positive
        pair, and without the pairs that are positive ones. There may be none.

        The row of a user who took nothing would flee all items and be drawn to none: such a user
        is one without rows. What was declined once and taken another time was taken.
        """
        keys, weights = _distinct(log)
        rows, others = np.divmod(keys, self.num_others)
        own = self.rows * self.num_others + self.others
        kept = (np.diff(self.offsets)[rows] > 0) & ~np.isin(keys, own)
        rows, others, weights = rows[kept], others[kept], weights[kept] / self.mean_weight
        offsets = _offsets(rows, self.num_rows)
        weights = weights.astype(np.float32)
        return Positives(offsets, rows, others, weights, self.num_others, self.mean_weight)

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


def _distinct(log: Interactions) -> tuple[Rows, NDArray[np.float32]]:
    """A log's pairs, ascending as user row * items + item row, each with its largest weight."""
    order = np.lexsort((log.item_rows, log.user_rows))
    keys = log.user_rows[order] * len(log.items) + log.item_rows[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    if log.weights is None:
        return keys[first], np.ones(len(first), np.float32)
    return keys[first], np.maximum.reduceat(log.weights[order], first)


def _offsets(rows: Rows, num_rows: int) -> Rows:
    return np.searchsorted(rows, np.arange(num_rows + 1)).astype(np.int64)
