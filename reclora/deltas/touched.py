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

    @cached_property
    def _slots(self) -> pd.Index[int]:
        """(segment, row) as one number -> slot; hashed, since a batch asks in no order, and a
        search in the sorted numbers takes three times as long.
        """
        segments = torch.arange(self.num_segments).repeat_interleave(self.offsets_S1.diff())
        keys: pd.Index[int] = pd.Index((segments * self.num_rows + self.rows_T).numpy())
        return keys

    def slots(self, ids_GB: Tensor, segments_G: Tensor) -> Tensor:
        """The slot of each (segment, row), shape (G, B); T where the segment does not touch the
        row.
        """
        keys = segments_G.unsqueeze(1) * self.num_rows + ids_GB
        if len(self) == self.num_segments * self.num_rows:
            return torch.where(keys >= 0, keys, len(self))
        slots = torch.from_numpy(self._slots.get_indexer(pd.Index(keys.flatten().numpy()))).view(
            keys.shape
        )
        return slots.masked_fill_(slots < 0, len(self))

    def slice(self, segment: int) -> slice:
        """The slots of one segment."""
        return slice(int(self.offsets_S1[segment]), int(self.offsets_S1[segment + 1]))
