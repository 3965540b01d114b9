"""This file is what a user's rows share: the summary of the scores of the user's negatives.

    summary_u = summary_j( u . v_j + b_j )    over the J negatives that are not the user's own items

The U x J scores are as large as a step gets, and plain autograd goes over them, and over copies,
more than ten times. Here they are written once, turned into the summary's slopes where they stand,
and read by the three products that are the gradient:

    dU = c * (P V)    dV = P^T (c * U)    db = P^T c

with slopes P, U x J, and c_u the gradient of the loss with respect to summary_u.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reclora.factorisation.negatives import Cells
from reclora.losses import Separable

TILE_COLUMNS = 1024
"""So many columns of the scores go through a product at once: few enough for the cache."""
BLOCK_CELLS = 1 << 18
"""So many scores go through a summary at once: few enough for the cache."""


class Summaries:
    """The summary of each user's negatives, for autograd; keeps the memory of the scores from step
    to step, so a summary's gradient must be taken before the next summary.

    Args:
        loss: whose summary.
    """

    def __init__(self, loss: Separable) -> None:
        self._loss, self._memory = loss, torch.empty(0)

    def __call__(
        self, u_UD: Tensor, v_JD: Tensor, bias_J: Tensor, own: Cells, weights_J: Tensor | None
    ) -> Tensor:
        """Summaries of shape (U,).

        Args:
            own: (user, column) of the scores to leave out.
            weights_J: what each negative counts for; one each if None.
        """
        size = len(u_UD) * len(v_JD)
        if self._memory.numel() < size:
            self._memory = u_UD.new_empty(size)
        scores_UJ = self._memory[:size].view(len(u_UD), len(v_JD))
        inputs = u_UD, v_JD, bias_J, own, weights_J, self._loss, scores_UJ
        summary_U: Tensor = _Summary.apply(*inputs)  # type: ignore[no-untyped-call]
        return summary_U


class _Summary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u_UD: Tensor,
        v_JD: Tensor,
        bias_J: Tensor,
        own: Cells,
        weights_J: Tensor | None,
        loss: Separable,
        scores_UJ: Tensor,
    ) -> Tensor:
        for tile in _parts(len(v_JD), TILE_COLUMNS):
            torch.addmm(bias_J[tile], u_UD, v_JD[tile].T, out=scores_UJ[:, tile])
        scores_UJ[own] = torch.finfo(scores_UJ.dtype).min
        summary_U = u_UD.new_empty(len(u_UD))
        for block in _parts(len(u_UD), max(1, BLOCK_CELLS // len(v_JD))):
            summary_U[block], scores_UJ[block] = loss.slope(scores_UJ[block], weights_J)
        ctx.save_for_backward(u_UD, v_JD)
        ctx.slope_UJ = scores_UJ
        return summary_U

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (c_U,) = gradients
        u_UD, v_JD = ctx.saved_tensors
        slope_UJ, pull_UD = ctx.slope_UJ, c_U.unsqueeze(1) * u_UD
        du_UD = torch.zeros_like(u_UD)
        dv_JD, dbias_J = torch.empty_like(v_JD), v_JD.new_empty(len(v_JD))
        for tile in _parts(len(v_JD), TILE_COLUMNS):
            part_UT = slope_UJ[:, tile]
            du_UD.addmm_(part_UT, v_JD[tile])
            torch.mm(part_UT.T, pull_UD, out=dv_JD[tile])
            torch.mv(part_UT.T, c_U, out=dbias_J[tile])
        return du_UD.mul_(c_U.unsqueeze(1)), dv_JD, dbias_J, *[None] * 4


def _parts(size: int, part: int) -> list[slice]:
    return [slice(at, min(at + part, size)) for at in range(0, size, part)]
