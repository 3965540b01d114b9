"""This file is which items a step's positives compete with, where not every item: some, drawn by
counting.

J items are drawn with replacement, common to the users of a step, from

    q_i = (popularity_i + 1 / N) / 2

and weighted by 1 / (J q_j) in a sum and by 1 / (N q_j) in a mean, so that either is expected to be
that over the catalogue. To a softmax the weight is the log-Q correction, s_j - log(J q_j).

Source: Bengio and Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural
Probabilistic Language Model", IEEE Transactions on Neural Networks 2008, section III.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reclora.counted import U64, mix
from reclora.factorisation.positives import Positives

Cells = tuple[Tensor, Tensor]
"""Places in a matrix: rows and columns."""


@dataclass(frozen=True)
class Negatives:
    """Items drawn for one step.

    Attributes:
        rows_J: item rows, ascending; one may be there more than once.
        q_J: the probability of each at one draw.
        num_items: N.
    """

    rows_J: Tensor
    q_J: Tensor
    num_items: int

    def weights(self, *, as_sum: bool) -> Tensor:
        """What each counts for in a sum, or in a mean, over the catalogue; shape (J,)."""
        return 1 / (self.q_J * (len(self.q_J) if as_sum else self.num_items))

    def cells(self, owner_B: Tensor, item_B: Tensor) -> Cells:
        """Where the owners' own items are among the negatives: (owner, column) of each."""
        begin_B = torch.searchsorted(self.rows_J, item_B)
        times_B = torch.searchsorted(self.rows_J, item_B, right=True) - begin_B
        before_B = begin_B - (times_B.cumsum(0) - times_B)
        columns = torch.arange(int(times_B.sum())) + before_B.repeat_interleave(times_B)
        return owner_B.repeat_interleave(times_B), columns


class Sampler:
    """Draws the negatives of each step: half by popularity, half uniformly.

    Args:
        positives: by user; an item's popularity is its share of the pairs.
        stream: one number, shape (1,): what is drawn is a function of it, the epoch and the step.
    """

    def __init__(self, positives: Positives, num_negatives: int, stream: U64) -> None:
        self._items, self._num_items = positives.others, positives.num_others
        self._num_negatives, self._stream = num_negatives, stream
        count_N = np.bincount(self._items, minlength=self._num_items)
        q_N = (count_N / len(self._items) + 1 / self._num_items) / 2
        self._q_N = torch.from_numpy(q_N.astype(np.float32))

    def draw(self, epoch: int, step: int) -> Negatives:
        """The J negatives of a step."""
        stream = mix(self._stream + np.uint64(epoch << 32 | step))
        counters = np.arange(2 * self._num_negatives, dtype=np.uint64)
        coins, numbers = mix(stream ^ counters).reshape(2, -1)
        popular = self._items[(numbers % np.uint64(len(self._items))).astype(np.int64)]
        uniform = (numbers % np.uint64(self._num_items)).astype(np.int64)
        rows_J = torch.from_numpy(np.sort(np.where(coins >> np.uint64(63), popular, uniform)))
        return Negatives(rows_J, self._q_N[rows_J], self._num_items)
