"""This file is a table of which only some rows are here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from reclora.tables import Table

DENSE = 8
"""A place takes 4 bytes, a hashed row 32 or so."""


@dataclass(frozen=True)
class PartRows:
    """Which M rows of a table of N are here; tables that are looked up together share one."""

    rows_M: Tensor
    """int64, ascending, each once."""
    num_whole: int
    """N, without rows grown since."""

    def __len__(self) -> int:
        return len(self.rows_M)

    @cached_property
    def _place_of_row(self) -> Tensor | None:
        """The place of each row of the whole, after one of -1 and before another: where not few
        rows are here it takes no more than hashing them does, and is faster.
        """
        if self.num_whole > DENSE * len(self.rows_M):
            return None
        places = torch.full((self.num_whole + 2,), -1, dtype=torch.int32)
        places[self.rows_M + 1] = torch.arange(len(self), dtype=torch.int32)
        return places

    @cached_property
    def _hashed(self) -> pd.Index[int]:
        """A batch asks in no order: a search in the sorted rows would take three times as long."""
        index: pd.Index[int] = pd.Index(self.rows_M.numpy())
        return index

    def places(self, rows: Tensor) -> Tensor:
        """The place of each row among the M, -1 where it is not here; both of shape (X,)."""
        if self._place_of_row is not None:
            return self._place_of_row.index_select(0, (rows + 1).clamp_(0, self.num_whole + 1))
        return torch.from_numpy(self._hashed.get_indexer(pd.Index(rows.numpy())))


@dataclass(frozen=True)
class PartTable(Table):
    """M rows of a frozen table of N, looked up by their numbers in the whole.

    `weight_ND` holds the M rows that are here. Grown rows equal the mean, as ever.
    """

    here: PartRows

    @property
    def num_own_rows(self) -> int:
        """N, without the grown rows."""
        return self.here.num_whole

    @property
    def is_whole(self) -> bool:
        return False

    def lookup(self, rows: Tensor) -> Tensor:
        """The vectors of `rows`, any shape; returns that shape plus (D,).

        Raises:
            IndexError: a row is outside 0 .. num_rows - 1, or is not here.
        """
        flat = rows.reshape(-1)
        places = self.here.places(flat)
        inside = places >= 0
        if bool(inside.all()):
            return self.weight_ND.index_select(0, places).view(*rows.shape, self.embedding_dim)
        missing = flat[~inside]
        wrong = missing[(missing < self.num_own_rows) | (missing >= self.num_rows)]
        if len(wrong):
            raise IndexError(
                f"row {int(wrong[0])} was asked of a table with rows 0 to {self.num_rows - 1}, of "
                f"which {len(self.here):,} are here: fetch it with the part"
            )
        vectors = self.mean_D.repeat(len(flat), 1)
        vectors[inside] = self.weight_ND.index_select(0, places[inside])
        return vectors.view(*rows.shape, self.embedding_dim)

    def materialised(self) -> Tensor:
        """Refused: a part is not the whole.

        Raises:
            IndexError: always.
        """
        raise IndexError(
            f"all {self.num_rows:,} rows of a table were asked for, of which "
            f"{len(self.here):,} are here: rank with `rank_sharded`, and judge by `HeldOutLoss`"
        )
