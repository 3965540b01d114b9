"""This file is dropout of the row factor, drawn by counting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reclora.counted import U64, mix

Dropout = Callable[[Tensor, Tensor], Tensor]
"""(row factors (G, B, R), their rows (G, B)) -> the factors with some numbers dropped."""


@dataclass(frozen=True)
class RowDropout:
    """In a step each number of a_s[i] is dropped with probability p, the others count 1 / (1 - p).

    A row drops the same numbers wherever it stands in the step, and they depend on the segment's
    stream alone: in training many segments at once, each drops what it would drop alone.

    Attributes:
        p: 0 <= p < 1.
        streams_G: one random number of each segment in the batch for this step.

    Source: Srivastava et al., JMLR 2014, on the factor as Hu et al. (LoRA) drop its input.
    """

    p: float
    streams_G: U64

    def __call__(self, a_GBR: Tensor, ids_GB: Tensor) -> Tensor:
        """The factor with some numbers dropped, shape (G, B, R)."""
        rank = a_GBR.shape[-1]
        counters = (ids_GB.unsqueeze(-1) * rank + torch.arange(rank)).numpy().astype(np.uint64)
        drawn = mix(mix(counters) ^ self.streams_G[:, None, None]) >> np.uint64(40)
        kept = torch.from_numpy(drawn.astype(np.float32) >= self.p * 2**24)
        return a_GBR * kept / (1 - self.p)
