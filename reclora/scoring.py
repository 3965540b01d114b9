"""The scores of a whole catalogue, by the base or by one segment's adapted tables and tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reclora.tower import Layer, all_scores, paired_scores

ALL = slice(None)
PAIR_BYTES = 64 << 20
"""How much memory the tower may take at once for (user, item) pairs."""


@dataclass(frozen=True)
class RemoteScorer:
    """The scores of a catalogue of which this process has a part at the most: it says whose they
    are, for `reclora.distributed.recommend_sharded`, and gives none itself.

    Args:
        adapter: an `Adapter` of a base whose tables lie elsewhere; None is the base alone.
    """

    adapter: object
    num_items: int

    def scores(self, user_rows_B: Tensor, items: slice = ALL) -> Tensor:
        """Refused.

        Raises:
            IndexError: always.
        """
        raise IndexError(
            f"the scores of {self.num_items:,} items were asked for, whose vectors are not all "
            "here: rank with `reclora.distributed.recommend_sharded`"
        )


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
        self._looked_up: tuple[Tensor, Tensor] | None = None
        """The last users, and their vectors: they are scored tile of items by tile."""

    @torch.no_grad()
    def scores(self, user_rows_B: Tensor, items: slice = ALL) -> Tensor:
        """Scores of the C items of a slice, of every item if not given; shape (B, C)."""
        u_BD, v_CD = self._vectors(user_rows_B), self._items[items]
        scores_BC = torch.addmm(self._bias[items], u_BD, v_CD.T)
        if self._layers:
            hidden = self._layers[0][0].shape[1]
            pair_bytes = 4 * len(v_CD) * (v_CD.shape[1] + 2 * hidden)
            at_once = max(1, PAIR_BYTES // max(1, pair_bytes))
            for rows in torch.split(torch.arange(len(u_BD)), at_once):
                scores_BC[rows] += all_scores(
                    self._layers, u_BD[rows].unsqueeze(0), v_CD.unsqueeze(0)
                )[0]
        return scores_BC

    def _vectors(self, user_rows_B: Tensor) -> Tensor:
        last = self._looked_up
        if last is None or not torch.equal(last[0], user_rows_B):
            last = self._looked_up = user_rows_B.clone(), self._users(user_rows_B)
        return last[1]

    def retriever(self) -> CatalogueScorer:
        """The same scores without the tower's part: what the first of two stages ranks by."""
        return CatalogueScorer(self._users, self._items, self._bias, [])

    @torch.no_grad()
    def pair_scores(self, user_rows_B: Tensor, item_rows_BC: Tensor) -> Tensor:
        """Scores of each user's own C items, shape (B, C)."""
        u_BD, v_BCD = self._users(user_rows_B), self._items[item_rows_BC]
        scores_BC = torch.bmm(v_BCD, u_BD.unsqueeze(2)).squeeze(2) + self._bias[item_rows_BC]
        if self._layers:
            # A user's C items are the rows of one batch; all users share the segment's tower.
            B, C, D = v_BCD.shape
            u_1PD = u_BD.unsqueeze(1).expand(B, C, D).reshape(1, B * C, D)
            v_1PD = v_BCD.reshape(1, B * C, D)
            scores_BC += paired_scores(self._layers, u_1PD, v_1PD).view(B, C)
        return scores_BC
