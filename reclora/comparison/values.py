"""The results table as matrices: a row for each (segment, user), a column for each seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.comparison.resampling import bootstrap_means

SAMPLES = 1000
UNIT = ["segment", "user_id"]


@dataclass(frozen=True)
class Values:
    """The values of one metric at one k of a model, or of the difference of two.

    The U units are (segment, user), in ascending order.
    """

    segments_U: NDArray[np.str_]
    columns_UC: NDArray[np.float64]
    sides: tuple[slice, ...]
    """The columns of each side; of one side those are its seeds."""
    signs: tuple[int, ...] = (1,)
    """+1 and -1 for a difference of two sides."""

    @property
    def units_U(self) -> NDArray[np.float64]:
        """The value of each unit: seeds are averaged first."""
        means = (self.columns_UC[:, side].mean(axis=1) for side in self.sides)
        total: NDArray[np.float64] = sum(
            (sign * mean for sign, mean in zip(self.signs, means, strict=True)),
            start=np.zeros(len(self.columns_UC)),
        )
        return total

    def groups(self) -> Iterator[tuple[str, str, Values]]:
        """(scope, segment, values): all, whose segment is empty, then each segment by name."""
        yield "all", "", self
        names, starts = np.unique(self.segments_U, return_index=True)
        ends = [*starts[1:], len(self.segments_U)][: len(names)]
        for name, start, end in zip(names, starts, ends, strict=True):
            part = slice(start, end)
            yield (
                "segment",
                str(name),
                Values(self.segments_U[part], self.columns_UC[part], self.sides, self.signs),
            )

    def interval(self, confidence: float, seed: int) -> tuple[float, float]:
        """Percentiles of the mean over users drawn with replacement, and for each side over seeds
        drawn with replacement; NaN for fewer than two users.

        Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3; in two
        levels, as Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section
        3.8.
        """
        if len(self.columns_UC) < 2:
            return float("nan"), float("nan")
        means_SC = bootstrap_means(self.columns_UC, SAMPLES, seed)
        generator = np.random.default_rng(seed)
        totals_S = np.zeros(SAMPLES)
        for sign, side in zip(self.signs, self.sides, strict=True):
            seeds = side.stop - side.start
            drawn = side.start + generator.integers(seeds, size=(SAMPLES, seeds))
            totals_S += sign * np.take_along_axis(means_SC, drawn, 1).mean(axis=1)
        low, high = np.quantile(totals_S, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)


def values_of(results: pd.DataFrame, model: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The units of a model, sorted: segment, user_id; and their values, a column for each seed.

    Segments are sorted as strings, whatever order a categorical column or numbers would have.

    Args:
        results: the rows of one metric and k.

    Raises:
        ValueError: a unit has two values for one seed, or none for one of the model's seeds.
    """
    own = results[results["model"] == model]
    own = own.assign(segment=own["segment"].astype("str"))
    unit = own.groupby(UNIT, sort=True, observed=True).ngroup().to_numpy()
    units = own[UNIT].iloc[np.unique(unit, return_index=True)[1]].reset_index(drop=True)
    seeds, code = np.unique(own["seed"].to_numpy(), return_inverse=True)
    cells = np.bincount(unit * len(seeds) + code, minlength=len(units) * len(seeds))
    for wrong, what in ((cells > 1, "two values"), (cells < 1, "no value")):
        if wrong.any():
            row, column = divmod(int(np.flatnonzero(wrong)[0]), len(seeds))
            metric, k = own["metric"].iloc[0], own["k"].iloc[0]
            advice = (
                "keep one run" if what == "two values" else "evaluate every seed on one HeldOut"
            )
            user = _plain(units["user_id"][row])
            raise ValueError(
                f"segment {units['segment'][row]!r}: user {user!r} has {what} of {metric}@{k} for "
                f"{model!r} and seed {seeds[column]}; {advice} of each model and seed"
            )
    matrix = np.empty((len(units), len(seeds)))
    matrix[unit, code] = own["value"].to_numpy()
    return units, pd.DataFrame(matrix, columns=seeds)


def _plain(user_id: object) -> object:
    """A user's identifier as Python writes it, not numpy."""
    return user_id.item() if isinstance(user_id, np.generic) else user_id
