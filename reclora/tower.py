"""The ranking tower: a small MLP over [u, v, u * v] that adds to the dot product of user and item.

    score(u, v) = u . v + b_i + MLP([u, v, u * v])

The first layer's weight has three parts, W = [W_u | W_v | W_uv]. To score B users with C items it
is split: W_u u and W_v v are made once a side, and only W_uv (u * v) is made once a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Layer = tuple[Tensor, Tensor]
"""A linear layer of each of G segments: weight (G, O, I), bias (G, O)."""


@dataclass(frozen=True)
class Tower:
    """The frozen weights of the tower: layer l maps I_l numbers to O_l; hidden layers end in a
    ReLU; the last O is 1.

    Raises:
        ValueError: the layers do not fit each other, or do not end in one number.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        widths = [w.shape[1] for w in self.weights] + [1]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.shape[0] != widths[i + 1] or bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"tower layer {i} must map {widths[i]} numbers to {widths[i + 1]}, "
                    f"got weight {tuple(weight.shape)} and bias {tuple(bias.shape)}"
                )
        if widths[0] % 3:
            raise ValueError(f"the tower reads [u, v, u * v]: 3 x D numbers, got {widths[0]}")

    @classmethod
    def random(cls, embedding_dim: int, hidden: Sequence[int], generator: torch.Generator) -> Tower:
        """A fresh tower (He initialisation; He et al., ICCV 2015); its last layer is zero, so that
        it adds nothing yet.
        """
        widths = [3 * embedding_dim, *hidden, 1]
        weights = [
            torch.randn(o, i, generator=generator) * (2 / i) ** 0.5
            for i, o in zip(widths, widths[1:], strict=False)
        ]
        weights[-1].zero_()
        return cls(tuple(weights), tuple(torch.zeros(o) for o in widths[1:]))

    def layers(self) -> list[Layer]:
        """The layers as of one segment (G = 1)."""
        return [
            (w.unsqueeze(0), b.unsqueeze(0)) for w, b in zip(self.weights, self.biases, strict=True)
        ]


def _rest(hidden: Tensor, layers: Sequence[Layer]) -> Tensor:
    """All layers after the first, on (G, P, O) pre-activations; returns (G, P)."""
    for weight_GOI, bias_GO in layers:
        hidden = torch.baddbmm(bias_GO.unsqueeze(1), F.relu(hidden), weight_GOI.transpose(1, 2))
    return hidden.squeeze(-1)


def paired_scores(layers: Sequence[Layer], u_GBD: Tensor, v_GBD: Tensor) -> Tensor:
    """The tower's part of the score of user b with item b, shape (G, B)."""
    (weight_GOI, bias_GO), *rest = layers
    inputs = torch.cat([u_GBD, v_GBD, u_GBD * v_GBD], -1)
    return _rest(torch.baddbmm(bias_GO.unsqueeze(1), inputs, weight_GOI.transpose(1, 2)), rest)


def all_scores(layers: Sequence[Layer], u_GBD: Tensor, v_GCD: Tensor) -> Tensor:
    """The tower's part of the score of every user with every item, shape (G, B, C)."""
    (weight_GOI, bias_GO), *rest = layers
    (G, B, D), C, H = u_GBD.shape, v_GCD.shape[1], weight_GOI.shape[1]
    w_u, w_v, w_uv = torch.split(weight_GOI.transpose(1, 2), D, dim=1)
    # W_v v + W_uv (u * v) = (W_v + W_uv diag(u)) v: a matrix per user, one product for all pairs.
    matrices_GDBH = w_v.unsqueeze(2) + u_GBD.transpose(1, 2).unsqueeze(3) * w_uv.unsqueeze(2)
    side_GBH = u_GBD @ w_u + bias_GO.unsqueeze(1)
    hidden = torch.baddbmm(side_GBH.reshape(G, 1, B * H), v_GCD, matrices_GDBH.reshape(G, D, B * H))
    return _rest(hidden.view(G, C * B, H), rest).view(G, C, B).transpose(1, 2)
