"""This file is how a batch of mixed segments is laid out, so that each is worked on at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reclora.configs import AdapterError

TILE_COST = 4
"""What a tile costs beyond its rows, in rows: its factors are fetched and its product set up."""

ALL = slice(None)


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
    def present_P(self) -> Tensor:
        """The segments of the batch, each once, without -1."""
        present = self.segments_B[:1] if self.is_one else torch.unique(self.segments_B)
        return present[present >= 0]

    @cached_property
    def own_PB(self) -> Tensor:
        """For each segment of the batch one at its samples, and zero at the others."""
        return (self.present_P.unsqueeze(1) == self.segments_B).float()

    @cached_property
    def layout(self) -> Layout:
        """With the height that costs the least."""
        if self.is_one:
            return Layout(self.segments_B[:1], max(1, len(self)))
        return _layout(self.segments_B)

    @property
    def segments_G(self) -> Tensor:
        """The segment of each tile."""
        return self.layout.segments_G

    @property
    def height(self) -> int:
        """t."""
        return self.layout.height

    @cached_property
    def num_nobodys(self) -> int:
        """How many tiles are of segment -1; they are the first."""
        return int((self.segments_G < 0).sum())

    @property
    def as_they_came(self) -> bool:
        """Whether the tiles are the samples in their order: laying them out copies nothing."""
        return self.layout.samples is None

    @property
    def segments_1B(self) -> Tensor:
        """The segment of all samples, shape (1,), or that of each, shape (B,)."""
        return self.segments_B[:1] if self.is_one else self.segments_B

    def pack(self, x: Tensor, tiles: slice = ALL) -> Tensor:
        """(B, ...) -> (G, t, ...), of some tiles only if so wished."""
        layout = self.layout
        if layout.samples is None:
            return x.reshape(len(self.segments_G), self.height, *x.shape[1:])[tiles]
        samples = layout.samples.view(len(self.segments_G), self.height)[tiles]
        return x.index_select(0, samples.flatten()).view(*samples.shape, *x.shape[1:])

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


def _layout(segments_B: Tensor) -> Layout:
    sorted_B, order_B = torch.sort(segments_B, stable=True)
    segments_P, sizes_P = torch.unique_consecutive(sorted_B, return_counts=True)
    height = _cheapest_height(sizes_P)
    tiles_P = (sizes_P + height - 1).div(height, rounding_mode="floor")
    tile_of_P, start_of_P = tiles_P.cumsum(0) - tiles_P, sizes_P.cumsum(0) - sizes_P
    owner_G = torch.arange(len(segments_P)).repeat_interleave(tiles_P)
    segments_G, num_tiles = segments_P[owner_G], len(owner_G)
    if num_tiles * height == len(segments_B) and bool((sorted_B == segments_B).all()):
        return Layout(segments_G, height)
    first_G = start_of_P[owner_G] + (torch.arange(num_tiles) - tile_of_P[owner_G]) * height
    last_G = (start_of_P + sizes_P)[owner_G] - 1
    sorted_GT = first_G.unsqueeze(1) + torch.arange(height)
    samples = order_B[torch.minimum(sorted_GT, last_G.unsqueeze(1)).flatten()]
    shift_P = tile_of_P * height - start_of_P
    places_B = torch.empty_like(order_B)
    places_B[order_B] = torch.arange(len(order_B)) + shift_P.repeat_interleave(sizes_P)
    return Layout(segments_G, height, samples, places_B)


def _cheapest_height(sizes_P: Tensor) -> int:
    """The tile height for segments of these sizes: a power of two, or the largest size."""
    largest = int(sizes_P.max())
    powers = [1 << bits for bits in range(largest.bit_length())]
    heights = torch.tensor([height for height in powers if height < largest] + [largest])
    tiles = (sizes_P + heights.unsqueeze(1) - 1).div(heights.unsqueeze(1), rounding_mode="floor")
    return int(heights[(tiles.sum(1) * (heights + TILE_COST)).argmin()])
