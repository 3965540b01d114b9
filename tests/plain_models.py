"""A base model and adapters on it in slow plain loops: what a bank is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reclora.adapters import Adapter
from reclora.base import BaseModel
from tests import reference

Rows = list[list[float]]


@dataclass(frozen=True)
class PlainModel:
    """The tables and the tower's layers, as lists."""

    users: Rows
    items: Rows
    biases: Rows
    layers: list[tuple[Rows, list[float]]]

    @classmethod
    def of(cls, base: BaseModel) -> PlainModel:
        tower = zip(base.tower.weights, base.tower.biases, strict=True) if base.tower else []
        return cls(
            base.user_table.materialised().tolist(),
            base.item_table.materialised().tolist(),
            base.item_bias.materialised().tolist(),
            [(weight.tolist(), bias.tolist()) for weight, bias in tower],
        )

    def adapted(self, adapter: Adapter) -> PlainModel:
        """By plain loops over an adapter's tensors, on top of its parent's."""
        below = self if adapter.parent is None else self.adapted(adapter.parent)
        return PlainModel(
            plain_table(adapter, "user_table", "users", below.users),
            plain_table(adapter, "item_table", "items", below.items),
            plain_table(adapter, "item_bias", "items", below.biases),
            [plain_layer(adapter, f"tower.{n}", *layer) for n, layer in enumerate(below.layers)],
        )

    def scores(self) -> Tensor:
        return torch.tensor(
            [
                [
                    reference.score(u, v, c[0], self.layers)
                    for v, c in zip(self.items, self.biases, strict=True)
                ]
                for u in self.users
            ]
        )


def plain_table(adapter: Adapter, name: str, side: str, below: Rows) -> Rows:
    tensors, scaling = adapter.tensors, adapter.config.scaling  # type: ignore[union-attr]
    slots = {row: slot for slot, row in enumerate(tensors[f"{side}.rows"].tolist())}

    def factor(kind: str, letter: str) -> Rows | None:
        found = tensors.get(f"{name}.{kind}.{letter}")
        return None if found is None else found.tolist()

    def adapted(e: list[float], slot: int | None) -> list[float]:
        if (c := factor("scale", "c")) is not None:
            e = reference.scaled_row(e, c[0])
        if (a := factor("map", "a")) is not None:
            e = reference.mapped_row(e, a, factor("map", "b") or [], scaling)
        if slot is None:
            return e
        if (a := factor("basis", "a")) is not None:
            e = reference.low_rank_row(e, a[slot], reference.basis(len(a[slot]), len(e)), scaling)
        if (a := factor("rows", "a")) is not None:
            v = reference.low_rank_row(e, a[slot], factor("rows", "b") or [], scaling)
            m = factor("rows", "m")
            e = v if m is None else reference.row_of_length(e, v, m[slot][0])
        for kind in ("full", "bias"):
            if (d := factor(kind, "d")) is not None:
                e = reference.moved_row(e, d[slot])
        return e

    return [adapted(e, slots.get(row)) for row, e in enumerate(below)]


def plain_layer(
    adapter: Adapter, name: str, weight: Rows, bias: list[float]
) -> tuple[Rows, list[float]]:
    numbers = {
        key.removeprefix(f"{name}."): tensor.tolist()
        for key, tensor in adapter.tensors.items()
        if key.startswith(f"{name}.")
    }
    if "weight.low_rank.b" in numbers:
        b, a = numbers["weight.low_rank.b"], numbers["weight.low_rank.a"]
        scaling = adapter.config.scaling  # type: ignore[union-attr]
        weight = reference.low_rank_weight(weight, b, a, scaling)
    if "weight.full.d" in numbers:
        weight = [
            reference.moved_row(*rows)
            for rows in zip(weight, numbers["weight.full.d"], strict=True)
        ]
    if "bias.full.d" in numbers:
        bias = [x + d for x, (d,) in zip(bias, numbers["bias.full.d"], strict=True)]
    return weight, bias
