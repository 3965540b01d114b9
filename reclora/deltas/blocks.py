"""This file is how the factors of many segments stand in one parameter, block after block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Init = Literal["normal", "orthogonal"]


@dataclass(frozen=True)
class LowRank:
    """The size of a product of two factors.

    Attributes:
        rank: R, at least 1.
        scaling: alpha / R, or alpha / sqrt(R); what the product is multiplied by.
        init: how the factor starts that does not start at zero.
    """

    rank: int
    scaling: float
    init: Init = "normal"


@dataclass(frozen=True)
class Owners:
    """Which of S segments have a delta; each of them has one block of every stacked parameter.

    `places_S1[s]` is the place of segment s, -1 for a segment without the delta; the last entry,
    which code -1 reads, is -1. `generators` are one an owner, or none where what starts at random
    is about to be overwritten: then it starts at zero.
    """

    places_S1: Tensor
    count: int
    generators: tuple[torch.Generator, ...]

    @classmethod
    def of(
        cls, codes: Sequence[int], num_segments: int, generators: Sequence[torch.Generator]
    ) -> Owners:
        """Args:
        codes: the segments that have the delta.
        generators: one a segment of all, so that each starts the same in any company; or none.
        """
        places = torch.full((num_segments + 1,), -1)
        places[list(codes)] = torch.arange(len(codes))
        own = tuple(generators[code] for code in codes) if generators else ()
        return cls(places, len(codes), own)

    @classmethod
    def all(cls, generators: Sequence[torch.Generator]) -> Owners:
        """Every segment has the delta."""
        return cls.of(range(len(generators)), len(generators), generators)

    @classmethod
    def blank(cls, num_segments: int) -> Owners:
        """Every segment has the delta, and its numbers are about to be put in."""
        return cls.of(range(num_segments), num_segments, ())

    def __len__(self) -> int:
        return self.count

    def has(self, segment: int) -> bool:
        """Whether the segment has the delta."""
        return int(self.places_S1[segment]) >= 0

    def slice(self, segment: int, height: int) -> slice:
        """The rows of a segment's block in a stack of blocks of `height` rows."""
        place = int(self.places_S1[segment])
        return slice(0, 0) if place < 0 else slice(place * height, (place + 1) * height)

    def blocks(self, param: Tensor, segments_G: Tensor, height: int) -> Tensor:
        """The block of each segment, shape (G, height, width); zeros where it has none."""
        places_G = self.places_S1[segments_G]
        missing_G = places_G < 0
        if not bool(missing_G.any()):
            return _gather(param, places_G, height).view(-1, height, param.shape[1])
        rows = places_G.unsqueeze(1) * height + torch.arange(height)
        return gather(param, torch.where(missing_G.unsqueeze(1), len(param) - 1, rows))

    def zeros(self, height: int, width: int) -> nn.Parameter:
        """A stack of blocks of zeros."""
        return nn.Parameter(torch.zeros(len(self) * height + 1, width, dtype=torch.float32))

    def random(self, height: int, width: int, init: Init) -> nn.Parameter:
        """A stack of random blocks whose rows have length about one (`normal`), or exactly one and
        are at right angles to each other (`orthogonal`).

        A factor that starts so leaves the other, which starts at zero, in the units of what is
        changed.
        """
        if not self.generators:
            return self.zeros(height, width)
        start = [
            torch.randn(height, width, generator=g, dtype=torch.float32) for g in self.generators
        ]
        if init == "orthogonal":
            start = [torch.linalg.qr(block.T)[0].T for block in start]
        else:
            start = [block / width**0.5 for block in start]
        return nn.Parameter(torch.cat([*start, torch.zeros(1, width, dtype=torch.float32)]))


def gather(param: Tensor, rows: Tensor) -> Tensor:
    """Rows of a parameter; the last one is padding: always zero, and it never has a gradient."""
    return _gather(param, rows, 1)


def _gather(param: Tensor, places: Tensor, height: int) -> Tensor:
    """Blocks of `height` rows of a parameter, by place; shape (*places, width), or the rows of all
    blocks, one after the other, where `height` is more than 1.
    """
    if not torch.is_grad_enabled():
        return _taken(param, places, height)
    gathered: Tensor = _Gather.apply(param, places, height)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """`_taken`, whose gradient is made of the same rows."""

    @staticmethod
    def forward(ctx: Any, param: Tensor, places: Tensor, height: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.height, ctx.shape = height, param.shape
        return _taken(param, places, height)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,), height, shape = ctx.saved_tensors, ctx.height, ctx.shape
        rows, values = places.flatten(), grad.reshape(-1, shape[1])
        if height > 1:
            rows = (rows.unsqueeze(1) * height + torch.arange(height)).flatten()
        padding = rows == shape[0] - 1
        if bool(padding.any()):
            kept = (~padding).nonzero().squeeze(1)
            rows, values = rows[kept], values.index_select(0, kept)
        gradient = torch.sparse_coo_tensor(
            rows.unsqueeze(0),
            values,
            shape,
            check_invariants=False,
            is_coalesced=places.numel() <= 1,
        )
        return gradient, None, None


def _taken(param: Tensor, places: Tensor, height: int) -> Tensor:
    width = param.shape[1]
    if height == 1:
        return param.index_select(0, places.flatten()).view(*places.shape, width)
    blocks = param[:-1].view(-1, height * width)
    return blocks.index_select(0, places).view(-1, width)
