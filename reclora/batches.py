"""How batches and negatives are drawn: by counting, as a function of (seed, segment, epoch,
position) alone.

Each step holds up to B rows of each of its G segments. Which rows, in which order and against
which negatives is worked out from the segment's own seed, so a segment sees the same batches
whoever trains beside it, and there is no random state to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.counted import U64, mix, segment_seed, step_streams
from reclora.interactions import Interactions
from reclora.negatives import Sampler


@dataclass(frozen=True)
class Batch:
    """B rows of each of G segments, of which `rows_G` are there: a segment may have fewer left.

    `weight_GB`: a row's weight over the mean weight of its segment, so that it counts against the
    segment's other rows and not only those of its step; 0 where there is no row.
    `negative_GJ`: item rows drawn for each segment, common to its rows of this step;
    `log_chance_GJ`: what a softmax takes off their scores; `own_GBJ`: which of them are no
    negatives of a row (see `reclora.negatives`).
    `streams_G`: a random number of each segment for whatever else is drawn in this step.
    """

    segments_G: Tensor
    user_GB: Tensor
    item_GB: Tensor
    weight_GB: Tensor
    rows_G: Tensor
    negative_GJ: Tensor
    log_chance_GJ: Tensor
    own_GBJ: Tensor
    streams_G: U64


def segment_seeds(seed: int, log: Interactions) -> U64:
    """`segment_seed` of each of the log's segments."""
    return np.array([segment_seed(seed, name) for name in log.segment_names], dtype=np.uint64)


def epoch_order(log: Interactions, seeds_S: U64, epoch: int) -> NDArray[np.int64]:
    """The rows of the log, segment by segment, each segment's in the random order of this epoch."""
    sizes = np.diff(log.offsets)
    positions = np.arange(len(log), dtype=np.uint64) - np.repeat(log.offsets[:-1], sizes).astype(
        np.uint64
    )
    streams = mix(seeds_S + np.uint64(epoch))
    keys = mix(np.repeat(streams, sizes) ^ positions)
    segments = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    # The segment in the high bits keeps segments together; equal low bits keep the log's order.
    return np.argsort((segments << np.uint64(40)) | (keys >> np.uint64(24)), kind="stable")


def segment_weights(log: Interactions) -> NDArray[np.float64]:
    """The weight of each segment's rows together; 0 where nothing can train or judge."""
    return np.bincount(log.segment_rows, log.weights, log.num_segments).astype(np.float64)


def _mean_weights(log: Interactions) -> NDArray[np.float32]:
    """The mean weight of each segment's rows; 1 where there is none to divide by."""
    means = segment_weights(log) / np.maximum(np.diff(log.offsets), 1)
    return np.where(means > 0, means, 1).astype(np.float32)


def stratified_batches(
    log: Interactions,
    active: NDArray[np.int64],
    *,
    seeds_S: U64,
    epoch: int,
    batch_rows: int,
    sampler: Sampler,
    segments_per_step: int,
    first_step: int = 0,
) -> Iterator[Batch]:
    """One epoch of the active segments: every row once, `batch_rows` rows of a segment a step.

    Segments of like size go together, so that few places of a step are empty.

    Args:
        active: segment codes that take part.
        batch_rows: B, rows of each segment in a step.
        sampler: draws the negatives of each segment in a step.
        segments_per_step: the most segments in a step (memory follows it; results do not).
        first_step: how many of the epoch's steps are left out: they have been taken.
    """
    order = epoch_order(log, seeds_S, epoch)
    sizes = np.diff(log.offsets)
    mean_weights = _mean_weights(log)
    active = active[np.argsort(-sizes[active], kind="stable")]
    done = 0
    for first in range(0, len(active), segments_per_step):
        chunk = active[first : first + segments_per_step]
        for step in range(-(-int(sizes[chunk].max(initial=0)) // batch_rows)):
            done += 1
            if done <= first_step:
                continue
            now = chunk[sizes[chunk] > step * batch_rows]
            places = log.offsets[now, None] + step * batch_rows + np.arange(batch_rows)
            inside = places < log.offsets[now + 1, None]
            rows = order[np.minimum(places, log.offsets[now + 1, None] - 1)]
            weights = inside.astype(np.float32)
            if log.weights is not None:
                weights *= log.weights[rows] / mean_weights[now, None]
            negative_GJ, log_chance_GJ = sampler.draw(now, seeds_S[now], epoch, step)
            yield Batch(
                torch.from_numpy(now),
                torch.from_numpy(log.user_rows[rows]),
                torch.from_numpy(log.item_rows[rows]),
                torch.from_numpy(weights),
                torch.from_numpy(inside.sum(1)),
                negative_GJ,
                log_chance_GJ,
                sampler.own(rows, negative_GJ),
                mix(step_streams(seeds_S[now], epoch, step)),
            )


def chunks_of(sizes_S: NDArray[np.int64], chunk_rows: int) -> list[tuple[int, ...]]:
    """The codes of segments that train together: those of like size, the largest first, in chunks
    of at most `chunk_rows` rows, but of one segment at least.

    They follow from the sizes alone, so that whatever a chunk makes, its checkpoints too, is the
    same however many processes or ranks share the chunks.

    Args:
        sizes_S: the rows of each segment.
    """
    chunks: list[list[int]] = []
    rows = 0
    for code in np.argsort(-sizes_S, kind="stable").tolist():
        if not chunks or rows + sizes_S[code] > chunk_rows:
            chunks.append([])
            rows = 0
        chunks[-1].append(code)
        rows += int(sizes_S[code])
    return [tuple(chunk) for chunk in chunks]
