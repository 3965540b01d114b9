"""This file is factorisation in closed form: implicit alternating least squares.

    sum_(u,i) in log  w_ui (u . v - 1)^2  +  alpha sum_(all u, i) (u . v)^2
        +  l2 ( sum_u (n_u + alpha N_items)^nu |u|^2  +  sum_i (n_i + alpha N_users)^nu |v|^2 )

is minimised by solving for each row of one side while the other is held, in turns:

    ( sum_i w_ui v v^T + alpha V^T V + lambda_u 1 ) u = sum_i w_ui v

with lambda_u = l2 (n_u + alpha N_items)^nu, and an item's row likewise.

Source: Rendle et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks",
RecSys 2022, section 2 (what is minimised) and section 3 (how `l2` is scaled).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.counted import U64
from reclora.factorisation.config import FactorisationConfig
from reclora.factorisation.course import Epoch, FactorisationError
from reclora.factorisation.positives import Positives

BLOCK_NUMBERS = 1 << 20
"""So many numbers are gathered at once for some rows' equations, but those of one row at least."""


def alternate(positives: Positives, config: FactorisationConfig, stream: U64) -> Iterator[Epoch]:
    """The alternations, users first, as many as are asked for, `config.epochs` at the most.

    The training loss is what is minimised, over the number of pairs; no alternation raises it.

    Args:
        positives: by user.
        stream: one number, shape (1,), that the item table starts from.

    Raises:
        FactorisationError: a row's equations have no solution in float32.
    """
    generator = torch.Generator().manual_seed(int(stream[0]) >> 1)
    item_ND = torch.randn(positives.num_others, config.embedding_dim, generator=generator)
    item_ND *= config.init_std
    users, items = _Side(positives, config), _Side(positives.turned(), config)
    for _ in range(config.epochs):
        user_ND = users.solved(item_ND)
        item_ND = items.solved(user_ND)
        loss = users.misfit(user_ND, item_ND) + users.penalty(user_ND) + items.penalty(item_ND)
        yield Epoch(loss / len(positives.others), partial(_without_bias, user_ND, item_ND))


def _without_bias(user_ND: Tensor, item_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return user_ND, item_ND, torch.zeros(len(item_ND))


@dataclass(frozen=True)
class _Block:
    """Rows of about as many pairs, M at the most; the weight is 0 where a row has fewer."""

    rows_B: Tensor
    others_BM: Tensor
    weights_BM: Tensor
    l2_B: Tensor


class _Side:
    """The equations of one side's rows."""

    def __init__(self, positives: Positives, config: FactorisationConfig) -> None:
        self._num_rows, self._alpha = positives.num_rows, config.unobserved_weight
        sizes = np.diff(positives.offsets)
        known = sizes + config.unobserved_weight * positives.num_others
        self._l2_N = torch.from_numpy((config.l2 * known**config.l2_exponent).astype(np.float32))
        self._blocks = [
            self._block(positives, rows) for rows in _alike(sizes, config.embedding_dim)
        ]

    def _block(self, positives: Positives, rows: NDArray[np.int64]) -> _Block:
        owner, places = positives.places_of(rows)
        column = places - positives.offsets[rows][owner]
        others = np.zeros((len(rows), column.max() + 1), np.int64)
        weights = np.zeros(others.shape, np.float32)
        others[owner, column] = positives.others[places]
        weights[owner, column] = positives.weights[places]
        rows_B = torch.from_numpy(rows)
        return _Block(
            rows_B, torch.from_numpy(others), torch.from_numpy(weights), self._l2_N[rows_B]
        )

    def solved(self, other_ND: Tensor) -> Tensor:
        """The rows that fit the other side's best; zero for a row without pairs.

        Raises:
            FactorisationError: a row's equations have no solution in float32.
        """
        dim = other_ND.shape[1]
        table_ND = other_ND.new_zeros(self._num_rows, dim)
        common_DD = self._alpha * (other_ND.T @ other_ND)
        for block in self._blocks:
            v_BMD = other_ND[block.others_BM]
            weighted_BDM = (v_BMD * block.weights_BM.unsqueeze(2)).mT
            left_BDD = torch.baddbmm(common_DD, weighted_BDM, v_BMD)
            left_BDD.diagonal(dim1=1, dim2=2).add_(block.l2_B.unsqueeze(1))
            right_BD1 = weighted_BDM.sum(2, keepdim=True)
            lower_BDD, unsolved_B = torch.linalg.cholesky_ex(left_BDD)
            if unsolved_B.any():
                raise FactorisationError(
                    "the equations of a row have no solution in float32: raise l2"
                )
            table_ND[block.rows_B] = torch.cholesky_solve(right_BD1, lower_BDD).squeeze(2)
        return table_ND

    def misfit(self, table_ND: Tensor, other_ND: Tensor) -> float:
        """The first two sums of what is minimised."""
        total = self._alpha * float(((table_ND.T @ table_ND) * (other_ND.T @ other_ND)).sum())
        for block in self._blocks:
            scores_BM1 = other_ND[block.others_BM] @ table_ND[block.rows_B].unsqueeze(2)
            total += float((block.weights_BM * (scores_BM1.squeeze(2) - 1).square()).sum())
        return total

    def penalty(self, table_ND: Tensor) -> float:
        """This side's part of the third."""
        return float((self._l2_N * table_ND.square().sum(1)).sum())


def _alike(sizes: NDArray[np.int64], dim: int) -> Iterator[NDArray[np.int64]]:
    """Rows that have pairs, in blocks of like size: padded, they gather `BLOCK_NUMBERS`."""
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    # The equations of a row are dim x dim, however few its pairs.
    cost = dim * np.maximum(sizes[order], dim)
    begin = 0
    while begin < len(order):
        end = begin + max(1, BLOCK_NUMBERS // int(cost[begin]))
        while end > begin + 1 and (end - begin) * cost[min(end, len(order)) - 1] > BLOCK_NUMBERS:
            end = (begin + end + 1) // 2
        yield order[begin:end]
        begin = end
