"""This file is how a batch of mixed segments is laid out, so that each is worked on at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.configs import AdapterError

TILE_COST = 8
"""What a tile costs beyond its rows, in rows: its factors are fetched and its product set up."""


@dataclass(frozen=True)
class Layout:
    """How samples stand in G tiles of t.

    Attributes:
        segments_G: the segment of each tile, ascending where there are several.
        height: t.
        samples: the sample at each of the G * t places; None where they stand as they came.
        places_B: where each sample stands; None likewise.
    """

    segments_G: Tensor
    height: int
    samples: Tensor | None = None
    places_B: Tensor | None = None


@dataclass(frozen=True)
class Tiles:
    """B samples, sorted by segment and cut into G tiles of t samples of one segment.

    A segment may stand in several tiles. Where its samples do not fill the last of them, its last
    sample is repeated: what is computed for it twice is read once.

    Attributes:
        segments_B: the segment of each sample; -1 is nobody's.
    """

    segments_B: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.segments_B)

    @cached_property
    def is_one(self) -> bool:
        """Whether all samples are of one segment."""
        return len(self) == 0 or bool((self.segments_B == self.segments_B[0]).all())

    @cached_property
    def layout(self) -> Layout:
        """With the height that costs the least."""
        if self.is_one:
            return Layout(self.segments_B[:1], max(1, len(self)))
        return _layout(self.segments_B.numpy())

    @property
    def segments_G(self) -> Tensor:
        """The segment of each tile."""
        return self.layout.segments_G

    @property
    def height(self) -> int:
        """t."""
        return self.layout.height

    @property
    def segments_1B(self) -> Tensor:
        """The segment of all samples, shape (1,), or that of each, shape (B,)."""
        return self.segments_B[:1] if self.is_one else self.segments_B

    def pack(self, x: Tensor) -> Tensor:
        """(B, ...) -> (G, t, ...); nothing is copied where the samples stand as they came."""
        layout = self.layout
        if layout.samples is not None:
            x = x.index_select(0, layout.samples)
        return x.reshape(len(layout.segments_G), layout.height, *x.shape[1:])

    def unpack(self, y: Tensor) -> Tensor:
        """(G, t, ...) -> (B, ...)"""
        rows, places_B = y.flatten(0, 1), self.layout.places_B
        return rows if places_B is None else rows.index_select(0, places_B)

    def spread(self, where: str, x: Tensor) -> Tensor:
        """`x` with one part a sample; a single part is everybody's.

        Raises:
            AdapterError: its first dimension is neither B nor 1.
        """
        if x.dim() and x.shape[0] == len(self):
            return x
        if x.dim() and x.shape[0] == 1:
            return x.expand(len(self), *x.shape[1:])
        raise AdapterError(
            f"module {where!r} got an input of shape {tuple(x.shape)}, but there are {len(self)} "
            f"samples in `segments`: the first dimension must be the samples, or 1 for an input "
            f"that all of them share; reshape it in the model, or do not adapt this module"
        )


# In numpy: on vectors of a few thousand numbers its operators cost a fifth of torch's.
def _layout(segments_B: NDArray[np.int64]) -> Layout:
    num_samples = len(segments_B)
    small = np.iinfo(np.int16).max >= segments_B.max()
    # Numbers of 16 bits are sorted by counting.
    order_B = np.argsort(segments_B.astype(np.int16) if small else segments_B, kind="stable")
    sorted_B = segments_B[order_B]
    starts_P = np.flatnonzero(np.concatenate([[True], sorted_B[1:] != sorted_B[:-1]]))
    ends_P = np.append(starts_P[1:], num_samples)
    sizes_P = ends_P - starts_P
    height = _cheapest_height(sizes_P)
    tiles_P = -(-sizes_P // height)
    first_tile_P = tiles_P.cumsum() - tiles_P
    owner_G = np.repeat(np.arange(len(sizes_P)), tiles_P)
    num_tiles, segments_G = len(owner_G), torch.from_numpy(sorted_B[starts_P][owner_G])
    if num_tiles * height == num_samples and np.array_equal(sorted_B, segments_B):
        return Layout(segments_G, height)
    first_G = starts_P[owner_G] + (np.arange(num_tiles) - first_tile_P[owner_G]) * height
    sorted_GT = np.minimum(first_G[:, None] + np.arange(height), ends_P[owner_G][:, None] - 1)
    places_B = np.empty(num_samples, dtype=np.int64)
    shift_P = first_tile_P * height - starts_P
    places_B[order_B] = np.arange(num_samples) + np.repeat(shift_P, sizes_P)
    samples = torch.from_numpy(order_B[sorted_GT.reshape(-1)])
    return Layout(segments_G, height, samples, torch.from_numpy(places_B))


def _cheapest_height(sizes_P: NDArray[np.int64]) -> int:
    """The tile height for segments of these sizes: a power of two, or the largest size."""
    largest = int(sizes_P.max())
    heights = np.append(2 ** np.arange((largest - 1).bit_length()), largest)
    tiles = -(-sizes_P // heights[:, None])
    return int(heights[(tiles.sum(1) * (heights + TILE_COST)).argmin()])
