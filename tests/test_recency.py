"""Rows fade by their age: the formula, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.interactions import IdMap, Interactions
from reclora.recency import DAY, faded


def log_of(days: list[int], weights: list[float] | None = None) -> Interactions:
    n = len(days)
    return Interactions.from_arrays(
        users=IdMap.of([f"u{i}" for i in range(n)]),
        items=IdMap.of(["a"]),
        segment_names=["s"],
        segments=np.zeros(n, np.int64),
        user_rows=np.arange(n),
        item_rows=np.zeros(n, np.int64),
        timestamps=np.array(days, np.int64) * DAY,
        weights=weights,
    )


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=20), st.floats(0.5, 5000))
def test_a_row_counts_for_half_after_each_half_life(days: list[int], half_life: float) -> None:
    log = faded(log_of(days), half_life)
    assert log.weights is not None
    for moment, weight in zip(log.timestamps, log.weights, strict=True):
        age = (max(days) * DAY - int(moment)) / DAY
        assert weight == pytest.approx(0.5 ** (age / half_life), rel=1e-5, abs=1e-30)


def test_weights_of_the_log_stay_in_proportion() -> None:
    log = faded(log_of([0, 10, 10], [4.0, 1.0, 3.0]), 10.0)
    assert log.weights is not None
    assert sorted(log.weights.tolist()) == [1.0, 2.0, 3.0]


def test_none_and_nothing_are_left_alone() -> None:
    log = log_of([0, 3])
    assert faded(log, 0) is log
    empty = log.part([])
    assert faded(empty, 3.0) is empty
    own = replace(log, weights=np.array([1, 2], np.float32))
    assert faded(own, 0).weights is own.weights


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_half_life_that_cannot_be_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="half_life must be 0"):
        faded(log_of([0]), wrong)
