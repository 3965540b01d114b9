"""This file is factorisation by gradient: Adam on the whole of both tables, some users at a time.

A step takes all rows of its users, so that a user's rows share one row of logits. Adam moves every
row of the tables in every step, also those without a gradient, by what it remembers of earlier
ones; to move only the rows that a step touches costs a tenth of NDCG. The learning rates fall
linearly to zero over `config.epochs`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from reclora.counted import U64, mix
from reclora.factorisation.config import FactorisationConfig
from reclora.factorisation.course import Epoch
from reclora.factorisation.directions import directed
from reclora.factorisation.negatives import Sampler
from reclora.factorisation.objective import Objective, Step, Tables
from reclora.factorisation.positives import Positives, Rows


def descend(
    positives: Positives,
    config: FactorisationConfig,
    stream: U64,
    declined: Positives | None = None,
) -> Iterator[Epoch]:
    """The epochs of a factorisation, as many as are asked for, `config.epochs` at the most.

    Args:
        positives: by user.
        stream: one number, shape (1,), that all that is drawn follows.
        declined: by user, of users who have positives.
    """
    steps = Steps(positives, config, stream, declined)
    tables = _random_tables(positives, config, stream)
    optimizer = torch.optim.Adam(
        [
            {"params": [tables.user_ND, tables.item_ND], "rate": config.lr},
            {"params": [tables.bias_N], "rate": config.bias_lr},
        ],
        fused=True,
    )
    objective, last, taken = Objective(config), config.epochs * steps.per_epoch, 0
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for step in steps.of(epoch):
            optimizer.zero_grad()
            loss, minimised = objective(tables, step)
            torch.autograd.backward(minimised)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * (1 - taken / last)
            optimizer.step()
            taken += 1
            total += float(loss.detach()) * len(step.item_B)
        yield Epoch(total / steps.num_rows, lambda: _scored(tables, config))


def _random_tables(positives: Positives, config: FactorisationConfig, stream: U64) -> Tables:
    generator = torch.Generator().manual_seed(int(stream[0]) >> 1)
    user_ND, item_ND = (
        torch.randn(rows, config.embedding_dim, generator=generator) * config.init_std
        for rows in (positives.num_rows, positives.num_others)
    )
    bias_N = torch.zeros(positives.num_others)
    return Tables(*(table.requires_grad_() for table in (user_ND, item_ND, bias_N)))


@torch.no_grad()
def _scored(tables: Tables, config: FactorisationConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The tables whose score u . v + b is that of the config."""
    return (
        directed(tables.user_ND, config) * config.score_scale,
        directed(tables.item_ND, config).clone(),
        tables.bias_N * (config.score_scale / config.loss_scale),
    )


class Steps:
    """The steps of each epoch: which users, against which negatives; `num_rows` in all of them."""

    def __init__(
        self,
        positives: Positives,
        config: FactorisationConfig,
        stream: U64,
        declined: Positives | None = None,
    ) -> None:
        self._sides = (positives,) if declined is None else (positives, declined)
        self._batch_users, self._stream = config.batch_users, stream
        self._users = np.flatnonzero(np.diff(positives.offsets))
        sizes = np.sum([np.diff(side.offsets) for side in self._sides], axis=0)
        weights = [side.weights / sizes[side.rows] ** config.user_weight for side in self._sides]
        mean = np.concatenate(weights).mean()
        self._weights = [(own / mean).astype(np.float32) for own in weights]
        self.num_rows = sum(len(side.others) for side in self._sides)
        self._sampler = None
        if config.num_negatives is not None:
            self._sampler = Sampler(positives, config.num_negatives, mix(stream))
        self.per_epoch = -(-len(self._users) // config.batch_users)

    def of(self, epoch: int) -> Iterator[Step]:
        """All users that have rows once, in the random order of this epoch."""
        keys = mix(mix(self._stream + np.uint64(epoch)) ^ self._users.astype(np.uint64))
        order = self._users[np.argsort(keys, kind="stable")]
        for number in range(self.per_epoch):
            begin = number * self._batch_users
            yield self._step(order[begin : begin + self._batch_users], epoch, number)

    def _step(self, users: Rows, epoch: int, number: int) -> Step:
        parts = []
        for side, weights in zip(self._sides, self._weights, strict=True):
            owners, places = side.places_of(users)
            parts.append((owners, side.others[places], weights[places]))
        owner_B, item_B, weight_B = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
        )
        num_positive = len(parts[0][0])
        positive = owner_B[:num_positive], item_B[:num_positive]
        drawn = None if self._sampler is None else self._sampler.draw(epoch, number)
        return Step(
            torch.from_numpy(users),
            owner_B,
            item_B,
            weight_B,
            drawn,
            positive if drawn is None else drawn.cells(*positive),
            len(owner_B) - num_positive,
        )
