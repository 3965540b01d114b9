"""This file is which items a segment's positives compete with: some, drawn by counting, but never
what the user has taken in the segment.

J items are drawn with replacement for each segment and step, common to its rows, half of them by
their share of the segment's n_s rows, half uniformly; of an odd J one more uniformly:

    q_i = ( floor(J / 2) n_si / n_s + ceil(J / 2) / N ) / J

and a softmax corrects each by its chance: s_j - log(J q_j), so that the sum over the J is expected
to be the sum over the catalogue. What is popular in a segment competes most there, and few of J
uniform draws would be it. BPR, which compares pair by pair, draws uniformly.

Source: Bengio and Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural
Probabilistic Language Model", IEEE Transactions on Neural Networks 2008, section III.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.compiled import compiled
from reclora.counted import U64, mix, step_streams
from reclora.interactions import Interactions


class Sampler:
    """Draws the negatives of each segment and step.

    Args:
        log: whose segments.
        num_negatives: J.
        by_popularity: half of them by their popularity in the segment; else all uniformly.
        taken: what users have taken beside the log's rows, on its id maps and segments.
    """

    def __init__(
        self,
        log: Interactions,
        num_negatives: int,
        by_popularity: bool,
        taken: Interactions | None = None,
    ) -> None:
        self._offsets, self._items, self._num_items = log.offsets, log.item_rows, len(log.items)
        self._num_negatives, self._by_popularity = num_negatives, by_popularity
        logs = [log] if taken is None else [log, taken]
        pairs = np.concatenate([its.segment_rows * len(its.users) + its.user_rows for its in logs])
        items = np.concatenate([its.item_rows for its in logs])
        _, whose, sizes = np.unique(pairs, return_inverse=True, return_counts=True)
        self._pairs = whose[: len(log)]
        self._own_offsets = np.concatenate([[0], sizes.cumsum()])
        self._own_items = items[np.argsort(whose, kind="stable")]
        if by_popularity:
            keys = log.segment_rows * self._num_items + log.item_rows
            self._keys, self._counts = np.unique(keys, return_counts=True)

    def draw(
        self, segments_G: NDArray[np.int64], seeds_G: U64, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Item rows, and the logarithm of J times their chance; both of shape (G, J).

        Of uniform draws the second is zero: theirs is one constant, which no comparison sees.

        Args:
            segments_G: codes of segments that have rows.
        """
        streams_G1 = step_streams(seeds_G, epoch, step)[:, None]
        numbers_GJ = mix(streams_G1 ^ np.arange(self._num_negatives, dtype=np.uint64)[None, :])
        uniform_GJ = (numbers_GJ % np.uint64(self._num_items)).astype(np.int64)
        if not self._by_popularity:
            return torch.from_numpy(uniform_GJ), torch.zeros(uniform_GJ.shape)
        begins_G1 = self._offsets[segments_G][:, None]
        sizes_G1 = self._offsets[segments_G + 1][:, None] - begins_G1
        places_GJ = begins_G1 + (numbers_GJ % sizes_G1.astype(np.uint64)).astype(np.int64)
        # The last is uniform, so that even a single draw may be any item.
        is_uniform_J = (self._num_negatives - np.arange(self._num_negatives)) % 2 == 1
        rows_GJ = np.where(is_uniform_J, uniform_GJ, self._items[places_GJ])
        popular_GJ = self._counts_of(segments_G, rows_GJ) / sizes_G1
        uniform = int(is_uniform_J.sum())
        expected_GJ = (self._num_negatives - uniform) * popular_GJ + uniform / self._num_items
        log_GJ = np.log(expected_GJ)
        return torch.from_numpy(rows_GJ), torch.from_numpy(log_GJ.astype(np.float32))

    def own(self, rows_GB: NDArray[np.int64], negative_GJ: Tensor) -> Tensor:
        """Which negatives the user of each row has taken in the segment; bool, (G, B, J).

        Args:
            rows_GB: rows of the log.
        """
        own_GBJ = np.empty((*rows_GB.shape, negative_GJ.shape[1]), np.bool_)
        stamps_N = np.zeros(self._num_items, np.int32)
        pairs_GB = self._pairs[rows_GB]
        offsets, items = self._own_offsets, self._own_items
        _mark(pairs_GB, offsets, items, negative_GJ.numpy(), stamps_N, own_GBJ)
        return torch.from_numpy(own_GBJ)

    def _counts_of(
        self, segments_G: NDArray[np.int64], rows_GJ: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How often each item is in its segment."""
        keys_GJ = segments_G[:, None] * self._num_items + rows_GJ
        at_GJ = np.searchsorted(self._keys, keys_GJ)
        at_GJ[at_GJ == len(self._keys)] = 0
        return np.where(self._keys[at_GJ] == keys_GJ, self._counts[at_GJ], 0)


@compiled
def _mark(
    pairs_GB: NDArray[np.int64],
    offsets: NDArray[np.int64],
    items: NDArray[np.int64],
    negative_GJ: NDArray[np.int64],
    stamps_N: NDArray[np.int32],
    own_GBJ: NDArray[np.bool_],
) -> None:
    """The items of each row's pair are stamped with the row's number; who bears it is marked."""
    stamp = 0
    for g in range(pairs_GB.shape[0]):
        for b in range(pairs_GB.shape[1]):
            stamp += 1
            pair = pairs_GB[g, b]
            for at in range(offsets[pair], offsets[pair + 1]):
                stamps_N[items[at]] = stamp
            for j in range(negative_GJ.shape[1]):
                own_GBJ[g, b, j] = stamps_N[negative_GJ[g, j]] == stamp
