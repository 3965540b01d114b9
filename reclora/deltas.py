"""The delta kinds: low-rank (and, to compare with, full) changes of tables and of tower weights.

A batch is laid out by segment: G segments with B rows each. Every kind of table delta has one
    signature,

    forward(rows_GBD, ids_GB, segments_G) -> rows_GBD

it takes rows and returns them changed. A weight delta is a change of a whole matrix per segment,

    forward(weight_OI, segments_G) -> weight_GOI

What trains is stacked over segments in 2-D parameters whose first axis is ordered by segment, so
that one segment's numbers are a slice of each (`slices`), and a gradient holds only the rows of a
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TouchedRows:
    """Which rows of an N-row table each of S segments may change, and where their numbers stand.

    Segment s owns the slots `offsets[s] .. offsets[s+1]`; slot t belongs to table row `rows[t]`;
    within a segment the rows ascend. T = all slots together: memory follows the rows that segments
    touch, never S x N.
    """

    num_rows: int
    offsets_S1: Tensor
    rows_T: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor], num_rows: int) -> TouchedRows:
        """From one tensor of row numbers per segment, repeats allowed.

        Raises:
            IndexError: a row number is outside 0 .. num_rows - 1.
        """
        unique = [torch.unique(r) for r in rows]
        for segment, r in enumerate(unique):
            if len(r) and (r[0] < 0 or r[-1] >= num_rows):
                raise IndexError(
                    f"segment {segment} touches row {int(r[0] if r[0] < 0 else r[-1])}, "
                    f"but the table has rows 0 to {num_rows - 1}"
                )
        sizes = torch.tensor([0] + [len(r) for r in unique])
        return cls(
            num_rows, sizes.cumsum(0), torch.cat([torch.empty(0, dtype=torch.int64), *unique])
        )

    def __len__(self) -> int:
        return len(self.rows_T)

    @property
    def num_segments(self) -> int:
        return len(self.offsets_S1) - 1

    @cached_property
    def _keys_T(self) -> Tensor:
        segments = torch.arange(self.num_segments).repeat_interleave(self.offsets_S1.diff())
        return segments * self.num_rows + self.rows_T

    def slots(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """The slot of each (segment, row), shape (G, B); T where the segment does not touch the
        row.
        """
        if len(self) == 0:
            return torch.zeros_like(ids_GB)
        keys = segments_G.unsqueeze(1) * self.num_rows + ids_GB
        slots = torch.searchsorted(self._keys_T, keys).clamp_(max=len(self) - 1)
        return torch.where(self._keys_T[slots] == keys, slots, len(self))

    def slice(self, segment: int) -> slice:
        """The slots of one segment."""
        return slice(int(self.offsets_S1[segment]), int(self.offsets_S1[segment + 1]))


def _gather(param_TW: Tensor, slots: Tensor) -> Tensor:
    """Rows of a factor; the last one is padding: always zero, and it never has a gradient."""
    return F.embedding(slots, param_TW, padding_idx=len(param_TW) - 1, sparse=True)


def _blocks(param: Tensor, segments_G: Tensor, height: int) -> Tensor:
    """Block s of `height` rows for each segment, shape (G, height, width)."""
    rows = segments_G.unsqueeze(1) * height + torch.arange(height)
    return F.embedding(rows, param, sparse=True)


class RowsDelta(nn.Module):
    """Kind `rows`: row i of segment s becomes e + scaling * a_s[i] B_s.

    `a` (T x R) starts at zero, so a fresh delta changes nothing; each row of B_s (R x D) starts at
    random with length about one, so `a` is measured in the table's own units.

    Args:
        touched: the rows each segment may change.
        rank: R, 1 to D.
        embedding_dim: D.
        scaling: alpha / R.
        generators: one per segment, so that a segment starts the same in any company.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1, on the rows of a table.
    """

    def __init__(
        self,
        touched: TouchedRows,
        rank: int,
        embedding_dim: int,
        scaling: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.touched, self.rank, self.scaling = touched, rank, scaling
        self.a = nn.Parameter(torch.zeros(len(touched) + 1, rank))
        start = [torch.randn(rank, embedding_dim, generator=g) for g in generators]
        self.b = nn.Parameter(torch.cat(start) / embedding_dim**0.5)

    def forward(self, rows_GBD: Tensor, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted rows, shape (G, B, D)."""
        a_GBR = _gather(self.a, self.touched.slots(ids_GB, segments_G))
        b_GRD = _blocks(self.b, segments_G, self.rank)
        return torch.baddbmm(rows_GBD, a_GBR, b_GRD, alpha=self.scaling)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        r = self.rank
        return {"a": self.touched.slice(segment), "b": slice(segment * r, (segment + 1) * r)}


class FullDelta(nn.Module):
    """Kinds `full` and `bias`: row i of segment s becomes e + d_s[i], with d (T x D) starting at
    zero.

    On the item bias, a table one number wide, it is the kind `bias`. On the wide tables it is full
    fine-tuning of the touched rows: what low rank is compared with, and how a base model is
    pretrained.
    """

    def __init__(self, touched: TouchedRows, embedding_dim: int) -> None:
        super().__init__()
        self.touched = touched
        self.d = nn.Parameter(torch.zeros(len(touched) + 1, embedding_dim))

    def forward(self, rows_GBD: Tensor, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted rows, shape (G, B, D)."""
        return rows_GBD + _gather(self.d, self.touched.slots(ids_GB, segments_G))

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"d": self.touched.slice(segment)}


class LowRankWeight(nn.Module):
    """Kind `low_rank` of a weight: W_s = W + scaling * B_s A_s, with B (O x R) zero and A (R x I)
    random at the start.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1.
    """

    def __init__(
        self,
        shape_OI: tuple[int, int],
        rank: int,
        scaling: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        (self.out_features, in_features), self.rank, self.scaling = shape_OI, rank, scaling
        self.b = nn.Parameter(torch.zeros(len(generators) * self.out_features, rank))
        start = [torch.randn(rank, in_features, generator=g) for g in generators]
        self.a = nn.Parameter(torch.cat(start) / in_features**0.5)

    def forward(self, weight_OI: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted weights, shape (G, O, I)."""
        b_GOR = _blocks(self.b, segments_G, self.out_features)
        a_GRI = _blocks(self.a, segments_G, self.rank)
        return torch.baddbmm(weight_OI.unsqueeze(0), b_GOR, a_GRI, alpha=self.scaling)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        o, r = self.out_features, self.rank
        return {
            "b": slice(segment * o, (segment + 1) * o),
            "a": slice(segment * r, (segment + 1) * r),
        }


class FullWeight(nn.Module):
    """Kind `full` of a weight: W_s = W + D_s, with D (O x I) zero at the start."""

    def __init__(self, shape_OI: tuple[int, int], num_segments: int) -> None:
        super().__init__()
        self.out_features, in_features = shape_OI
        self.d = nn.Parameter(torch.zeros(num_segments * self.out_features, in_features))

    def forward(self, weight_OI: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted weights, shape (G, O, I)."""
        return weight_OI + _blocks(self.d, segments_G, self.out_features)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"d": slice(segment * self.out_features, (segment + 1) * self.out_features)}


TableDelta = RowsDelta | FullDelta
WeightDelta = LowRankWeight | FullWeight
