"""This file is the kinds that own numbers for each touched row: `rows`, `basis`, `full`, `bias`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reclora.counted import mix
from reclora.deltas.blocks import LowRank, Owners, gather
from reclora.deltas.dropout import Dropout
from reclora.deltas.touched import TouchedRows


class RowsDelta(nn.Module):
    """Kind `rows`: row i of segment s becomes e + scaling * a_s[i] B_s.

    `a` (T x R) starts at zero, so a fresh delta changes nothing; each row of B_s (R x D) starts at
    random with length about one, so `a` is measured in the table's own units.

    With a magnitude, direction and length are learned apart: with v = e + scaling * a_s[i] B_s

        row = (|e| + m_s[i]) * v / |v|            m (T x 1) starts at zero

    which costs one number a touched row, and a norm a row of the batch.

    Args:
        touched: the rows each segment may change; those of segments that own the delta.
        owners: the segments that have it.
        embedding_dim: D.
        low_rank: R, 1 to D, and the scaling.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1, on the rows of a table; Liu et al., "DoRA",
    ICML 2024, section 4.1, for the magnitude, here of rows as they are what is looked up.
    """

    kind: ClassVar = "rows"
    random_start: ClassVar = ("b",)
    moves_all_rows: ClassVar = False

    def __init__(
        self,
        touched: TouchedRows,
        owners: Owners,
        embedding_dim: int,
        low_rank: LowRank,
        magnitude: bool = False,
    ) -> None:
        super().__init__()
        self.touched, self.owners = touched, owners
        self.rank, self.scaling = low_rank.rank, low_rank.scaling
        self.a = nn.Parameter(torch.zeros(len(touched) + 1, self.rank, dtype=torch.float32))
        self.b = owners.random(self.rank, embedding_dim, low_rank.init)
        self.m = (
            nn.Parameter(torch.zeros(len(touched) + 1, 1, dtype=torch.float32))
            if magnitude
            else None
        )

    def forward(
        self,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Adapted rows, shape (G, B, D)."""
        slots_GB = self.touched.slots(ids_GB, segments_G)
        a_GBR = gather(self.a, slots_GB)
        if dropout is not None:
            a_GBR = dropout(a_GBR, ids_GB)
        v_GBD = self.changed(rows_GBD, a_GBR, segments_G)
        if self.m is None:
            return v_GBD
        # One formula for both, so that the factor of an unchanged row is exactly one.
        factor: Tensor = (_length(rows_GBD) + gather(self.m, slots_GB)) / _length(v_GBD)
        return v_GBD * factor

    def row_factor(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """a_s[i], shape (G, B, R); zeros where the segment does not touch the row."""
        return gather(self.a, self.touched.slots(ids_GB, segments_G))

    def changed(self, rows_GBD: Tensor, a_GBR: Tensor, segments_G: Tensor) -> Tensor:
        """e + scaling * a B_s of rows and their row factors, or of sums of either."""
        b_GRD = self.owners.blocks(self.b, segments_G, self.rank)
        changed_GBD: Tensor = _Changed.apply(rows_GBD, a_GBR, b_GRD, self.scaling)  # type: ignore[no-untyped-call]
        return changed_GBD

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        slots = self.touched.slice(segment)
        found = {"a": slots, "b": self.owners.slice(segment, self.rank)}
        return found if self.m is None else {**found, "m": slots}


class _Changed(torch.autograd.Function):
    """e + scaling * a B, with every product of the gradient in the order that is fast for few
    columns: what has R columns is made as R rows.
    """

    @staticmethod
    def forward(ctx: Any, rows_GBD: Tensor, a_GBR: Tensor, b_GRD: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(a_GBR, b_GRD)
        ctx.scaling = scaling
        return torch.baddbmm(rows_GBD, a_GBR, b_GRD, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GBD: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        a_GBR, b_GRD = ctx.saved_tensors
        grad_a = torch.bmm(b_GRD, grad_GBD.transpose(1, 2)).mul_(ctx.scaling).transpose(1, 2)
        grad_b = torch.bmm(a_GBR.transpose(1, 2), grad_GBD).mul_(ctx.scaling)
        return grad_GBD if ctx.needs_input_grad[0] else None, grad_a, grad_b, None


class BasisDelta(nn.Module):
    """Kind `basis`: row i of segment s becomes e + scaling * a_s[i] B, B frozen and common to all.

    B (R x D) has entries +-1 / sqrt(D), drawn by counting: nobody stores it, and everybody has the
    same. `a` (T x R) starts at zero.

    Args:
        as of `RowsDelta`.

    Source: Achlioptas, "Database-friendly random projections", JCSS 2003; for low-rank deltas of
    item tables with a fixed random factor: Nguyen et al., "CoLR", WWW 2024.
    """

    kind: ClassVar = "basis"
    random_start: ClassVar[tuple[str, ...]] = ()
    moves_all_rows: ClassVar = False

    def __init__(
        self, touched: TouchedRows, owners: Owners, embedding_dim: int, low_rank: LowRank
    ) -> None:
        super().__init__()
        self.touched, self.owners = touched, owners
        self.rank, self.scaling = low_rank.rank, low_rank.scaling
        self.a = nn.Parameter(torch.zeros(len(touched) + 1, self.rank, dtype=torch.float32))
        self.basis_RD = signs(self.rank, embedding_dim)

    def forward(
        self,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Adapted rows, shape (G, B, D)."""
        a_GBR = self.row_factor(ids_GB, segments_G)
        if dropout is not None:
            a_GBR = dropout(a_GBR, ids_GB)
        return self.changed(rows_GBD, a_GBR, segments_G)

    def row_factor(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """a_s[i], shape (G, B, R); zeros where the segment does not touch the row."""
        return gather(self.a, self.touched.slots(ids_GB, segments_G))

    def changed(self, rows_GBD: Tensor, a_GBR: Tensor, segments_G: Tensor) -> Tensor:
        """e + scaling * a B of rows and their row factors, or of sums of either."""
        return rows_GBD + self.scaling * (a_GBR @ self.basis_RD)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"a": self.touched.slice(segment)}


class FullDelta(nn.Module):
    """Kinds `full` and `bias`: row i of segment s becomes e + d_s[i], with d (T x D) starting at
    zero.

    On the item bias, a table one number wide, it is the kind `bias`. On the wide tables it is full
    fine-tuning of the touched rows: what low rank is compared with, and how a base model is
    pretrained.
    """

    random_start: ClassVar[tuple[str, ...]] = ()
    moves_all_rows: ClassVar = False

    def __init__(self, touched: TouchedRows, owners: Owners, embedding_dim: int) -> None:
        super().__init__()
        self.touched, self.owners = touched, owners
        self.kind = "bias" if embedding_dim == 1 else "full"
        self.d = nn.Parameter(torch.zeros(len(touched) + 1, embedding_dim, dtype=torch.float32))

    def forward(
        self,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Adapted rows, shape (G, B, D); there is no factor to drop from."""
        return rows_GBD + gather(self.d, self.touched.slots(ids_GB, segments_G))

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"d": self.touched.slice(segment)}


def _length(v_GBD: Tensor) -> Tensor:
    """The length of each row, shape (G, B, 1), with a gradient that is no NaN where it is zero."""
    return (v_GBD.square().sum(-1, keepdim=True) + torch.finfo(v_GBD.dtype).tiny).sqrt()


def signs(rank: int, embedding_dim: int) -> Tensor:
    """The basis B: the entry (r, d) is +-1 / sqrt(D) by the top bit of the hash of its position."""
    positions = (torch.arange(rank)[:, None] << 32) + torch.arange(embedding_dim)
    bits = mix(positions.numpy().astype(np.uint64)) >> np.uint64(63)
    entries: Tensor = torch.from_numpy(bits.astype(np.float32)) * 2 - 1
    return torch.div(entries, embedding_dim**0.5)
