"""This file is how rows become cosines: row / |row|, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reclora.factorisation.config import FactorisationConfig


def directed(rows_ND: Tensor, config: FactorisationConfig) -> Tensor:
    """Rows of length 1 where the config wants cosines, else as they are."""
    if config.similarity == "dot":
        return rows_ND
    directions_ND: Tensor = _Direction.apply(rows_ND)  # type: ignore[no-untyped-call]
    return directions_ND


class _Direction(torch.autograd.Function):
    """The gradient is (g - (g . v) v) / |row|, v = row / |row|: a quarter of the passes over the
    table that autograd makes of the formula.
    """

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        length_N1: Tensor = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True)
        directions_ND = rows_ND / length_N1
        ctx.save_for_backward(directions_ND, length_N1)
        return directions_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient_ND,) = gradients
        directions_ND, length_N1 = ctx.saved_tensors
        along_N1: Tensor = torch.linalg.vecdot(gradient_ND, directions_ND).unsqueeze(1)
        across_ND: Tensor = torch.addcmul(gradient_ND, along_N1, directions_ND, value=-1)
        return across_ND.div_(length_N1)
