"""This file is a change of one module as a product of two factors, and how PEFT stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reclora.configs import scaling_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Product:
    """The change of a P x Q matrix by scaling * L M, with L (P x R) and M (R x Q).

    Of a layer L = B and M = A; of a table L = a, over all of its N rows, and M = b.
    """

    left_PR: Tensor
    right_RQ: Tensor
    alpha: float
    rank_stabilised: bool

    @property
    def rank(self) -> int:
        return len(self.right_RQ)

    @property
    def scaling(self) -> float:
        return scaling_of(self.alpha, self.rank, self.rank_stabilised)

    @classmethod
    def scaled(
        cls, left_PR: Tensor, right_RQ: Tensor, scaling: float, rank_stabilised: bool
    ) -> Product:
        """With the alpha that gives the scaling."""
        rank = len(right_RQ)
        alpha = scaling * (rank**0.5 if rank_stabilised else rank)
        return cls(left_PR, right_RQ, alpha, rank_stabilised)

    @classmethod
    def sum(cls, parts: Sequence[Product]) -> Product:
        """What its parts change together; of one part, that part:

        s_1 L_1 M_1 + s_2 L_2 M_2 = [s_1 L_1, s_2 L_2] [M_1; M_2]
        """
        if len(parts) == 1:
            return parts[0]
        left_PR = torch.cat([part.scaling * part.left_PR for part in parts], 1)
        right_RQ = torch.cat([part.right_RQ for part in parts])
        stabilised = all(part.rank_stabilised for part in parts)
        return cls.scaled(left_PR, right_RQ, 1.0, stabilised)

    def within_sides(self) -> Product:
        """The same change with a rank of at most min(P, Q), above which a rank is no use."""
        height, width = len(self.left_PR), self.right_RQ.shape[1]
        if self.rank <= min(height, width):
            return self
        whole_PQ = (self.left_PR.double() @ self.right_RQ.double()).float()
        left_PR, right_RQ = torch.eye(height), whole_PQ
        if width <= height:
            left_PR, right_RQ = whole_PQ, torch.eye(width)
        return self.scaled(left_PR, right_RQ, self.scaling, self.rank_stabilised)


def shapes(module: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes by which PEFT stores the factors of a module."""
    height, *rest = module.get_parameter("weight").shape
    if isinstance(module, nn.Embedding):
        return {"lora_embedding_A": (rank, height), "lora_embedding_B": (rest[0], rank)}
    points = [1] * (len(rest) - 1)
    return {"lora_A.weight": (rank, *rest), "lora_B.weight": (height, rank, *points)}


def to_peft(module: nn.Module, product: Product) -> dict[str, Tensor]:
    """The factors as PEFT stores them."""
    if isinstance(module, nn.Embedding):
        factors = {"lora_embedding_A": product.left_PR.T, "lora_embedding_B": product.right_RQ.T}
    else:
        factors = {"lora_A.weight": product.right_RQ, "lora_B.weight": product.left_PR}
    wanted = shapes(module, product.rank)
    return {name: factor.reshape(wanted[name]).contiguous() for name, factor in factors.items()}


def from_peft(module: nn.Module, factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """L and M of factors as PEFT stores them; views."""
    if isinstance(module, nn.Embedding):
        return factors["lora_embedding_A"].T, factors["lora_embedding_B"].T
    return factors["lora_B.weight"].flatten(1), factors["lora_A.weight"].flatten(1)
