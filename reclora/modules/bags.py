"""This file is deltas on a table whose rows are pooled by sample: EmbeddingBag."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from reclora.configs import AdapterError
from reclora.deltas import BasisDelta, MapDelta, RowsDelta, ScaleDelta
from reclora.modules.embeddings import TableDeltas
from reclora.modules.mixed import Tiles
from reclora.modules.sites import Change, Current, hook_outputs


class BagSite:
    """The pooled row p = sum_j w_j e_j of segment s becomes

        (p (1 + c_s)) (I + scaling A_s^T B_s) + scaling * (sum_j w_j a_s[j]) B_s

    which is the sum of the adapted rows: only R numbers a row are pooled anew, and multiplied once
    a sample. By `mean` w_j is 1 / the number of rows in the bag.
    """

    def __init__(self, path: str, module: nn.EmbeddingBag, deltas: TableDeltas) -> None:
        self.path, self.owner, self.module, self.table = path, module, module, deltas
        self.deltas, self.touched = deltas.deltas, deltas.touched

    def attach(self, current: Current) -> Callable[[], None]:
        return hook_outputs(self.module, current, self.adapted)

    def adapted(self, tiles: Tiles, args: tuple[Any, ...], pooled_BD: Tensor) -> Tensor:
        """Args:
        args: of the module's forward: ids, offsets, weights.
        pooled_BD: what it made of them.
        """
        ids, offsets, weights = (*args, None, None)[:3]
        num_bags = len(pooled_BD)
        if num_bags != len(tiles):
            raise AdapterError(
                f"module {self.path!r} pooled {num_bags} bags, but there are {len(tiles)} samples "
                f"in `segments`: it needs a bag a sample"
            )
        if not num_bags:
            return pooled_BD
        pooled_GBD, segments_G = tiles.pack(pooled_BD), tiles.segments_G
        for delta in self.deltas.values():
            if isinstance(delta, ScaleDelta | MapDelta):
                pooled_GBD = delta(pooled_GBD, ids, segments_G)
            else:
                rows = cast("RowsDelta | BasisDelta", delta)
                a_BR = self._pooled(rows, tiles, ids, offsets, weights)
                pooled_GBD = rows.changed(pooled_GBD, tiles.pack(a_BR), segments_G)
        return tiles.unpack(pooled_GBD)

    def _pooled(
        self,
        delta: RowsDelta | BasisDelta,
        tiles: Tiles,
        ids: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
    ) -> Tensor:
        """sum_j w_j a_s[j] of each bag, shape (B, R)."""
        ids_L, bags_L, counts_B = self._bags(ids, offsets, len(tiles))
        segments_L = tiles.segments_B[bags_L]
        a_LR = delta.row_factor(ids_L.unsqueeze(1), segments_L).squeeze(1)
        drop = self.table.dropping(delta)
        if drop is not None:
            a_LR = drop(a_LR, ids_L)
        share_L1 = None if weights is None else weights.flatten().unsqueeze(1)
        if self.module.padding_idx is not None:
            kept_L1 = (ids_L != self.module.padding_idx).to(a_LR.dtype).unsqueeze(1)
            share_L1 = kept_L1 if share_L1 is None else share_L1 * kept_L1
            counts_B = a_LR.new_zeros(len(tiles)).index_add(0, bags_L, kept_L1.squeeze(1))
        if share_L1 is not None:
            a_LR = a_LR * share_L1
        a_BR = a_LR.new_zeros(len(tiles), a_LR.shape[1]).index_add(0, bags_L, a_LR)
        if self.module.mode == "mean":
            a_BR = a_BR / counts_B.clamp(min=1).unsqueeze(1)
        return a_BR

    def _bags(self, ids: Tensor, offsets: Tensor | None, num_bags: int) -> tuple[Tensor, ...]:
        """The ids, the bag of each, and how many each bag has."""
        ids_L = ids.flatten()
        if offsets is None:
            counts_B = torch.full((num_bags,), ids.shape[1])
        elif self.module.include_last_offset:
            counts_B = offsets.diff()
            if int(offsets[-1]) != len(ids_L):
                raise AdapterError(
                    f"module {self.path!r} got {len(ids_L)} ids, but its last offset is "
                    f"{int(offsets[-1])}: with include_last_offset they must be equal"
                )
        else:
            counts_B = torch.cat([offsets, offsets.new_tensor([len(ids_L)])]).diff()
        bags_L = torch.arange(num_bags).repeat_interleave(counts_B)
        return ids_L.long(), bags_L, counts_B

    def merged(self, code: int) -> Iterator[Change]:
        return self.table.merged(code)
