"""Law 10, no leakage: a log is cut by time, every row falls in one window."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions import IdMap, Interactions
from reclora.splits import WINDOWS, SplitConfig, Windows, cut, split

Row = tuple[int, int, int, int]  # segment, user, item, time
EVEN = {"pretrain": 0.25, "train": 0.25, "validation": 0.25, "test": 0.25}

rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 6), st.integers(-9, 9)),
    min_size=4,
    max_size=60,
)
shares = st.lists(st.integers(1, 20), min_size=2, max_size=4).map(
    lambda parts: [part / sum(parts) for part in parts]
)


def make(rows: list[Row]) -> Interactions:
    segments, users, items, times = np.array(rows, dtype=np.int64).T
    return Interactions.from_arrays(
        users=IdMap(np.arange(5)),
        items=IdMap(np.arange(7)),
        segment_names=("a", "b", "c"),
        segments=segments,
        user_rows=users,
        item_rows=items,
        timestamps=times,
    )


def listed(log: Interactions) -> list[Row]:
    return list(
        zip(
            log.segment_rows.tolist(),
            log.user_rows.tolist(),
            log.item_rows.tolist(),
            log.timestamps.tolist(),
            strict=True,
        )
    )


def parts_of(windows: Windows) -> list[list[Row]]:
    return [listed(getattr(windows, name)) for name in WINDOWS]


@given(rows, shares)
@settings(deadline=None)
def test_no_leakage_nothing_after_a_cut_is_in_an_earlier_part(
    rows: list[Row], shares: list[float]
) -> None:
    parts = [listed(part) for part in cut(make(rows), shares, "global_time")]
    moments = [{row[3] for row in part} for part in parts if part]
    for before, after in pairwise(moments):
        assert max(before) < min(after)
    assert sorted(row for part in parts for row in part) == sorted(rows)


@given(rows, shares)
@settings(deadline=None)
def test_no_leakage_no_users_own_future_is_in_an_earlier_part(
    rows: list[Row], shares: list[float]
) -> None:
    parts = [listed(part) for part in cut(make(rows), shares, "user_time")]
    for user in range(5):
        times = [[row[3] for row in part if row[1] == user] for part in parts]
        for before, after in pairwise(window for window in times if window):
            assert max(before) <= min(after)
    assert sorted(row for part in parts for row in part) == sorted(rows)


@given(st.permutations([(0, 0, 0, t) for t in range(20)]), shares)
@settings(deadline=None)
def test_parts_have_their_shares_and_keep_the_segments(
    rows: list[Row], shares: list[float]
) -> None:
    log = make(rows)
    for by in ("global_time", "user_time"):
        for part, share in zip(cut(log, shares, by), shares, strict=True):  # type: ignore[arg-type]
            assert abs(len(part) - 20 * share) < 1 + 1e-6
            assert part.segment_names == log.segment_names


def test_the_example_of_the_docstring() -> None:
    config = SplitConfig(pretrain=0.4, train=0.2, validation=0.2, test=0.2)
    parts = parts_of(split(make([(0, 0, 0, t) for t in range(1, 6)]), config))
    assert [[row[3] for row in part] for part in parts] == [[1, 2], [3], [4], [5]]


def test_a_share_misses_no_row_by_the_last_bit_of_a_float() -> None:
    parts = parts_of(split(make([(0, 0, 0, t) for t in range(100)]), SplitConfig()))
    assert [len(part) for part in parts] == [70, 15, 5, 10]


def test_one_moment_stays_together() -> None:
    times = [1, 1, 1, 2, 2, 2, 3, 4, 5, 6]
    log = make([(0, 0, number % 7, time) for number, time in enumerate(times)])
    parts = parts_of(split(log, SplitConfig(pretrain=0.25, train=0.25, validation=0.2, test=0.3)))
    assert [[row[3] for row in part] for part in parts] == [[1, 1, 1], [2, 2, 2], [3], [4, 5, 6]]
    with pytest.raises(ValueError, match="window has no rows"):
        split(make([(0, 0, 0, 5)] * 8), SplitConfig(**EVEN))


def test_user_time_cuts_each_user_apart() -> None:
    early = [(0, 0, 0, t) for t in range(4)]
    late = [(1, 1, 0, t) for t in range(100, 104)]
    parts = parts_of(split(make(early + late), SplitConfig(by="user_time", **EVEN)))
    assert parts == [[early[p], late[p]] for p in range(4)]


@pytest.mark.parametrize("by", ["global_time", "user_time"])
def test_an_empty_window_is_named(by: str) -> None:
    log = make([(0, 0, 0, 1), (0, 0, 0, 2)])
    with pytest.raises(ValueError, match="the train window has no rows: 2 interactions"):
        split(log, SplitConfig(by=by))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pretrain window has no rows: 0 interactions"):
        split(log.select(np.zeros(2, bool)), SplitConfig(by=by))  # type: ignore[arg-type]


def test_the_summary_tells_each_windows_time_and_size() -> None:
    rows = [(0, t % 2, t % 3, t * 1_000_000) for t in range(8)]
    summary = split(make(rows), SplitConfig(**EVEN)).summary()
    assert summary["window"].tolist() == list(WINDOWS)
    assert summary[["rows", "users", "items"]].to_numpy().tolist() == [[2, 2, 2]] * 4
    assert summary["first"][1] == pd.Timestamp(2, unit="s", tz="UTC")
    assert summary["last"][3] == pd.Timestamp(7, unit="s", tz="UTC")


@pytest.mark.parametrize(
    "wrong",
    [{"by": "random"}, {"pretrain": 0.8}, {"pretrain": 0.85, "train": 0.0}, {"test": float("nan")}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="split by must be|must be positive and sum to 1"):
        SplitConfig(**wrong)  # type: ignore[arg-type]
