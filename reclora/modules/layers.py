"""This file is deltas on the layers with a weight and a bias: Linear, Conv1d, Conv2d."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reclora.configs import AdapterError, DeltaConfig
from reclora.deltas import BiasDelta, Delta, LowRankWeight, Owners, ScaleDelta
from reclora.modules.mixed import Tiles
from reclora.modules.sites import Change, Current, hook_outputs


class LayerSite:
    """The output y = W x + b of segment s becomes

        (1 + c_s) * y + scaling * B_s (A_s x) + d_s        scale, low_rank, bias

    for Linear; for a convolution A_s is one of the same stride, padding and dilation to R channels,
    and B_s one of a single point; c_s and d_s have a number a channel.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1; the convolution as PEFT has it.
    """

    touched = None

    def __init__(
        self,
        path: str,
        module: nn.Linear | nn.Conv1d | nn.Conv2d,
        configs: Sequence[DeltaConfig],
        owners: Owners,
    ) -> None:
        self.path, self.owner, self.module = path, module, module
        self.deltas: dict[str, Delta] = {}
        self.dropout = 0.0
        num_outputs, num_inputs = module.weight.shape[0], module.weight[0].numel()
        for config in configs:
            match config.kind:
                case "scale":
                    self.deltas["scale"] = ScaleDelta(owners, num_outputs)
                case "low_rank":
                    self.deltas["low_rank"] = LowRankWeight(
                        owners, (num_outputs, num_inputs), config.low_rank
                    )
                    self.dropout = config.dropout
                case "bias":
                    self.deltas["bias"] = BiasDelta(owners, num_outputs)

    def attach(self, current: Current) -> Callable[[], None]:
        return hook_outputs(self.module, current, self._adapted)

    def _adapted(self, tiles: Tiles, args: tuple[Any, ...], y: Tensor) -> Tensor:
        x = self._spread(tiles, args[0])
        y = y if len(y) == len(x) else y.expand(len(x), *y.shape[1:]).clone()
        if not len(x):
            return y
        for kind, delta in self.deltas.items():
            if kind == "low_rank":
                y = self._low_rank(tiles, cast(LowRankWeight, delta), x, y)
            else:
                y = self._by_channel(tiles, cast("ScaleDelta | BiasDelta", delta), y)
        return y

    def _spread(self, tiles: Tiles, x: Tensor) -> Tensor:
        dims = 2 if isinstance(self.module, nn.Linear) else self.module.weight.dim()
        if x.dim() < dims:
            raise AdapterError(
                f"module {self.path!r} got an input of shape {tuple(x.shape)}: adapted, it needs "
                f"the samples as the first of at least {dims} dimensions"
            )
        return tiles.spread(self.path, x)

    def _low_rank(self, tiles: Tiles, delta: LowRankWeight, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout and delta.training:
            x = F.dropout(x, self.dropout)
        if not isinstance(self.module, nn.Linear):
            return y + self._convolved(tiles, delta, x)
        change_GBO = delta.change(tiles.pack(x).flatten(1, -2), tiles.segments_G)
        return tiles.unpack(change_GBO.view(-1, tiles.height, *y.shape[1:])).add_(y)

    def _convolved(self, tiles: Tiles, delta: LowRankWeight, x: Tensor) -> Tensor:
        """B_s (A_s x): the tiles' channels stand side by side, a group for each tile."""
        module = cast("nn.Conv1d | nn.Conv2d", self.module)
        a_GRI, b_GOR = delta.factors(tiles.segments_G)
        groups = len(tiles.segments_G)
        kernels = a_GRI.reshape(groups * delta.rank, *module.weight.shape[1:])
        side_by_side = tiles.pack(x).transpose(0, 1).flatten(1, 2)
        convolve: Callable[..., Tensor] = F.conv1d if x.dim() == 3 else F.conv2d
        hidden = convolve(
            side_by_side,
            kernels,
            None,
            module.stride,
            module.padding,
            module.dilation,
            groups,
        )
        points = hidden.shape[2:]
        hidden_TGRP = hidden.view(len(hidden), groups, delta.rank, -1)
        change = delta.scaling * (b_GOR @ hidden_TGRP)
        return tiles.unpack(change.view(*change.shape[:3], *points).transpose(0, 1))

    def _by_channel(self, tiles: Tiles, delta: ScaleDelta | BiasDelta, y: Tensor) -> Tensor:
        last = y if isinstance(self.module, nn.Linear) else y.movedim(1, -1)
        segments_1B = tiles.segments_1B
        changed = delta(last.reshape(len(segments_1B), -1, last.shape[-1]), None, segments_1B)
        changed = changed.view(last.shape)
        return changed if last is y else torch.movedim(changed, -1, 1)

    def merged(self, code: int) -> Iterator[Change]:
        segment_1 = torch.tensor([code])
        weight, bias = self.module.weight, self.module.bias
        weight_1OI = weight.flatten(1).unsqueeze(0)
        bias_11O = weight.new_zeros(1, 1, len(weight)) if bias is None else bias.view(1, 1, -1)
        for kind, delta in self.deltas.items():
            if kind == "low_rank":
                weight_1OI = delta(weight_1OI, segment_1)
                continue
            bias_11O = delta(bias_11O, None, segment_1)
            if kind == "scale":
                weight_1OI = delta(weight_1OI.transpose(1, 2), None, segment_1).transpose(1, 2)
        yield Change(weight, None, weight_1OI.reshape(weight.shape))
        if bias is not None and {"scale", "bias"} & self.deltas.keys():
            yield Change(bias, None, bias_11O.flatten())
