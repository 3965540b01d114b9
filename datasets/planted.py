"""This file is the planted world: an interaction log drawn from a truth that is known.

What an adapter should find in it is known and not guessed, and it scales to benchmarks. The truth,
and score(u, i) before and after the cut, are in `planted_truth`. The law of a row:

A user is drawn uniformly from the users of all segments but the tiny ones (those have `tiny_rows`
rows a period, at random times). C = num_choices items are offered, drawn independently and
uniformly from the catalogue, with replacement; where num_choices >= num_items, every item is
offered once instead. One offer is taken:

    P(offer j) = exp(score(u, i_j)) / sum over all offers l of exp(score(u, i_l))

by the Gumbel-max rule, in float32. Rows are independent: a user may choose an item again.

The defaults are learnable and not trivial: trained on the first 80 % of the base period, a factor
model of the same D has an NDCG@10 of .21 on its last 20 %; popularity has .07, the truth .34.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reclora.files import atomic_write, make_folder

from .planted_truth import ADAPT_DAYS, BASE_DAYS, START, PlantedConfig, PlantedTruth

__all__ = ["CHUNK_ROWS", "Chunk", "PlantedConfig", "PlantedWorld", "plant", "write_log"]

CHUNK_ROWS = 1 << 18
"""Rows that one generator draws; a part of what a seed means, and the row group of a file."""

_BLOCK_ROWS = 512  # scored together: their offers' vectors stay in the cache
_LOG_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("segment", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive rows of the log, by position in the truth's arrays."""

    user_rows: NDArray[np.int32]
    """Rows of `user_vectors`, shape B."""
    item_rows: NDArray[np.int32]
    """Rows of `item_vectors`, shape B."""
    timestamps: NDArray[np.int64]
    """Microseconds since 1970, UTC, increasing; shape B."""


class PlantedWorld(PlantedTruth):
    """A planted truth and the log that follows from it. Made by `plant`."""

    @property
    def num_rows(self) -> int:
        """Rows of the whole log."""
        return self.config.num_base_interactions + self.config.num_interactions

    def chunks(self) -> Iterator[Chunk]:
        """Yield the log in the order of time, at most `CHUNK_ROWS` rows at once."""
        for after_cut in (False, True):
            yield from _draw_period(self, after_cut)

    def table(self) -> pa.Table:
        """Return the whole log with the columns user_id, item_id, timestamp and segment."""
        batches = [_to_log(self, chunk) for chunk in self.chunks()]
        return pa.Table.from_batches(batches, _LOG_SCHEMA)


def plant(config: PlantedConfig) -> PlantedWorld:
    """Draw the truth of a world; its log is drawn when it is asked for."""
    return PlantedWorld.drawn(config)


def write_log(
    world: PlantedWorld, path: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the rows of `world.table()` to a Parquet file, whole or not at all; return `path`.

    Only `CHUNK_ROWS` rows are in memory at once. The file is zstd with page checksums.

    Args:
        world: what `plant` gave.
        path: the file.
        progress: called after each chunk with the rows written and the rows of the whole log.

    Raises:
        OSError: the file cannot be written.
    """
    make_folder(path.parent)
    written = 0
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(
            temporary, _LOG_SCHEMA, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        for chunk in world.chunks():
            writer.write_batch(_to_log(world, chunk))
            written += len(chunk.user_rows)
            if progress is not None:
                progress(written, world.num_rows)
    return path


def _draw_period(world: PlantedWorld, after_cut: bool) -> Iterator[Chunk]:
    """Draw the rows before or after the cut: each chunk by a generator of its own."""
    config = world.config
    num_rows = config.num_interactions if after_cut else config.num_base_interactions
    start = world.cut_time if after_cut else START
    days = ADAPT_DAYS if after_cut else BASE_DAYS
    microseconds = days * 86_400_000_000
    tiny_at, tiny_users = _draw_tiny_rows(config, num_rows, after_cut)
    for number, first in enumerate(range(0, num_rows, CHUNK_ROWS)):
        rows = np.arange(first, min(first + CHUNK_ROWS, num_rows))
        rng = np.random.default_rng([config.seed, 1, int(after_cut), number])
        users = rng.integers(
            config.num_users - config.num_tiny_users, size=len(rows), dtype=np.int32
        )
        here = (tiny_at >= first) & (tiny_at < first + len(rows))
        users[tiny_at[here] - first] = tiny_users[here]
        elapsed = np.floor(rows * (microseconds / num_rows)).astype(np.int64)
        yield Chunk(users, _choose(world, users, after_cut, rng), _to_microseconds(start) + elapsed)


def _draw_tiny_rows(
    config: PlantedConfig, num_rows: int, after_cut: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Draw which rows of a period are of tiny segments, and their users."""
    rng = np.random.default_rng([config.seed, 2, int(after_cut)])
    at = rng.choice(num_rows, config.tiny_segments * config.tiny_rows, replace=False)
    each = config.num_tiny_users // max(config.tiny_segments, 1)
    first_users = config.num_users - config.num_tiny_users + each * np.arange(config.tiny_segments)
    users = np.repeat(first_users, config.tiny_rows) + rng.integers(max(each, 1), size=len(at))
    return at, users.astype(np.int32)


def _choose(
    world: PlantedWorld, users: NDArray[np.int32], after_cut: bool, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Draw the item that each user takes, by the law of the module's docstring."""
    config = world.config
    chosen = np.empty(len(users), np.int32)
    for first in range(0, len(users), _BLOCK_ROWS):
        block = users[first : first + _BLOCK_ROWS]
        if config.num_choices < config.num_items:
            offers = rng.integers(config.num_items, size=(len(block), config.num_choices))
        else:
            offers = np.broadcast_to(np.arange(config.num_items), (len(block), config.num_items))
        scores = _score(world, block, offers, after_cut)
        # One number in 2^24 is zero, and log(0) has no place in a score.
        uniform = np.maximum(rng.random(scores.shape, np.float32), np.float32(2**-25))
        taken = (scores - np.log(-np.log(uniform))).argmax(axis=1)
        chosen[first : first + _BLOCK_ROWS] = offers[np.arange(len(block)), taken]
    return chosen


def _score(
    world: PlantedWorld, users: NDArray[np.int32], offers: NDArray[np.int64], after_cut: bool
) -> NDArray[np.float32]:
    """Score offers (B x C items) for users (B)."""
    vectors_BD = world.user_vectors[users]
    scores_BC = _dot(world.item_vectors, offers, vectors_BD) + world.item_bias[offers]
    if after_cut:
        segments = world.user_segment[users]
        cells_BC = segments[:, None] * np.int64(world.config.num_items) + offers
        projected_BR = (world.shift_directions[segments] @ vectors_BD[:, :, None])[:, :, 0]
        factors = world.shift_factors.reshape(-1, world.config.rank)
        scores_BC += _dot(factors, cells_BC, projected_BR)
        scores_BC += world.shift_bias.reshape(-1)[cells_BC]
    return scores_BC


def _dot(
    table: NDArray[np.float32], rows_BC: NDArray[np.int64], vectors_BD: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Dot products of each vector with the table's rows named beside it: B x C."""
    # A third of the time of table[rows]: `clip` lets numpy skip the buffering of bad indices.
    gathered_BCD = np.take(table, rows_BC, axis=0, mode="clip")
    products: NDArray[np.float32] = (gathered_BCD @ vectors_BD[:, :, None])[:, :, 0]
    return products


def _to_log(world: PlantedWorld, chunk: Chunk) -> pa.RecordBatch:
    """Name the users, items and segments of a chunk's rows."""
    segments = pa.array(world.segment_names, pa.string())
    return pa.record_batch(
        [
            world.user_ids.take(pa.array(chunk.user_rows)),
            world.item_ids.take(pa.array(chunk.item_rows)),
            pa.array(chunk.timestamps).cast(pa.timestamp("us", tz="UTC")),
            segments.take(pa.array(world.user_segment[chunk.user_rows])),
        ],
        schema=_LOG_SCHEMA,
    )


def _to_microseconds(time: datetime) -> int:
    return round(time.timestamp()) * 1_000_000
