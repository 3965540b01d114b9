"""Adapter: all deltas of one segment; what is stored and promoted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from reclora.base import BaseModel
from reclora.configs import AdapterError, Config
from reclora.interactions import IdMap


@dataclass(frozen=True)
class Adapter:
    """All deltas of one segment.

    `tensors` hold, per target, the touched rows (`users.rows`, `items.rows`, int64, ascending) and
    the factors, named target, kind, factor (`user_table.rows.a`, `item_bias.bias.d`,
    `tower.0.weight.low_rank.b`, ...). A row number from the base's N on stands for an identifier
    that the base does not know: the adapter's own list of them (`users.new_ids...`) in order.
    With a parent its changes stand on top of the parent's; with the config `()` and no tensor it
    has none, and the segment is served by its parent.
    """

    segment: str
    config: Config
    base_fingerprint: str
    tensors: Mapping[str, Tensor]
    parent: Adapter | None = None

    @property
    def is_served(self) -> bool:
        """Whether the segment has nothing of its own."""
        return self.config == () and self.parent is not None

    @property
    def num_numbers(self) -> int:
        """How many numbers were trained for this segment (row numbers and identifiers not
        counted).
        """
        return sum(t.numel() for t in self.tensors.values() if t.is_floating_point())

    def __repr__(self) -> str:
        parent = f"on {self.parent.segment!r}, " if self.parent else ""
        return (
            f"Adapter({self.segment!r}, {self.num_numbers:,} numbers, {parent}"
            f"of base {self.base_fingerprint[:12]})"
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
    return ids_of_tensors(adapter.tensors, side, known)


def ids_of_tensors(tensors: Mapping[str, Tensor], side: str, known: IdMap) -> pa.Array:
    """What `id_tensors` was given; of the type of an id map."""
    if pa.types.is_integer(known.ids.type):
        return pa.array(tensors[f"{side}.new_ids"].numpy(), known.ids.type)
    data = tensors[f"{side}.new_id_bytes"].numpy().tobytes()
    ends = tensors[f"{side}.new_id_lengths"].cumsum(0).tolist()
    texts = [data[i:j].decode() for i, j in zip([0, *ends], ends, strict=False)]
    return pa.array(texts, known.ids.type)


def bank_rows(rows: Tensor, new_ids: pa.Array, num_known: int, ids: IdMap) -> Tensor:
    """An adapter's row numbers in a bank whose id maps hold other new identifiers too."""
    new = torch.from_numpy(ids.rows_of(new_ids))
    return torch.cat([rows[rows < num_known], new])
