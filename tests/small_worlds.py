"""Small bases, logs and banks that several tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import FULL, AdapterConfig
from reclora.interactions import IdMap, Interactions
from reclora.tower import Tower

KINDS = {
    "rows": AdapterConfig(rank=3, alpha=6.0),
    "full": FULL,
    "bias": AdapterConfig(user_table="none", item_table="none", tower="none"),
    "items": AdapterConfig(user_table="none", item_bias="none", tower="none", rank=2),
    "tower": AdapterConfig(user_table="none", item_table="none", item_bias="none", rank=5),
    "map": AdapterConfig(user_table="map", item_table="map", tower="none", rank=2, alpha=1.0),
    "basis": AdapterConfig(user_table="basis", item_table="basis", item_bias="none", tower="none"),
    "ladder": AdapterConfig(
        user_table="scale + map + basis",
        item_table="scale + rows",
        rank=2,
        alpha=1.5,
        rank_stabilised=True,
        init="orthogonal",
    ),
    "magnitude": AdapterConfig(
        user_table="map + rows", item_bias="none", tower="none", rank=3, magnitude=True
    ),
}
"""Configs that between them use every kind of delta alone and together."""

SIZES = {"market 0": 150, "日本": 60, "no rows": 0, "../up": 25, "one row": 1}
"""Rows of each segment: large, small, none and one."""

MIXED = {
    "market 0": KINDS["rows"],
    "日本": KINDS["ladder"],
    "no rows": KINDS["tower"],
    "../up": AdapterConfig(item_bias="none", rank=2, rank_stabilised=True),
    "one row": FULL,
}
"""One config for each segment of `SIZES`: other kinds, ranks and scalings side by side."""

ALL_KINDS = (*KINDS, "mixed")


def configs_of(kind: str, segments: Sequence[str]) -> list[AdapterConfig]:
    """The config of each segment: one of `KINDS`, or its own of `MIXED`."""
    return [MIXED[name] if kind == "mixed" else KINDS[kind] for name in segments]


def make_tower(dim: int, hidden: tuple[int, ...], seed: int = 0) -> Tower:
    """A tower that adds something: the fresh one ends in zeros."""
    generator = torch.Generator().manual_seed(seed)
    fresh = Tower.random(dim, hidden, generator)
    return Tower(
        tuple(torch.randn(w.shape, generator=generator) / w.shape[1] ** 0.5 for w in fresh.weights),
        tuple(torch.randn(b.shape, generator=generator) / 4 for b in fresh.biases),
    )


def make_base(
    num_users: int = 40,
    num_items: int = 30,
    dim: int = 8,
    hidden: tuple[int, ...] = (12,),
    seed: int = 0,
) -> BaseModel:
    """A base with integer user ids and string item ids, a bias, and a tower if `hidden`."""
    generator = torch.Generator().manual_seed(seed)
    return BaseModel.of(
        IdMap(np.arange(num_users) * 7 - 3),
        IdMap([f"item {number}" for number in range(num_items)]),
        torch.randn(num_users, dim, generator=generator) / 2,
        torch.randn(num_items, dim, generator=generator) / 2,
        torch.randn(num_items, generator=generator),
        make_tower(dim, hidden, seed) if hidden else None,
    )


def make_log(
    base: BaseModel, sizes: Mapping[str, int] = SIZES, seed: int = 0, weighted: bool = False
) -> Interactions:
    """Uniform interactions, as many in each segment as `sizes` says."""
    rng = np.random.default_rng(seed)
    segments = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    return Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=tuple(sizes),
        segments=segments,
        user_rows=rng.integers(len(base.users), size=len(segments)),
        item_rows=rng.integers(len(base.items), size=len(segments)),
        timestamps=rng.permutation(len(segments)),
        weights=rng.uniform(0.5, 2.0, len(segments)) if weighted else None,
    )


@torch.no_grad()
def fill(bank: AdapterBank, seed: int = 1) -> AdapterBank:
    """Give every number of every segment a random value; padding rows stay zero."""
    generator = torch.Generator().manual_seed(seed)
    for _, delta in bank.deltas():
        for code in range(len(bank.segment_names)):
            for name, part in delta.slices(code).items():
                place = delta.get_parameter(name)[part]
                place.copy_(torch.randn(place.shape, generator=generator) / 3)
    return bank


def make_bank(kind: str, base: BaseModel, seed: int = 0) -> AdapterBank:
    """A bank of random numbers over `make_log(base)`."""
    log = make_log(base)
    configs = configs_of(kind, log.segment_names)
    return fill(AdapterBank.for_log(base, log, configs, seed), seed + 1)


def numbers(bank: AdapterBank, segment: str) -> dict[str, bytes]:
    """The bytes of a segment's adapter."""
    return {
        name: tensor.numpy().tobytes() for name, tensor in bank.adapter(segment).tensors.items()
    }
