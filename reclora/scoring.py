"""The scores of a whole catalogue, by the base or by one segment's adapted tables and tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reclora.tower import Layer, all_scores

PAIR_BYTES = 64 << 20
"""How much memory the tower may take at once for (user, item) pairs."""


class CatalogueScorer:
    """The scores of all items for any users, from materialised item rows.

    Args:
        users: user rows (B,) -> vectors (B, D).
        item_table_ND, item_bias_N: every item's vector and bias.
        layers: the tower of one segment (G = 1); empty for none.
    """

    def __init__(
        self,
        users: Callable[[Tensor], Tensor],
        item_table_ND: Tensor,
        item_bias_N: Tensor,
        layers: Sequence[Layer],
    ) -> None:
        self._users, self._items, self._bias, self._layers = (
            users,
            item_table_ND,
            item_bias_N,
            layers,
        )
        self.num_items = len(item_table_ND)

    @torch.no_grad()
    def scores(self, user_rows_B: Tensor) -> Tensor:
        """Scores of every item, shape (B, N)."""
        u_BD = self._users(user_rows_B)
        scores_BN = torch.addmm(self._bias, u_BD, self._items.T)
        if self._layers:
            hidden = self._layers[0][0].shape[1]
            pair_bytes = 4 * self.num_items * (self._items.shape[1] + 2 * hidden)
            at_once = max(1, PAIR_BYTES // max(1, pair_bytes))
            for rows in torch.split(torch.arange(len(u_BD)), at_once):
                scores_BN[rows] += all_scores(
                    self._layers, u_BD[rows].unsqueeze(0), self._items.unsqueeze(0)
                )[0]
        return scores_BN
