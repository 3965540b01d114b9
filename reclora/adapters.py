"""Adapter: all deltas of one segment; what is stored and promoted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import torch
from torch import Tensor

from reclora.base import BaseModel
from reclora.interactions import IdMap

TableKind = Literal["rows", "full", "none"]
BiasKind = Literal["bias", "none"]
TowerKind = Literal["low_rank", "full", "none"]


class AdapterError(ValueError):
    """An adapter that does not fit its base, its bank or its settings; the message says how."""


@dataclass(frozen=True)
class AdapterConfig:
    """Which deltas an adapter has, and how large.

    Raises:
        AdapterError: an unknown kind, a rank below 1, or an alpha that is not positive.
    """

    user_table: TableKind = "rows"
    """`rows`: low rank. `full`: every touched row free (fine-tuning). `none`: stays frozen."""
    item_table: TableKind = "rows"
    """As `user_table`."""
    item_bias: BiasKind = "bias"
    """`bias`: one number per touched item. `none`: stays frozen."""
    tower: TowerKind = "low_rank"
    """`low_rank`: each weight by B A. `full`: weights and biases free, but for the last bias, which
    changes no order. `none`: stays frozen.
    """
    rank: int = 8
    """R, at least 1, at most the tables' embedding_dim; a tower's weight takes min(R, its sides).
    """
    alpha: float = 8.0
    """The change is scaled by alpha / R; positive."""

    def __post_init__(self) -> None:
        for name, kinds in (
            ("user_table", get_args(TableKind)),
            ("item_table", get_args(TableKind)),
            ("item_bias", get_args(BiasKind)),
            ("tower", get_args(TowerKind)),
        ):
            if getattr(self, name) not in kinds:
                raise AdapterError(
                    f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}"
                )
        if self.rank < 1:
            raise AdapterError(f"rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise AdapterError(f"alpha must be a positive number, got {self.alpha}")

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


FULL = AdapterConfig(user_table="full", item_table="full", item_bias="bias", tower="full")
"""Everything free: full fine-tuning of what a segment touches."""


@dataclass(frozen=True)
class Adapter:
    """All deltas of one segment.

    `tensors` hold, per target, the touched rows (`users.rows`, `items.rows`, int64, ascending) and
    the factors (`user_table.a`, `item_bias.d`, `tower.0.weight.b`, ...). A row number from the
    base's N on stands for an identifier that the base does not know: the adapter's own list of
    them (`users.new_ids...`) in order.
    """

    segment: str
    config: AdapterConfig
    base_fingerprint: str
    tensors: Mapping[str, Tensor]

    @property
    def num_numbers(self) -> int:
        """How many numbers were trained for this segment (row numbers and identifiers not
        counted).
        """
        return sum(t.numel() for t in self.tensors.values() if t.is_floating_point())

    def __repr__(self) -> str:
        return (
            f"Adapter({self.segment!r}, {self.num_numbers:,} numbers, rank {self.config.rank}, "
            f"on base {self.base_fingerprint[:12]})"
        )


def check_base(adapter: Adapter, base: BaseModel) -> None:
    """Refuse an adapter that was trained on another base.

    Raises:
        AdapterError: the fingerprints differ; both are shown.
    """
    if adapter.base_fingerprint != base.fingerprint:
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} was trained on base "
            f"{adapter.base_fingerprint}, this base is {base.fingerprint}: load its own base, "
            f"or train it anew on this one"
        )


# Identifiers that the base does not know travel in the adapter, as tensors like all else in it.


def id_tensors(side: str, ids: pa.Array) -> dict[str, Tensor]:
    if pa.types.is_integer(ids.type):
        return {f"{side}.new_ids": torch.from_numpy(ids.to_numpy(zero_copy_only=False).copy())}
    encoded = [text.encode() for text in ids.to_pylist()]
    joined = bytearray(b"".join(encoded))
    return {
        f"{side}.new_id_bytes": torch.frombuffer(joined, dtype=torch.uint8)
        if joined
        else torch.empty(0, dtype=torch.uint8),
        f"{side}.new_id_lengths": torch.tensor([len(e) for e in encoded], dtype=torch.int64),
    }


def new_ids(adapter: Adapter, side: str, known: IdMap) -> pa.Array:
    if pa.types.is_integer(known.ids.type):
        return pa.array(adapter.tensors[f"{side}.new_ids"].numpy(), known.ids.type)
    data = adapter.tensors[f"{side}.new_id_bytes"].numpy().tobytes()
    ends = adapter.tensors[f"{side}.new_id_lengths"].cumsum(0).tolist()
    texts = [data[i:j].decode() for i, j in zip([0, *ends], ends, strict=False)]
    return pa.array(texts, known.ids.type)


def bank_rows(rows: Tensor, new_ids: pa.Array, num_known: int, ids: IdMap) -> Tensor:
    """An adapter's row numbers in a bank whose id maps hold other new identifiers too."""
    new = torch.from_numpy(ids.rows_of(new_ids))
    return torch.cat([rows[rows < num_known], new])
