"""Stores of adapters that are told apart by one number each."""

from collections.abc import Mapping
from pathlib import Path

import torch

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig
from reclora.store import AdapterStore, Release

BASE = "ba5e" * 16
OTHER = "f0f0" * 16


def adapter(
    segment: str, value: float, base: str = BASE, rank: int = 2, parent: Adapter | None = None
) -> Adapter:
    rows = 1 + len(segment) % 3
    tensors = {
        "items.rows": torch.arange(rows),
        "item_table.a": torch.full((rows, rank), float(value)),
        "item_table.b": torch.full((rank, 3), -float(value)),
    }
    return Adapter(segment, AdapterConfig(rank=rank), base, tensors, parent)


def adapters(values: Mapping[str, float]) -> list[Adapter]:
    return [adapter(segment, value) for segment, value in values.items()]


def value_of(found: Adapter) -> float:
    """The number that `adapter` was given; every tensor must agree on it."""
    (value,) = set(found.tensors["item_table.a"].flatten().tolist())
    assert (found.tensors["item_table.b"] == -value).all()
    return float(value)


def contents(store: AdapterStore, release: Release | int | None = None) -> dict[str, float]:
    loaded = store.load_all(base_fingerprint=BASE, release=release)
    return {found.segment: value_of(found) for found in loaded}


def candidates(store: AdapterStore, release: Release | int | None = None) -> dict[str, float]:
    stacks = store.load_stacks(base_fingerprint=BASE, release=release, candidates=True)
    return {found.segment: value_of(found) for stack in stacks for found in stack}


def pack_of(store: AdapterStore, segment: str, release: int) -> Path:
    return store.root / "packs" / f"{store.release(release).segments[segment].pack}.safetensors"
