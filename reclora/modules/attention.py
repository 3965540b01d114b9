"""This file is deltas on the projections of nn.MultiheadAttention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reclora.configs import AdapterError, DeltaConfig
from reclora.deltas import Delta, LowRankWeight, Owners
from reclora.modules.mixed import Tiles
from reclora.modules.sites import Change, Current

PROJECTIONS = ("q", "k", "v", "out")


class AttentionSite:
    """Each projection W x + b of segment s becomes W x + b + scaling * B_s (A_s x).

    The module reads its weights without calling anything that a hook could be on, so its forward
    is replaced by the same attention over adapted projections, of inference (the attention's own
    dropout is off, as in all of an adapted model).

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2; Hu et al.,
    "LoRA", ICLR 2022, section 4.2.
    """

    touched = None

    def __init__(
        self, path: str, module: nn.MultiheadAttention, config: DeltaConfig, owners: Owners
    ) -> None:
        self.path, self.owner, self.module = path, module, module
        self.dropout = config.dropout
        self.deltas: dict[str, Delta] = {
            f"{name}.low_rank": LowRankWeight(
                owners, (weight.shape[0], weight.shape[1]), config.low_rank
            )
            for name, (weight, _) in projections(module).items()
        }

    def attach(self, current: Current) -> Callable[[], None]:
        attention = self.module.__dict__.get("forward")
        if not isinstance(attention, AdaptedAttention):
            attention = AdaptedAttention(self.module)
            # Seen by nn.TransformerEncoderLayer, which else reads the weights past any forward.
            attention.mark = self.module.register_forward_hook(lambda *_: None)
            self.module.__dict__["forward"] = attention
        part = (self, current)
        attention.parts.append(part)

        def remove() -> None:
            attention.parts.remove(part)
            if not attention.parts:
                attention.mark.remove()
                self.module.__dict__.pop("forward", None)

        return remove

    def change(self, tiles: Tiles, name: str, x: Tensor) -> Tensor:
        """What is added to a projection of x, both (B, L, ...)."""
        delta = cast(LowRankWeight, self.deltas[f"{name}.low_rank"])
        if self.dropout and delta.training:
            x = F.dropout(x, self.dropout)
        x = tiles.spread(self.path, x)
        packed = tiles.pack(x)
        change_GBO = delta.change(packed.flatten(1, -2), tiles.segments_G)
        return tiles.unpack(change_GBO.view(*packed.shape[:-1], delta.out_features))

    def merged(self, code: int) -> Iterator[Change]:
        for name, (weight, _) in projections(self.module).items():
            delta = self.deltas[f"{name}.low_rank"]
            yield Change(weight, None, delta(weight.unsqueeze(0), torch.tensor([code]))[0])


def projections(module: nn.MultiheadAttention) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weight and bias of q, k, v and out; of the first three views where they are one."""
    biases: tuple[Tensor | None, ...] = (None,) * 3
    if module.in_proj_bias is not None:
        biases = module.in_proj_bias.chunk(3)
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = cast("tuple[Tensor, ...]", separate)
    found = {name: (weights[n], biases[n]) for n, name in enumerate(PROJECTIONS[:3])}
    return {**found, "out": (module.out_proj.weight, module.out_proj.bias)}


class AdaptedAttention:
    """The forward of an attention whose projections are adapted; the signature is the module's."""

    mark: torch.utils.hooks.RemovableHandle

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module
        self.parts: list[tuple[AttentionSite, Current]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        module = self.module
        now = [(site, tiles) for site, current in self.parts if (tiles := current()) is not None]
        if not now:
            return type(module).forward(
                module,
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        path = now[0][0].path
        if query.is_nested or query.dim() != 3:
            raise AdapterError(
                f"module {path!r} got a query of {query.dim()} dimensions: adapted, it needs a "
                f"plain tensor of 3, with the samples in one of them"
            )
        if not module.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))

        def project(name: str, x: Tensor) -> Tensor:
            weight, bias = projections(module)[name]
            y = F.linear(x, weight, bias)
            for site, tiles in now:
                y = y + site.change(tiles, name, x)
            return y

        mask = _mask(path, module, query, key, key_padding_mask, attn_mask, is_causal)
        heads, dim = module.num_heads, module.head_dim
        q, k, v = (
            project(name, x).view(*x.shape[:2], heads, dim).transpose(1, 2)
            for name, x in zip(PROJECTIONS[:3], (query, key, value), strict=True)
        )
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) / math.sqrt(dim)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        y = project("out", mixed.transpose(1, 2).flatten(2))
        return (y if module.batch_first else y.transpose(0, 1)), weights


def _mask(
    path: str,
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Tensor | None:
    """What is added to the scores, broadcast to (B, heads, L, S)."""
    samples, num_keys = key.shape[0], key.shape[1]
    if is_causal and attn_mask is None:
        raise AdapterError(f"module {path!r}: is_causal is a hint, it needs attn_mask beside it")
    total: Tensor | None = None
    if attn_mask is not None:
        total = _added(attn_mask, query)
        if total.dim() == 3:
            total = total.view(samples, module.num_heads, *total.shape[1:])
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, query).view(samples, 1, 1, num_keys)
        total = padding if total is None else total + padding
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(mask, -torch.inf)
