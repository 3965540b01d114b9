"""This file is how interactions fade: the older a row, the less it counts.

    w_row <- w_row 2^(-(t_last - t_row) / half_life)

What people take drifts. On a shop's log of ten years, tables from rows that fade predict the next
months better than tables from rows that count alike.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from reclora.interactions import Interactions

DAY = 86_400_000_000
"""Microseconds, the unit of timestamps."""


def check_half_life(half_life: float) -> None:
    """Refuse a half-life that is negative or not finite (ValueError)."""
    if not 0 <= half_life < math.inf:
        raise ValueError(
            f"half_life must be 0 (none) or a positive number of days, got {half_life}"
        )


def faded(log: Interactions, half_life: float) -> Interactions:
    """The same rows, weighted by their age at the log's last moment.

    Args:
        half_life: days after which a row counts for half; positive, or 0: the log as it is.

    Raises:
        ValueError: the half-life is negative or not finite.
    """
    check_half_life(half_life)
    if half_life == 0 or len(log) == 0:
        return log
    ages = (log.timestamps.max() - log.timestamps) / DAY
    weights = np.exp2(-ages / half_life)
    own = 1.0 if log.weights is None else log.weights
    return replace(log, weights=(weights * own).astype(np.float32))
