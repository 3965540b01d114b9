"""This file is the kinds of a weight: `low_rank` and `full`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reclora.deltas.blocks import LowRank, Owners


class LowRankWeight(nn.Module):
    """Kind `low_rank` of a weight: W_s = W + scaling * B_s A_s, with B (O x R) zero and A (R x I)
    random at the start.

    Args:
        owners: the segments that have it.
        shape_OI: of W.
        low_rank: R, 1 to min(O, I), and the scaling.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1.
    """

    kind: ClassVar = "low_rank"
    random_start: ClassVar = ("a",)

    def __init__(self, owners: Owners, shape_OI: tuple[int, int], low_rank: LowRank) -> None:
        super().__init__()
        self.owners, self.rank, self.scaling = owners, low_rank.rank, low_rank.scaling
        self.out_features, in_features = shape_OI
        self.b = owners.zeros(self.out_features, self.rank)
        self.a = owners.random(self.rank, in_features, low_rank.init)

    def forward(self, weight_GOI: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted weights, shape (G, O, I), of one weight (O, I) or of one for each segment."""
        a_GRI, b_GOR = self.factors(segments_G)
        return torch.baddbmm(weight_GOI, b_GOR, a_GRI, alpha=self.scaling)

    def change(self, x_GBI: Tensor, segments_G: Tensor) -> Tensor:
        """What is added to x W^T, shape (G, B, O), without making any W_s."""
        a_GRI, b_GOR = self.factors(segments_G)
        if not torch.is_grad_enabled():
            hidden_GRB = torch.bmm(a_GRI, x_GBI.transpose(1, 2)).mul_(self.scaling)
            return torch.bmm(hidden_GRB.transpose(1, 2), b_GOR.transpose(1, 2))
        change_GBO: Tensor = _Product.apply(x_GBI, a_GRI, b_GOR, self.scaling)  # type: ignore[no-untyped-call]
        return change_GBO

    def factors(self, segments_G: Tensor) -> tuple[Tensor, Tensor]:
        """A (G, R, I) and B (G, O, R) of each segment."""
        return (
            self.owners.blocks(self.a, segments_G, self.rank),
            self.owners.blocks(self.b, segments_G, self.out_features),
        )

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {
            "b": self.owners.slice(segment, self.out_features),
            "a": self.owners.slice(segment, self.rank),
        }


class _Product(torch.autograd.Function):
    """scaling * (x A^T) B^T, with every product in the order that is fast for few columns: what
    has R columns is made as R rows.
    """

    @staticmethod
    def forward(ctx: Any, x_GBI: Tensor, a_GRI: Tensor, b_GOR: Tensor, scaling: float) -> Tensor:
        hidden_GRB = torch.bmm(a_GRI, x_GBI.transpose(1, 2)).mul_(scaling)
        ctx.save_for_backward(x_GBI, a_GRI, b_GOR, hidden_GRB)
        ctx.scaling = scaling
        return torch.bmm(hidden_GRB.transpose(1, 2), b_GOR.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GBO: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x_GBI, a_GRI, b_GOR, hidden_GRB = ctx.saved_tensors
        grad_b = torch.bmm(hidden_GRB, grad_GBO).transpose(1, 2)
        grad_GRB = torch.bmm(b_GOR.transpose(1, 2), grad_GBO.transpose(1, 2)).mul_(ctx.scaling)
        grad_a = torch.bmm(grad_GRB, x_GBI)
        grad_x = torch.bmm(grad_GRB.transpose(1, 2), a_GRI) if ctx.needs_input_grad[0] else None
        return grad_x, grad_a, grad_b, None


class FullWeight(nn.Module):
    """Kind `full` of a weight: W_s = W + D_s, with D (O x I) zero at the start."""

    kind: ClassVar = "full"
    random_start: ClassVar[tuple[str, ...]] = ()

    def __init__(self, owners: Owners, shape_OI: tuple[int, int]) -> None:
        super().__init__()
        self.owners = owners
        self.out_features, in_features = shape_OI
        self.d = owners.zeros(self.out_features, in_features)

    def forward(self, weight_GOI: Tensor, segments_G: Tensor) -> Tensor:
        """Adapted weights, shape (G, O, I), of one weight (O, I) or of one for each segment."""
        return weight_GOI + self.owners.blocks(self.d, segments_G, self.out_features)

    def slices(self, segment: int) -> dict[str, slice]:
        """Where the segment's numbers stand in each parameter."""
        return {"d": self.owners.slice(segment, self.out_features)}
