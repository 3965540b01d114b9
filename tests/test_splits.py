"""Law 10, no leakage: a log is cut by time, every row falls in one window."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions import IdMap, Interactions
from reclora.splits import (
    WINDOWS,
    LeakageError,
    SplitConfig,
    Windows,
    check_leakage,
    cut,
    k_core,
    refuse_leaks,
    split,
    together,
    warm,
)

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


def test_without_test_there_is_no_row_to_ask() -> None:
    windows = split(make([(n % 3, n % 5, n % 7, n) for n in range(40)]), SplitConfig())
    bare = windows.without_test()
    assert len(windows.test) > 0 == len(bare.test)
    assert bare.test.segment_names == windows.test.segment_names
    assert (bare.pretrain, bare.train, bare.validation) == (
        windows.pretrain,
        windows.train,
        windows.validation,
    )


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


# Pictures of the docstrings.

SHARES = {"pretrain": 0.4, "train": 0.2, "validation": 0.2, "test": 0.2}
TWO_USERS = [(0, 0, 0, t) for t in (1, 2, 3, 4, 5)] + [(0, 1, 0, 7), (0, 1, 0, 9)]


@pytest.mark.parametrize(
    ("by", "picture"),
    [
        (
            "user_time",
            "a: 1 pretrain 2 pretrain 3 train 4 validation 5 test; b: 7 pretrain 9 train",
        ),
        (
            "leave_last",
            "a: 1 pretrain 2 pretrain 3 train 4 validation 5 test; b: 7 pretrain 9 pretrain",
        ),
    ],
)
def test_the_pictures_of_the_docstring(by: str, picture: str) -> None:
    windows = split(make(TWO_USERS), SplitConfig(by, **SHARES))  # type: ignore[arg-type]
    fell = {
        row: name for name, part in zip(WINDOWS, parts_of(windows), strict=True) for row in part
    }
    drawn = [
        f"{'ab'[user]}: " + " ".join(f"{row[3]} {fell[row]}" for row in TWO_USERS if row[1] == user)
        for user in (0, 1)
    ]
    assert "; ".join(drawn) == picture


def test_the_picture_of_global_time() -> None:
    one = make([(0, t % 3, 0, t) for t in (1, 2, 3, 4, 5)])
    windows = split(one, SplitConfig("global_time", **SHARES))
    assert [[row[3] for row in part] for part in parts_of(windows)] == [[1, 2], [3], [4], [5]]


@given(rows, st.integers(1, 3))
def test_leave_last_holds_out_each_users_last_rows(rows: list[Row], n: int) -> None:
    rows = list({row[1:]: row for row in rows}.values())
    log = make(rows)
    config = SplitConfig("leave_last", leave_last=n, **SHARES)
    own = {u: sorted((r for r in rows if r[1] == u), key=lambda r: (r[3], r[2])) for u in range(5)}
    if not any(len(of_user) > 2 * n for of_user in own.values()):
        with pytest.raises(ValueError, match="has no rows"):
            split(log, config)
        return
    try:
        windows = split(log, config)
    except ValueError as error:
        assert "the train window has no rows" in str(error)  # one row each is no train window
        return
    check_leakage(windows, "user_time")
    pretrain, train, validation, test = parts_of(windows)
    assert sorted(pretrain + train + validation + test) == sorted(rows)
    for user, of_user in own.items():
        held = n if len(of_user) > 2 * n else 0
        key = [(r[3], r[2]) for r in of_user]
        for part, expected in (
            (test, key[len(key) - held :]),
            (validation, key[len(key) - 2 * held : len(key) - held]),
        ):
            assert sorted((r[3], r[2]) for r in part if r[1] == user) == expected


@pytest.mark.parametrize("by", ["user_time", "leave_last"])
def test_an_event_in_two_segments_is_not_cut_apart(by: str) -> None:
    events = [(user, item, 10 * item) for user in range(5) for item in range(7)]
    both = [(segment, *event) for event in events for segment in (0, 1)]
    config = SplitConfig(by, leave_last=2, **SHARES)  # type: ignore[arg-type]
    windows = split(make(both), config)
    check_leakage(windows, "user_time")
    one = split(make([(0, *event) for event in events]), config)
    for twice, once in zip(parts_of(windows), parts_of(one), strict=True):
        assert {row[1:] for row in twice} == {row[1:] for row in once}
        assert len(twice) == 2 * len(once)


def test_windows_of_different_attributes_are_refused() -> None:
    with_device = Interactions.from_arrays(
        users=IdMap([0]),
        items=IdMap([0]),
        segment_names=("a",),
        segments=[0],
        user_rows=[0],
        item_rows=[0],
        timestamps=[9],
        attributes={"device": ["tv"]},
    )
    with pytest.raises(ValueError, match=r"the test window has the attributes \['device'\]"):
        together(*logs(A, B, C), with_device)


# The k-core.


@given(rows, st.integers(1, 4))
def test_the_k_core_is_that_of_plain_loops(rows: list[Row], k: int) -> None:
    left = sorted(rows)
    while True:
        users, items = (Counter(row[i] for row in left) for i in (1, 2))
        kept = [row for row in left if users[row[1]] >= k and items[row[2]] >= k]
        if len(kept) == len(left):
            break
        left = kept
    if not left:
        with pytest.raises(ValueError, match=f"the {k}-core of .* is empty"):
            k_core(make(rows), k)
        return
    assert sorted(listed(k_core(make(rows), k))) == left
    config = SplitConfig("user_time", k_core=k, **EVEN)
    try:
        windows = split(make(rows), config)
    except ValueError as error:
        assert "has no rows" in str(error)
        return
    assert sorted(sum(parts_of(windows), [])) == left


# Windows from elsewhere, and leakage.


def logs(*parts: list[Row]) -> list[Interactions]:
    return [make(part) for part in parts]


A, B, C, D = [(0, 0, 0, 1)], [(0, 0, 1, 2), (1, 1, 1, 2)], [(0, 1, 2, 3)], [(2, 0, 3, 4)]


def test_given_windows_come_onto_common_maps_and_segments() -> None:
    other = Interactions.from_arrays(
        users=IdMap([7, 0]),
        items=IdMap([3, 90]),
        segment_names=("new", "a"),
        segments=[0, 1],
        user_rows=[0, 1],
        item_rows=[1, 0],
        timestamps=[9, 9],
    )
    windows = together(*logs(A, B, C), other)
    assert windows.test.segment_names == windows.pretrain.segment_names == ("a", "b", "c", "new")
    assert windows.test.users == windows.train.users and len(windows.test.users) == 6
    found = {
        (segment, int(user), int(item))
        for segment, user, item in zip(
            np.array(windows.test.segment_names)[windows.test.segment_rows],
            windows.test.users.ids_of(windows.test.user_rows).to_pylist(),
            windows.test.items.ids_of(windows.test.item_rows).to_pylist(),
            strict=True,
        )
    }
    assert found == {("new", 7, 90), ("a", 0, 3)}


def test_windows_that_leak_are_refused_with_the_rows() -> None:
    together(*logs(A, B, C, D))
    with pytest.raises(LeakageError) as error:
        together(*logs(A, B, C, [*D, *B]))
    assert "2 of the 3 test window's rows are among the train window's rows too" in str(error.value)
    assert "segment 'a', user_id 0, item_id 1, 1970-01-01 00:00:00.000002+00:00" in str(error.value)
    early = [(1, 3, 4, 2)]
    with pytest.raises(
        LeakageError, match="1 of the 2 test window's rows are earlier than the last"
    ):
        together(*logs(A, B, C, [*D, *early]))
    # To nobody's own future: user 3 is new.
    together(*logs(A, B, C, [*D, *early]), by="user_time")
    with pytest.raises(LeakageError, match="earlier than their user's last of the train window's"):
        together(*logs(A, B, C, [*D, (0, 0, 5, 1)]), by="user_time")
    many = [(0, 0, item % 7, -item) for item in range(9)]
    with pytest.raises(LeakageError, match="and 4 more"):
        together(*logs(A, B, C, [*D, *many]))
    with pytest.raises(ValueError, match="the test window has no rows"):
        together(*logs(A, B, C), make(A).select(np.zeros(1, bool)))


@given(rows, shares)
def test_no_split_of_different_rows_leaks(rows: list[Row], shares: list[float]) -> None:
    for by in ("global_time", "user_time"):
        # One row of a user, item and time: such a pair would be known in whichever segment.
        different = {row[1:]: row for row in rows}.values()
        parts = cut(make(list(different)), shares, by)  # type: ignore[arg-type]
        nothing = make(rows).select(np.zeros(len(rows), bool))
        windows = Windows(*parts, *[nothing] * (len(WINDOWS) - len(parts)))
        check_leakage(windows, by)  # type: ignore[arg-type]


@given(rows, rows)
def test_rows_of_both_logs_are_found_as_by_plain_loops(log: list[Row], before: list[Row]) -> None:
    known = {row[1:] for row in before}
    shared = sum(row[1:] in known for row in log)
    late = [(*row[:3], row[3] + 100) for row in log]
    refuse_leaks(make(late), "late", make(before), "first", "user_time")
    if shared:
        found = f"^{shared} of the {len(log)} later rows are among the first rows too"
        with pytest.raises(LeakageError, match=found):
            refuse_leaks(make(log), "later", make(before), "first", "user_time")
    else:
        last = {row[1]: row[3] for row in sorted(before, key=lambda row: row[3])}
        early = sum(row[3] < last.get(row[1], -10) for row in log)
        if early:
            with pytest.raises(LeakageError, match=f"^{early} of .* are earlier than their user's"):
                refuse_leaks(make(log), "later", make(before), "first", "user_time")
        else:
            refuse_leaks(make(log), "later", make(before), "first", "user_time")


def test_the_summary_tells_cold_from_warm() -> None:
    windows = together(*logs(A, B, C, [(2, 0, 3, 4), (2, 4, 0, 5)]))
    table = windows.summary().set_index("window")
    assert table["users"].tolist() == [1, 2, 1, 2]
    assert table["cold_users"].tolist() == [0, 1, 0, 1]
    assert table["cold_items"].tolist() == [0, 1, 1, 1]
    assert table["rows"].tolist() == [1, 2, 1, 2]
    assert table["cold_rows"].tolist() == [0, 2, 1, 2]
    users, items = warm(windows.train)
    assert np.flatnonzero(users).tolist() == [0, 1] and np.flatnonzero(items).tolist() == [1]
