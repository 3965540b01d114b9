"""Adapter: all deltas of one segment, what is stored and promoted. AdapterBank: all segments' deltas stacked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AdapterConfig:
    """Which deltas an adapter has, and how large."""

    user_table: str = "rows"
    item_table: str = "rows"
    item_bias: str = "bias"
    tower: str = "low_rank"
    rank: int = 8
    alpha: float = 8.0


@dataclass(frozen=True)
class Adapter:
    """All deltas of one segment."""

    segment: str
    config: AdapterConfig
    base_fingerprint: str
    tensors: Mapping[str, Tensor]
