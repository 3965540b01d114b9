"""This file is who trains what, and which rows of the base that takes.

Segments go to ranks in chunks that follow from the segments' sizes alone, so that whatever a chunk
makes, its checkpoints too, is the same on however many ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.batches import chunks_of, segment_seeds
from reclora.interactions import Interactions
from reclora.negatives import Sampler
from reclora.training import VALIDATION_EPOCH, TrainingConfig

Codes = tuple[int, ...]
"""The codes of the segments of a chunk."""


def divide(sizes_S: NDArray[np.int64], chunk_rows: int, num_ranks: int) -> list[list[Codes]]:
    """The chunks of each rank: every segment is in one of them, on one rank.

    Segments of like size make a chunk (`reclora.batches.chunks_of`), and ranks have about as many
    rows each (`balanced`).

    Args:
        sizes_S: the rows of each segment.
        num_ranks: at least 1; a rank may get nothing.
    """
    chunks = chunks_of(sizes_S, chunk_rows)
    totals = [int(sizes_S[list(chunk)].sum()) for chunk in chunks]
    return [[chunks[at] for at in own] for own in balanced(totals, num_ranks)]


def balanced(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """The numbers of the parts of each rank: the largest first, to the rank with the least yet.

    Source: Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 1969: no rank
    gets more than 4/3 of the least possible.
    """
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = np.zeros(num_ranks, dtype=np.int64)
    for at in np.argsort(-np.array(sizes, dtype=np.int64), kind="stable").tolist():
        least = int(np.argmin(loads))
        ranks[least].append(at)
        loads[least] += sizes[at]
    return ranks


def rows_of_training(
    log: Interactions, held_out: Interactions | None, config: TrainingConfig, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The user rows and the item rows of the base that `train` looks up: those of the log, of the
    held-out rows that `HeldOutLoss` judges by, and of every negative that either draws.

    Of n rows a softmax draws n x epochs x num_negatives / (2 x batch_rows) items uniformly, and no
    more than there are: memory follows the log.
    """
    users, items = [log.user_rows], [log.item_rows]
    items += _drawn(log, config, seed, range(1, config.epochs + 1))
    if held_out is not None:
        users.append(held_out.user_rows)
        items += [held_out.item_rows, *_drawn(held_out, config, 0, [VALIDATION_EPOCH])]
    found = (np.unique(np.concatenate(rows)) for rows in (users, items))
    user_rows, item_rows = map(torch.from_numpy, found)
    return user_rows, item_rows


def _drawn(
    log: Interactions, config: TrainingConfig, seed: int, epochs: Sequence[int]
) -> list[NDArray[np.int64]]:
    """The items of the negatives of each epoch; drawing counts, and can be done beforehand."""
    sampler = Sampler(log, config.num_negatives, config.loss == "softmax")
    seeds_S, sizes_S = segment_seeds(seed, log), np.diff(log.offsets)
    found = []
    for epoch in epochs:
        of_epoch = [np.empty(0, np.int64)]
        for step in range(-(-int(sizes_S.max(initial=0)) // config.batch_rows)):
            now = np.flatnonzero(sizes_S > step * config.batch_rows)
            of_epoch.append(sampler.draw(now, seeds_S[now], epoch, step)[0].numpy().ravel())
        found.append(np.unique(np.concatenate(of_epoch)))
    return found
