"""Row-wise Adagrad: the optimizer of tables, which touches only the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row.

        G_i <- G_i + mean_d(g_id^2)        row_i <- row_i - lr * g_i / (sqrt(G_i) + eps)

    A row without a gradient keeps its bytes and its state, so no row is moved by another row's
    batch, and the state is one number a row. Takes 2-D parameters with sparse gradients (or dense
    ones: then every row moves).

    Args:
        params: parameters of shape `(rows, width)`, or groups of them with their own `lr`.
        lr: the length of a row's first step per unit of root-mean-square gradient; positive.
        eps: keeps the division finite.

    Raises:
        ValueError: `lr` is not positive, or a parameter is not 2-D.

    Source: Duchi et al., "Adaptive Subgradient Methods", JMLR 2011; row-wise as FBGEMM's
    `EXACT_ROWWISE_ADAGRAD`.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            if not group["lr"] > 0:
                raise ValueError(f"lr must be a positive number, got {group['lr']}")
            for param in group["params"]:
                if param.dim() != 2:
                    raise ValueError(
                        f"row-wise Adagrad needs 2-D parameters, got shape {tuple(param.shape)}"
                    )
                self.state[param]["sum"] = param.new_zeros(param.shape[0])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                total = cast(Tensor, self.state[param]["sum"])
                if param.grad.is_sparse:
                    gradient = param.grad.coalesce()
                    rows, values = gradient.indices()[0], gradient.values()
                    sums = total.index_select(0, rows).add_(values.square().mean(1))
                    total.index_copy_(0, rows, sums)
                    steps = values / (sums.sqrt() + group["eps"]).unsqueeze(1)
                    # Every row stands here once, and index_add_ takes eight times as long.
                    moved = param.index_select(0, rows).add_(steps, alpha=-group["lr"])
                    param.index_copy_(0, rows, moved)
                else:
                    total += param.grad.square().mean(1)
                    steps = param.grad / (total.sqrt() + group["eps"]).unsqueeze(1)
                    param.add_(steps, alpha=-group["lr"])
