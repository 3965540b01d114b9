"""This file is the truth of the planted world: vectors, biases, and their shift in each segment.

User u has a vector u (D numbers from N(0, 1)), item i a vector v_i (D numbers from
N(0, signal^2 / D), so that u.v_i has standard deviation `signal`) and a bias b_i, the log of a Zipf
popularity: b_i = -popularity_exponent * log(popularity rank of i). Each user is of one segment s.

    score(u, i) = u . v_i + b_i                                      before the cut, all segments
    score(u, i) = u . (v_i + a_s[i] B_s) + b_i + c_s[i]              after it

a_s[i] is R numbers from N(0, 1); B_s has R orthogonal rows, scaled so that the root mean square of
|a_s[i] B_s| is `shift` times that of |v_i|; c_s[i] is from N(0, bias_shift^2). For an unshifted
segment a_s = 0 and c_s = 0.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

START = datetime(2024, 1, 1, tzinfo=UTC)
"""The time of the first row."""
BASE_DAYS = 70
"""Days before the cut."""
ADAPT_DAYS = 30
"""Days after it."""

_TINY_ROWS_PER_USER = 3
# Real names are like this, and each of them has broken somebody's path, split or page.
_NAMES = ("market 0", "日本", "us.mobile", "../up", "<i>b2b</i>", "São Paulo", "CON", 'a,"b";c')


@dataclass(frozen=True)
class PlantedConfig:
    """What a planted world is like; its formulas stand at the top of this file and of `planted`."""

    num_users: int = 2000
    """All users, those of tiny segments included."""
    num_items: int = 500
    """Items in the catalogue."""
    dim: int = 16
    """D, length of the true vectors."""
    num_segments: int = 8
    """All segments: shifted, unshifted and tiny, in this order."""
    unshifted_segments: int = 2
    """Segments that go on after the cut as before it."""
    tiny_segments: int = 1
    """Segments that shift but have next to no rows to learn it from."""
    tiny_rows: int = 30
    """Rows of each tiny segment in each period, exactly; its users have about 3 each."""
    num_base_interactions: int = 100_000
    """Rows before the cut."""
    num_interactions: int = 100_000
    """Rows after the cut."""
    signal: float = 3.0
    """Standard deviation of u.v over users and items."""
    rank: int = 2
    """R, rank of each segment's shift; at most D."""
    shift: float = 1.0
    """Size of the shift of an item's vector over the size of the vector."""
    bias_shift: float = 0.0
    """Standard deviation of the shift of an item's bias; 0 is none."""
    popularity_exponent: float = 1.0
    """Zipf exponent of the items' popularity; 0 is none."""
    segment_size_exponent: float = 0.0
    """Users of the s-th segment (from 1) go by s to the power of minus this; 0 is equal sizes."""
    num_choices: int = 50
    """C, items offered per row; num_items or more offers the whole catalogue."""
    seed: int = 0
    """The same seed and fields give the same rows, bit for bit, on one type of machine."""

    def __post_init__(self) -> None:
        for name in ("num_items", "dim", "num_choices", "num_base_interactions"):
            _check(getattr(self, name) >= 1, f"{name} to be at least 1", getattr(self, name))
        for name in ("unshifted_segments", "tiny_segments", "seed"):
            _check(getattr(self, name) >= 0, f"{name} to be at least 0", getattr(self, name))
        for name in ("signal", "shift", "bias_shift", "popularity_exponent"):
            value = getattr(self, name)
            _check(math.isfinite(value) and value >= 0, f"{name} to be finite and >= 0", value)
        size_exponent = self.segment_size_exponent
        _check(math.isfinite(size_exponent), "segment_size_exponent to be finite", size_exponent)
        _check(1 <= self.rank <= self.dim, f"rank to be from 1 to dim={self.dim}", self.rank)
        _check(self.tiny_rows >= 1, "tiny_rows to be at least 1", self.tiny_rows)
        least = self.unshifted_segments + self.tiny_segments + 1
        _check(
            self.num_segments >= least,
            f"num_segments to be at least {least}, so that one is neither unshifted nor tiny",
            self.num_segments,
        )
        least = self.num_segments - self.tiny_segments + self.num_tiny_users
        _check(self.num_users >= least, f"num_users to be at least {least}", self.num_users)
        fewest = min(self.num_base_interactions, self.num_interactions)
        tiny = self.tiny_segments * self.tiny_rows
        _check(fewest > tiny, f"more rows in each period than the tiny segments' {tiny}", fewest)

    @property
    def num_tiny_users(self) -> int:
        """Users of all tiny segments together."""
        return self.tiny_segments * math.ceil(self.tiny_rows / _TINY_ROWS_PER_USER)


@dataclass(frozen=True, eq=False)
class PlantedTruth:
    """What is true in a planted world: S segments, N_u users, N_i items; all floats are float32.

    Identifiers are no row numbers, nor in their order: `user_ids[row]` is the identifier of the
    user at `row` of `user_vectors`.
    """

    config: PlantedConfig
    segment_names: tuple[str, ...]
    """Shifted, unshifted, tiny, in this order."""
    user_ids: pa.StringArray
    """N_u distinct identifiers."""
    item_ids: pa.StringArray
    """N_i distinct identifiers."""
    user_vectors: NDArray[np.float32]
    """U, N_u x D."""
    item_vectors: NDArray[np.float32]
    """V, N_i x D: before the cut, and in unshifted segments for ever."""
    item_bias: NDArray[np.float32]
    """b, N_i."""
    user_segment: NDArray[np.int32]
    """Position in `segment_names` of each user's segment, N_u."""
    shift_factors: NDArray[np.float32]
    """A, S x N_i x R."""
    shift_directions: NDArray[np.float32]
    """B, S x R x D."""
    shift_bias: NDArray[np.float32]
    """c, S x N_i."""

    @classmethod
    def drawn(cls, config: PlantedConfig) -> Self:
        """Draw a truth; the same config gives the same one."""
        rng = np.random.default_rng([config.seed, 0])
        factors, directions, bias = _draw_shifts(config, rng)
        popularity_ranks = rng.permutation(config.num_items) + 1
        item_scale = np.float32(config.signal / math.sqrt(config.dim))
        items = rng.standard_normal((config.num_items, config.dim), np.float32)
        return cls(
            config=config,
            segment_names=_segment_names(config.num_segments),
            user_ids=_draw_ids("u", config.num_users, rng),
            item_ids=_draw_ids("i", config.num_items, rng),
            user_vectors=rng.standard_normal((config.num_users, config.dim), np.float32),
            item_vectors=items * item_scale,
            item_bias=(-config.popularity_exponent * np.log(popularity_ranks)).astype(np.float32),
            user_segment=_segments_of_users(config),
            shift_factors=factors,
            shift_directions=directions,
            shift_bias=bias,
        )

    @property
    def cut_time(self) -> datetime:
        """The first moment at which the shift holds."""
        return START + timedelta(days=BASE_DAYS)

    @property
    def shifted_segments(self) -> tuple[str, ...]:
        """Names of the segments that shift and have the rows to learn it from."""
        config = self.config
        num_shifted = config.num_segments - config.unshifted_segments - config.tiny_segments
        return self.segment_names[:num_shifted]

    @property
    def unshifted_segments(self) -> tuple[str, ...]:
        """Names of the segments whose shift is zero."""
        first = len(self.shifted_segments)
        return self.segment_names[first : first + self.config.unshifted_segments]

    @property
    def tiny_segments(self) -> tuple[str, ...]:
        """Names of the segments that shift but have only `tiny_rows` rows a period."""
        return self.segment_names[self.config.num_segments - self.config.tiny_segments :]

    def segment_shift(
        self, name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return A_s (N_i x R), B_s (R x D), c_s (N_i): after the cut V + A_s B_s and b + c_s hold.

        Raises:
            KeyError: there is no such segment.
        """
        if name not in self.segment_names:
            raise KeyError(f"expected one of the segments {self.segment_names}, got {name!r}")
        s = self.segment_names.index(name)
        return self.shift_factors[s], self.shift_directions[s], self.shift_bias[s]


def _check(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, got {got}")


def _segment_names(count: int) -> tuple[str, ...]:
    return _NAMES[:count] + tuple(f"market {s}" for s in range(len(_NAMES), count))


def _draw_ids(prefix: str, count: int, rng: np.random.Generator) -> pa.StringArray:
    numbers = pc.cast(pa.array(rng.permutation(count)), pa.string())
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(numbers, len(str(count)), "0"), "")


def _segments_of_users(config: PlantedConfig) -> NDArray[np.int32]:
    """Segment of each user; the users of tiny segments come last."""
    num_regular = config.num_segments - config.tiny_segments
    weights = np.arange(1, num_regular + 1) ** -float(config.segment_size_exponent)
    # One user for each segment, the others by weight.
    shared = config.num_users - config.num_tiny_users - num_regular
    ends = np.rint(np.cumsum(weights) / weights.sum() * shared).astype(np.int64)
    sizes = np.diff(ends, prepend=0) + 1
    if config.tiny_segments:
        users_each = config.num_tiny_users // config.tiny_segments
        sizes = np.append(sizes, np.full(config.tiny_segments, users_each))
    return np.repeat(np.arange(config.num_segments, dtype=np.int32), sizes)


def _draw_shifts(
    config: PlantedConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Draw A (S x N_i x R), B (S x R x D) and c (S x N_i)."""
    num_segments, rank = config.num_segments, config.rank
    factors = rng.standard_normal((num_segments, config.num_items, rank), np.float32)
    bias = rng.standard_normal((num_segments, config.num_items), np.float32)
    bias *= np.float32(config.bias_shift)
    end = num_segments - config.tiny_segments
    unshifted = slice(end - config.unshifted_segments, end)
    factors[unshifted] = 0
    bias[unshifted] = 0
    columns, _ = np.linalg.qr(rng.standard_normal((num_segments, config.dim, rank)))
    # |a_s[i] B_s| has the mean square R * scale^2, and |v_i| has signal^2.
    scale = config.shift * config.signal / math.sqrt(rank)
    return factors, (columns.transpose(0, 2, 1) * scale).astype(np.float32), bias
