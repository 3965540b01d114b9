"""This file is the kinds that move every row of a table, also those that a segment never saw:
`scale` and `map`; and, of what comes out of any layer, `bias`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from reclora.deltas.blocks import LowRank, Owners
from reclora.deltas.dropout import Dropout


class ScaleDelta(nn.Module):
    """Kind `scale`: every row of segment s becomes e * (1 + c_s), with c (D numbers) zero at the
    start.

    Source: Liu et al., "(IA)^3", NeurIPS 2022, section 3.3, on the rows of a table.
    """

    kind: ClassVar = "scale"
    random_start: ClassVar[tuple[str, ...]] = ()
    moves_all_rows: ClassVar = True

    def __init__(self, owners: Owners, embedding_dim: int) -> None:
        super().__init__()
        self.owners = owners
        self.c = owners.zeros(1, embedding_dim)

    def forward(
        self,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Adapted rows, shape (G, B, D); there is no row factor to drop from."""
        c_G1D = self.owners.blocks(self.c, segments_G, 1)
        return torch.addcmul(rows_GBD, rows_GBD, c_G1D)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"c": self.owners.slice(segment, 1)}


class MapDelta(nn.Module):
    """Kind `map`: every row of segment s becomes e + scaling * (e A_s^T) B_s.

    A (R x D) starts at zero; the rows of B (R x D) start at random with length about one.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1, as a linear map behind the table.
    """

    kind: ClassVar = "map"
    random_start: ClassVar = ("b",)
    moves_all_rows: ClassVar = True

    def __init__(self, owners: Owners, embedding_dim: int, low_rank: LowRank) -> None:
        super().__init__()
        self.owners, self.rank, self.scaling = owners, low_rank.rank, low_rank.scaling
        self.a = owners.zeros(self.rank, embedding_dim)
        self.b = owners.random(self.rank, embedding_dim, low_rank.init)

    def forward(
        self,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Adapted rows, shape (G, B, D); there is no row factor to drop from."""
        a_GRD = self.owners.blocks(self.a, segments_G, self.rank)
        b_GRD = self.owners.blocks(self.b, segments_G, self.rank)
        mapped_GBR = rows_GBD @ a_GRD.transpose(1, 2)
        return torch.baddbmm(rows_GBD, mapped_GBR, b_GRD, alpha=self.scaling)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        block = self.owners.slice(segment, self.rank)
        return {"a": block, "b": block}


class BiasDelta(nn.Module):
    """Kind `bias` of a layer: its output y becomes y + c_s, with c (D numbers) zero at the start.

    Source: Ben Zaken et al., "BitFit", ACL 2022.
    """

    kind: ClassVar = "bias"
    random_start: ClassVar[tuple[str, ...]] = ()
    moves_all_rows: ClassVar = True

    def __init__(self, owners: Owners, embedding_dim: int) -> None:
        super().__init__()
        self.owners = owners
        self.c = owners.zeros(1, embedding_dim)

    def forward(
        self,
        rows_GBD: Tensor,
        ids_GB: Tensor,
        segments_G: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Adapted rows, shape (G, B, D); there is no row factor to drop from."""
        return rows_GBD + self.owners.blocks(self.c, segments_G, 1)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"c": self.owners.slice(segment, 1)}
