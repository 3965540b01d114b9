"""This file is how random numbers are drawn: by counting, as a function of names and positions.

There is no random state: what a segment draws depends on its own seed alone, not on who trains
beside it, and a later run draws the same again on any machine.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]


_UNDER = "\0seed "


def segment_seed(seed: int, segment: str) -> int:
    """63 bits from the run's seed and the segment's name, the same whatever other segments there
    are; of a segment that is named `under_seed`, from the seed in its name.
    """
    name, under, own = segment.rpartition(_UNDER)
    drawn_by = f"{own}\0{name}" if under else f"{seed}\0{segment}"
    digest = hashlib.blake2b(drawn_by.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def under_seed(segment: str, seed: int) -> str:
    """What a copy of a segment is called that draws as the segment does in a run of this seed,
    whatever the seed of the copy's own run. So it can train under several seeds in one pass.
    """
    return f"{segment}{_UNDER}{seed}"


def mix(counters: U64) -> U64:
    """SplitMix64's finaliser: counters to independent-looking 64-bit numbers.

    Source: Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, section 3
    (variant 13 of Stafford).
    """
    z = counters + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def step_streams(seeds_G: U64, epoch: int, step: int) -> U64:
    """A random number of each segment for one step of one epoch."""
    return mix(mix(seeds_G ^ np.uint64(0x5DEECE66D)) + np.uint64(epoch << 32 | step))
