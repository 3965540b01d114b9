"""Resampling in compiled loops: the bootstrap of means, and the randomisation test of a mean.

Numbers are counted, not drawn from a state: the h-th pair of draws of sample s is SplitMix64 of
(seed, s, h), so a result depends on the seed and the values, and on no thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reclora.compiled import compiled

Floats = NDArray[np.float64]

FLIPS = 9_999
EXCEEDANCES = 20
"""So many samples as far out as what was seen, and a p-value needs no more of them."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LOW, _ONE = np.uint64(0xFFFFFFFF), np.uint64(1)
_ROUNDING = 1e-9


def bootstrap_means(values_UC: Floats, samples: int, seed: int) -> Floats:
    """The means of C columns over U users drawn with replacement, shape (samples, C).

    All columns of a sample are of the same users. A user's chance differs from 1 / U by less than
    2^-32. The memory is that of the result.

    Raises:
        ValueError: there are no users.
    """
    if len(values_UC) == 0:
        raise ValueError("there must be at least one user to draw, got none")
    means = np.zeros((samples, values_UC.shape[1]))
    _bootstrap(np.ascontiguousarray(values_UC), np.uint64(seed), means)
    return means


def sign_flip_p(differences_U: Floats, seed: int, flips: int = FLIPS) -> float:
    """The two-sided p-value of "the differences are as likely to have the other sign".

        p = P(|sum_u s_u d_u| >= |sum_u d_u|), s_u = -1 or +1 with equal chance

    Users without a difference say nothing. Where 2^n sign patterns are at most `flips`, all are
    gone through and p is exact. Else patterns are drawn until 20 of them were as far out, then p =
    20 / patterns drawn; or `flips` were, then p = (1 + those as far out) / (1 + flips).

    Returns:
        p within 0 to 1; 1 where no user has a difference, NaN where there are no users.

    Source: Smucker, Allan and Carterette, "A comparison of statistical significance tests for
    information retrieval evaluation", CIKM 2007, section 3 (the test); Besag and Clifford,
    "Sequential Monte Carlo p-values", Biometrika 78(2), 1991 (when to stop).
    """
    if len(differences_U) == 0:
        return float("nan")
    differing = differences_U[differences_U != 0]
    if len(differing) == 0:
        return 1.0
    if 1 << len(differing) <= flips:
        return _exact_p(differing)
    return _drawn_p(differing, np.uint64(seed), flips)


@compiled
def _bootstrap(values_UC: Floats, seed: np.uint64, means_SC: Floats) -> None:
    num_users, num_columns = values_UC.shape
    count = np.uint64(num_users)
    for s in range(len(means_SC)):
        state, sums = _start(seed, s), means_SC[s]
        for _ in range(num_users // 2):
            state += _GOLDEN
            drawn = _mix(state)
            # Two users of one number: each half, times U, over 2^32.
            one = np.int64(((drawn & _LOW) * count) >> _32)
            other = np.int64(((drawn >> _32) * count) >> _32)
            for c in range(num_columns):
                sums[c] += values_UC[one, c] + values_UC[other, c]
        if num_users % 2:
            one = np.int64(((_mix(state + _GOLDEN) & _LOW) * count) >> _32)
            for c in range(num_columns):
                sums[c] += values_UC[one, c]
        for c in range(num_columns):
            sums[c] /= num_users


@compiled
def _exact_p(differences: Floats) -> float:
    patterns = 1 << len(differences)
    far_out = 0
    limit = _limit(differences)
    for pattern in range(patterns):
        total = 0.0
        for u in range(len(differences)):
            total += differences[u] if (pattern >> u) & 1 else -differences[u]
        far_out += abs(total) >= limit
    return far_out / patterns


@compiled
def _drawn_p(differences: Floats, seed: np.uint64, flips: int) -> float:
    far_out = 0
    limit = _limit(differences)
    for s in range(flips):
        state = _start(seed, s)
        total, bits = 0.0, state
        for u in range(len(differences)):
            if u % 64 == 0:
                state += _GOLDEN
                bits = _mix(state)
            total += differences[u] if bits & _ONE else -differences[u]
            bits >>= _ONE
        far_out += abs(total) >= limit
        if far_out == EXCEEDANCES:
            return far_out / (s + 1)
    return (1 + far_out) / (1 + flips)


@compiled
def _limit(differences: Floats) -> float:
    """What is as far out as the sum seen, but for rounding."""
    limit: float = abs(differences.sum()) - _ROUNDING * np.abs(differences).sum()
    return limit


@compiled
def _start(seed: np.uint64, sample: int) -> np.uint64:
    return _mix(_mix(seed + _GOLDEN) + np.uint64(sample))


@compiled
def _mix(z: np.uint64) -> np.uint64:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)
