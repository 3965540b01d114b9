"""This file is which rows of a table each segment may change: the memory of a table's deltas
follows them, never S x N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

PLACES_A_SLOT = 12
"""So many places of 4 bytes take what a hash takes of a slot: its key twice, and its number."""


@dataclass(frozen=True)
class TouchedRows:
    """Which rows of an N-row table each of S segments may change, and where their numbers stand.

    Segment s owns the slots `offsets[s] .. offsets[s+1]`; slot t belongs to table row `rows[t]`;
    within a segment the rows ascend. T = all slots together.
    """

    num_rows: int
    offsets_S1: Tensor
    rows_T: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor], num_rows: int) -> TouchedRows:
        """From one tensor of row numbers per segment, repeats allowed.

        Raises:
            IndexError: a row number is outside 0 .. num_rows - 1.
        """
        unique = [torch.unique(r) for r in rows]
        for segment, r in enumerate(unique):
            if len(r) and (r[0] < 0 or r[-1] >= num_rows):
                raise IndexError(
                    f"segment {segment} touches row {int(r[0] if r[0] < 0 else r[-1])}, "
                    f"but the table has rows 0 to {num_rows - 1}"
                )
        sizes = torch.tensor([0] + [len(r) for r in unique])
        return cls(
            num_rows, sizes.cumsum(0), torch.cat([torch.empty(0, dtype=torch.int64), *unique])
        )

    def __len__(self) -> int:
        return len(self.rows_T)

    @property
    def num_segments(self) -> int:
        return len(self.offsets_S1) - 1

    def only(self, segments: Sequence[int]) -> TouchedRows:
        """The same where only these segments (codes) touch anything."""
        keep = set(segments)
        parts = [
            self.rows_T[self.slice(s)] if s in keep else self.rows_T[:0]
            for s in range(self.num_segments)
        ]
        sizes = torch.tensor([0] + [len(part) for part in parts])
        return TouchedRows(self.num_rows, sizes.cumsum(0), torch.cat(parts))

    def _keys_T(self) -> Tensor:
        """(segment, row) of each slot as one number."""
        segments = torch.arange(self.num_segments).repeat_interleave(self.offsets_S1.diff())
        return segments * self.num_rows + self.rows_T

    @cached_property
    def _slot_of_key(self) -> Tensor | None:
        """A place for each key there might be, and before them one for all that are none; None
        where so many take more memory than a hash of those that are there.
        """
        if self.num_segments * self.num_rows > PLACES_A_SLOT * len(self):
            return None
        places = torch.full((self.num_segments * self.num_rows + 1,), len(self), dtype=torch.int32)
        places[self._keys_T() + 1] = torch.arange(len(self), dtype=torch.int32)
        return places

    @cached_property
    def _hashed_keys(self) -> pd.Index[int]:
        """A batch asks in no order: a search in the sorted keys would take three times as long."""
        keys: pd.Index[int] = pd.Index(self._keys_T().numpy())
        return keys

    def slots(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """The slot of each (segment, row), shape (G, B); T where the segment does not touch the
        row.
        """
        keys = segments_G.unsqueeze(1) * self.num_rows + ids_GB
        if len(self) == self.num_segments * self.num_rows:
            return torch.where(keys >= 0, keys, len(self))
        if self._slot_of_key is not None:
            places = keys.add_(1).clamp_(min=0).flatten()
            return self._slot_of_key.index_select(0, places).long().view(keys.shape)
        slots = torch.from_numpy(self._hashed_keys.get_indexer(pd.Index(keys.flatten().numpy())))
        return slots.masked_fill_(slots < 0, len(self)).view(keys.shape)

    def slice(self, segment: int) -> slice:
        """The slots of one segment."""
        return slice(int(self.offsets_S1[segment]), int(self.offsets_S1[segment + 1]))
