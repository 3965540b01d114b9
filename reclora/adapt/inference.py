"""This file is low-rank changes of a layer's output where nothing has a gradient: in place, and in
the order that memory likes.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from reclora.adapt.mixed import Tiles
from reclora.deltas import LowRankWeight

CACHED_NUMBERS = 1 << 18
"""Numbers that tiles may need at once: 1 MB, a core's second cache."""
MOST_COLUMNS = 32
"""Ranks of all segments of a batch together, up to which every sample is multiplied with all of
them: from there on it is dearer than to sort the samples."""


def with_change(tiles: Tiles, delta: LowRankWeight, x: Tensor, y: Tensor) -> Tensor:
    """y + scaling * B_s (A_s x); `y` (B, ..., O) is the layer's own and is written to."""
    y = y.contiguous()
    if not tiles.is_one and len(tiles.present_P) * delta.rank <= MOST_COLUMNS:
        a_PRI, b_POR = _factors(delta, tiles.present_P)
        if _add_masked(tiles, delta.scaling, a_PRI, b_POR, x, y):
            return y
    return _with_tiles(tiles, delta, x, y)


def _factors(delta: LowRankWeight, segments: Tensor) -> tuple[Tensor, Tensor]:
    """A (P, R, I) and B (P, O, R) of segments, every one of which has the delta."""
    stacks = (delta.a, delta.rank), (delta.b, delta.out_features)
    a_PRI, b_POR = (
        stack[:-1]
        .view(len(delta.owners), -1)
        .index_select(0, segments)
        .view(len(segments), height, stack.shape[1])
        for stack, height in stacks
    )
    return a_PRI, b_POR


def _add_masked(
    tiles: Tiles, scaling: float, a_PRI: Tensor, b_POR: Tensor, x: Tensor, y: Tensor
) -> bool:
    """All samples with the factors of all segments, times one for their own and zero for others.

    What is not finite would reach other segments, as zero times it is not zero: then nothing is
    done, and False returned.
    """
    hidden_CB = torch.mm(a_PRI.flatten(0, 1), x.reshape(-1, x.shape[-1]).T)
    own_PB = tiles.own_PB
    if x.dim() > 2:
        own_PB = own_PB.repeat_interleave(hidden_CB.shape[1] // len(tiles), 1)
    hidden_CB.view(*a_PRI.shape[:2], -1).mul_(own_PB.unsqueeze(1))
    if not isfinite(hidden_CB.sum().item() + b_POR.sum().item()):
        return False
    b_CO = b_POR.transpose(1, 2).reshape(len(hidden_CB), -1)
    y.view(-1, y.shape[-1]).addmm_(hidden_CB.T, b_CO, alpha=scaling)
    return True


def _with_tiles(tiles: Tiles, delta: LowRankWeight, x: Tensor, y: Tensor) -> Tensor:
    """Some tiles at a time, so that what they need stays in the cache."""
    segments_G, num_tiles, fused = tiles.segments_G, len(tiles.segments_G), tiles.as_they_came
    changes = y if fused else y.new_empty(num_tiles * tiles.height, *y.shape[1:])
    change_GBO = changes.view(num_tiles, -1, delta.out_features)
    if not fused:
        change_GBO[: tiles.num_nobodys].zero_()
    numbers = (x.shape[-1] + delta.out_features) * (change_GBO.shape[1] + delta.rank)
    step = max(1, CACHED_NUMBERS // numbers)
    for first in range(tiles.num_nobodys, num_tiles, step):
        some = slice(first, min(first + step, num_tiles))
        a_GRI, b_GOR = _factors(delta, segments_G[some])
        x_GBI = tiles.pack(x, some).flatten(1, -2)
        hidden_GBR = torch.bmm(a_GRI, x_GBI.transpose(1, 2)).transpose(1, 2)
        change_GBO[some].baddbmm_(
            hidden_GBR, b_GOR.transpose(1, 2), beta=int(fused), alpha=delta.scaling
        )
    return y if fused else y.add_(tiles.unpack(changes.view(num_tiles, tiles.height, *y.shape[1:])))
