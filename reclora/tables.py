"""A frozen embedding table: rows looked up, never changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class BaseError(ValueError):
    """A base model that cannot be what it should be; the message says why and what to do."""


@dataclass(frozen=True)
class Table:
    """A frozen embedding table of N rows, and after them grown rows that all equal its mean.

    `weight_ND` may be memory-mapped. `num_rows` is N plus the rows grown for identifiers that the
    base does not know: an adapter may change those like any other.
    """

    weight_ND: Tensor
    mean_D: Tensor
    num_rows: int

    @classmethod
    def of(cls, weight_ND: Tensor) -> Table:
        """A table with its mean (of zero rows: zero).

        Raises:
            BaseError: not 2-D, not float32, or not finite.
        """
        if weight_ND.dim() != 2 or weight_ND.dtype != torch.float32:
            raise BaseError(
                f"a table must be 2-D float32, got shape {tuple(weight_ND.shape)} {weight_ND.dtype}"
            )
        finite = torch.isfinite(weight_ND).all(1)
        if not finite.all():
            raise BaseError(
                f"row {int((~finite).nonzero()[0])} of a table holds NaN or infinity; "
                f"{int((~finite).sum())} rows do: a frozen table must be finite"
            )
        mean = (
            weight_ND.mean(0, dtype=torch.float64).float()
            if len(weight_ND)
            else weight_ND.new_zeros(weight_ND.shape[1])
        )
        return cls(weight_ND.detach(), mean, len(weight_ND))

    @property
    def num_own_rows(self) -> int:
        """N, without the grown rows."""
        return len(self.weight_ND)

    @property
    def embedding_dim(self) -> int:
        return self.weight_ND.shape[1]

    @property
    def is_whole(self) -> bool:
        """Whether all its rows are here."""
        return True

    def lookup(self, rows: Tensor) -> Tensor:
        """The vectors of `rows`, any shape; returns that shape plus (D,).

        Raises:
            IndexError: a row is outside 0 .. num_rows - 1.
        """
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= self.num_rows):
            wrong = rows[(rows < 0) | (rows >= self.num_rows)][0]
            raise IndexError(
                f"row {int(wrong)} was asked of a table with rows 0 to {self.num_rows - 1}"
            )
        flat, known = rows.reshape(-1), self.num_own_rows
        if self.num_rows == known:
            return self.weight_ND.index_select(0, flat).view(*rows.shape, self.embedding_dim)
        vectors = self.mean_D.repeat(len(flat), 1)
        inside = (flat < known).nonzero().squeeze(1)
        vectors[inside] = self.weight_ND.index_select(0, flat[inside])
        return vectors.view(*rows.shape, self.embedding_dim)

    def materialised(self) -> Tensor:
        """A copy of all rows, grown ones included, shape (num_rows, D)."""
        grown = self.mean_D.expand(self.num_rows - self.num_own_rows, -1)
        return torch.cat([self.weight_ND, grown])
