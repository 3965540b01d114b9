"""This file is how the factors of many segments stand in one parameter, block after block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    which code -1 reads, is -1.
    """

    places_S1: Tensor
    generators: tuple[torch.Generator, ...]

    @classmethod
    def of(
        cls, codes: Sequence[int], num_segments: int, generators: Sequence[torch.Generator]
    ) -> Owners:
        """Args:
        codes: the segments that have the delta.
        generators: one a segment of all, so that each starts the same in any company.
        """
        places = torch.full((num_segments + 1,), -1)
        places[list(codes)] = torch.arange(len(codes))
        return cls(places, tuple(generators[code] for code in codes))

    @classmethod
    def all(cls, generators: Sequence[torch.Generator]) -> Owners:
        """Every segment has the delta."""
        return cls.of(range(len(generators)), len(generators), generators)

    def __len__(self) -> int:
        return len(self.generators)

    def has(self, segment: int) -> bool:
        """Whether the segment has the delta."""
        return int(self.places_S1[segment]) >= 0

    def slice(self, segment: int, height: int) -> slice:
        """The rows of a segment's block in a stack of blocks of `height` rows."""
        place = int(self.places_S1[segment])
        return slice(0, 0) if place < 0 else slice(place * height, (place + 1) * height)

    def blocks(self, param: Tensor, segments_G: Tensor, height: int) -> Tensor:
        """The block of each segment, shape (G, height, width); zeros where it has none."""
        places_G1 = self.places_S1[segments_G].unsqueeze(1)
        rows = places_G1 * height + torch.arange(height)
        if len(self) < len(self.places_S1) - 1 or bool((places_G1 < 0).any()):
            rows = torch.where(places_G1 >= 0, rows, len(param) - 1)
        return gather(param, rows)

    def zeros(self, height: int, width: int) -> nn.Parameter:
        """A stack of blocks of zeros."""
        return nn.Parameter(torch.zeros(len(self) * height + 1, width))

    def random(self, height: int, width: int, init: Init) -> nn.Parameter:
        """A stack of random blocks whose rows have length about one (`normal`), or exactly one and
        are at right angles to each other (`orthogonal`).

        A factor that starts so leaves the other, which starts at zero, in the units of what is
        changed.
        """
        start = [torch.randn(height, width, generator=g) for g in self.generators]
        if init == "orthogonal":
            start = [torch.linalg.qr(block.T)[0].T for block in start]
        else:
            start = [block / width**0.5 for block in start]
        return nn.Parameter(torch.cat([*start, torch.zeros(1, width)]))


def gather(param: Tensor, rows: Tensor) -> Tensor:
    """Rows of a parameter; the last one is padding: always zero, and it never has a gradient."""
    return F.embedding(rows, param, padding_idx=len(param) - 1, sparse=True)
