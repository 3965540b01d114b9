"""Tests of reclora.interactions.log: rows stay together through sorting, selecting, translating."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions import IdMap, Interactions, LogContract, LogError, prepare_log
from reclora.interactions.log import UnknownCounts

USERS, ITEMS = IdMap(["ann", "bob", "cid"]), IdMap([10, 20, 30, 40])
NAMES = ("de", "empty", "fr")
Row = tuple[int, int, int, int, float]
ROWS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 5),
        st.integers(0, 2),
        st.integers(0, 3),
        st.floats(0, 1, width=32),
    )
)


def make(rows: list[Row], **changes: Any) -> Interactions:
    """Return the log of rows (segment, timestamp, user row, item row, weight)."""
    columns = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4).T
    fields = dict(zip(("segments", "timestamps", "user_rows", "item_rows"), columns, strict=True))
    weights = np.array([row[4] for row in rows], np.float32)
    defaults = {"users": USERS, "items": ITEMS, "segment_names": NAMES, "weights": weights}
    return Interactions.from_arrays(**{**defaults, **fields, **changes})


def rows_of(log: Interactions) -> list[Row]:
    weights = np.zeros(len(log)) if log.weights is None else log.weights
    columns = [log.segment_rows, log.timestamps, log.user_rows, log.item_rows, weights]
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(ROWS)
def test_from_arrays_sorts_whole_rows(rows: list[Row]) -> None:
    log = make(rows)
    assert rows_of(log) == sorted(rows)
    assert len(log) == len(rows)
    assert log.num_segments == 3
    for segment in range(3):
        part = slice(log.offsets[segment], log.offsets[segment + 1])
        assert (log.segment_rows[part] == segment).all()
        assert part.stop - part.start == sum(row[0] == segment for row in rows)


@given(ROWS, st.data())
def test_select_by_mask_and_by_position_agree_with_a_loop(rows: list[Row], data: Any) -> None:
    log = make(rows)
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    expected = [row for row, chosen in zip(sorted(rows), mask, strict=True) if chosen]
    chosen = np.array(mask, np.bool_)
    for selected in (log.select(chosen), log.select(np.flatnonzero(chosen))):
        assert rows_of(selected) == expected
        assert selected.segment_names == NAMES


@given(ROWS)
def test_only_takes_one_segment_and_pooled_takes_all(rows: list[Row]) -> None:
    log = make(rows)
    for segment, name in enumerate(NAMES):
        assert rows_of(log.only(name)) == sorted((0, *row[1:]) for row in rows if row[0] == segment)
        assert log.only(name).segment_names == (name,)
    assert rows_of(log.pooled()) == sorted((0, *row[1:]) for row in rows)
    assert log.pooled("all").segment_names == ("all",)


@given(ROWS)
def test_onto_keeps_ids_and_counts_what_is_unknown(rows: list[Row]) -> None:
    log = make(rows)
    users, items = IdMap(["zoe", "cid", "ann"]), IdMap([40, 5, 10])
    moved, unknown = log.onto(users, items)

    def ids(log: Interactions) -> list[tuple[Any, ...]]:
        user_ids, item_ids = log.users.ids_of(log.user_rows), log.items.ids_of(log.item_rows)
        columns = [user_ids.to_pylist(), item_ids.to_pylist(), log.segment_rows, log.timestamps]
        return list(zip(*columns, strict=True))

    known = [row for row in ids(log) if row[0] != "bob" and row[1] in (10, 40)]
    assert sorted(ids(moved)) == sorted(known)
    assert rows_of(moved) == sorted(rows_of(moved))
    assert moved.segment_names == NAMES
    assert unknown == UnknownCounts(
        users=int(any(row[2] == 1 for row in rows)),
        items=len({row[3] for row in rows} & {1, 2}),
        rows=len(rows) - len(known),
    )


@given(ROWS, ROWS)
def test_joined_holds_the_rows_of_both(mine: list[Row], its: list[Row]) -> None:
    assert rows_of(make(mine).joined(make(its))) == sorted(mine + its)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": IdMap(["x", "y", "z"])}, "same id maps"),
        ({"segment_names": ("a", "b", "c")}, "same id maps and segments"),
        ({"weights": None}, "both have weights"),
    ],
)
def test_logs_that_differ_are_not_joined(changes: dict[str, Any], message: str) -> None:
    rows = [(0, 0, 0, 0, 1.0)]
    with pytest.raises(ValueError, match=message):
        make(rows).joined(make(rows, **changes))


def test_onto_an_extended_map_loses_nothing() -> None:
    log = make([(0, 0, 0, 0, 1.0), (2, 1, 2, 3, 1.0)])
    users = IdMap(["bob"]).extended(log.users.ids)
    moved, unknown = log.onto(users, log.items)
    assert unknown == UnknownCounts(0, 0, 0)
    assert users.ids_of(moved.user_rows).to_pylist() == ["ann", "cid"]


def test_onto_ids_of_another_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="int64"):
        make([(0, 0, 0, 0, 1.0)]).onto(IdMap([1]), ITEMS)


def test_without_weights_there_are_none_anywhere() -> None:
    log = make([(0, 0, 0, 0, 1.0), (2, 1, 1, 1, 1.0)], weights=None)
    parts = [
        log,
        log.pooled(),
        log.only("fr"),
        log.select(np.array([1])),
        log.onto(USERS, ITEMS)[0],
    ]
    assert all(part.weights is None for part in parts)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"user_rows": [0, 3]}, IndexError, r"user_rows must be in 0\.\.2, got 3 at position 1"),
        ({"user_rows": [-1, 0]}, IndexError, "user_rows .* got -1 at position 0"),
        ({"item_rows": [0, 4]}, IndexError, r"item_rows must be in 0\.\.3, got 4 at position 1"),
        ({"segments": [0, 3]}, IndexError, r"segments must be in 0\.\.2, got 3 at position 1"),
        ({"segments": [0, -1]}, IndexError, "segments .* got -1"),
        ({"user_rows": [0.0, 1.0]}, TypeError, "user_rows must be integers, got float64"),
        ({"timestamps": [0]}, ValueError, "one length"),
        ({"weights": [1.0]}, ValueError, "weights must be of shape"),
        ({"weights": [1.0, np.nan]}, ValueError, "weights must be finite"),
        ({"weights": [-1.0, 1.0]}, ValueError, "weights must be finite and not negative"),
        ({"segment_names": ("a", "b", "a")}, ValueError, "'a' twice"),
    ],
)
def test_what_is_no_log_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make([(0, 0, 0, 0, 1.0), (0, 1, 0, 0, 1.0)], **changes)


def test_the_constructor_checks_what_from_arrays_makes() -> None:
    zeros = np.zeros(2, np.int64)
    good: dict[str, Any] = {
        "users": USERS,
        "items": ITEMS,
        "segment_names": ("a", "b"),
        "offsets": np.array([0, 1, 2]),
        "user_rows": zeros,
        "item_rows": zeros,
        # Between segments time may step back.
        "timestamps": np.array([5, 3]),
    }
    Interactions(**good)
    for changes, message in [
        ({"offsets": np.array([0, 2, 2])}, "timestamps must ascend inside a segment"),
        ({"offsets": np.array([0, 2])}, "offsets must be 3 int64"),
        ({"offsets": np.array([0, 1, 1])}, "ascend from 0 to 2"),
        ({"offsets": np.array([0, 3, 2])}, "ascend from 0 to 2"),
        ({"user_rows": zeros[:1]}, "user_rows must be int64 of shape"),
        ({"item_rows": zeros.astype(np.int32)}, "item_rows must be int64"),
        ({"weights": np.zeros(2)}, "weights must be float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            Interactions(**{**good, **changes})


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ([True], IndexError, "mask must be of shape"),
        ([0, 2], IndexError, "got 2 at position 1"),
        ([-1, 0], IndexError, "got -1 at position 0"),
        ([1, 0], ValueError, "must ascend"),
        ([0, 0], ValueError, "each at most once"),
        ([0.0], TypeError, "integers"),
    ],
)
def test_a_selection_out_of_bounds_is_refused(
    chosen: list[Any], error: type[Exception], message: str
) -> None:
    log = make([(0, 0, 0, 0, 1.0), (0, 1, 0, 0, 1.0)])
    with pytest.raises(error, match=message):
        log.select(np.array(chosen))


def test_an_unknown_segment_is_an_error_with_near_names() -> None:
    with pytest.raises(KeyError, match="no segment 'emty'.*'empty'"):
        make([]).only("emty")


def test_repr_says_what_it_holds() -> None:
    day = 86_400 * 10**6
    log = make([(0, 10_000 * day, 0, 0, 1.0), (2, 10_001 * day - 1, 1, 1, 1.0)])
    assert repr(log) == (
        "Interactions(2 rows, 3 users, 4 items, 3 segments, 1997-05-19 to 1997-05-19)"
    )
    assert repr(make([])) == "Interactions(0 rows, 3 users, 4 items, 3 segments)"


START = 1_700_000_000_000_000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(TEXT, st.integers(-(2**63), 2**63 - 1), st.integers(0, 9), TEXT), min_size=1)
)
def test_read_returns_what_was_laid_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("l")
    user_ids, item_ids, times, segments = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": pa.array(user_ids),
            "item_id": pa.array(item_ids, pa.int64()),
            "timestamp": pa.array([START + time for time in times], pa.timestamp("us")),
            "segment": pa.array(segments),
            "weight": pa.array([time / 8 for time in times]),
            "label": pa.array([1] * len(rows)),
        }
    )
    pq.write_table(table, folder / "in")
    prepare_log([folder / "in"], folder / "log", LogContract(duplicates="exact"))
    log = Interactions.read(folder / "log")
    found = zip(
        log.users.ids_of(log.user_rows).to_pylist(),
        log.items.ids_of(log.item_rows).to_pylist(),
        (log.timestamps - START).tolist(),
        [log.segment_names[segment] for segment in log.segment_rows],
        strict=True,
    )
    assert list(found) == sorted(
        set(rows), key=lambda r: (r[3].encode(), r[2], r[0].encode(), r[1])
    )
    assert log.weights is not None
    assert log.weights.tolist() == ((log.timestamps - START) / 8).tolist()
    assert rows_of(log) == sorted(rows_of(log))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table(
        {
            "user_id": [f"u{i % 50}" for i in range(500)],
            "item_id": [i % 70 for i in range(500)],
            "timestamp": pa.array(range(START, START + 500), pa.timestamp("us")),
            "segment": [f"s{i % 3}" for i in range(500)],
        }
    )
    pq.write_table(table, tmp_path / "in")
    prepare_log([tmp_path / "in"], tmp_path / "log", LogContract(duplicates="exact"))
    return tmp_path / "log"


def test_read_refuses_a_folder_without_a_complete_log(folder: Path) -> None:
    assert len(Interactions.read(folder)) == 500
    (folder / "summary.json").unlink()
    with pytest.raises(LogError, match=r"summary\.json is missing"):
        Interactions.read(folder)


def test_the_folder_may_be_a_string(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert rows_of(Interactions.read("log")) == rows_of(Interactions.read(folder))
    with pytest.raises(LogError, match=r"^nowhere: no complete log, summary\.json is missing"):
        Interactions.read("nowhere")


def labelled(folder: Path) -> LogContract:
    """A log laid out in `folder` of which every third row of 600 was declined."""
    table = pa.table(
        {
            "user_id": [f"u{i % 50}" for i in range(600)],
            "item_id": [i % 70 for i in range(600)],
            "timestamp": pa.array(range(START, START + 600), pa.timestamp("us")),
            "segment": [f"s{i % 4}" for i in range(600)],
            "label": [i % 3 for i in range(600)],
            "weight": [float(i) for i in range(600)],
        }
    )
    pq.write_table(table, folder.parent / "labelled")
    contract = LogContract(duplicates="exact", min_label=1, declined="keep")
    prepare_log([folder.parent / "labelled"], folder, contract)
    return contract


def test_declined_rows_are_read_on_the_same_ids_and_segments(tmp_path: Path) -> None:
    contract = labelled(tmp_path / "log")
    yes, no = (Interactions.read(tmp_path / "log", declined=which) for which in (False, True))
    assert (len(yes), len(no)) == (400, 200)
    assert (no.users, no.items, no.segment_names) == (yes.users, yes.items, yes.segment_names)
    assert no.weights is not None
    for log, rest in ((yes, (1, 2)), (no, (0,))):
        number = log.timestamps - START
        assert set(number % 3) == set(rest) and sorted(number) == [
            i for i in range(600) if i % 3 in rest
        ]
        assert log.users.ids_of(log.user_rows).to_pylist() == [f"u{i % 50}" for i in number]
        assert log.items.ids_of(log.item_rows).to_pylist() == (number % 70).tolist()
        assert [log.segment_names[s] for s in log.segment_rows] == [f"s{i % 4}" for i in number]
        assert log.weights is not None and log.weights.tolist() == number.tolist()
    path = tmp_path / "log" / "declined.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(LogError, match=r"expected 200 rows in declined\.parquet, got 199"):
        Interactions.read(tmp_path / "log", declined=True)
    unknown = table.set_column(0, "user_id", pa.array(["nobody"] * 200, pa.large_string()))
    pq.write_table(unknown, path)
    with pytest.raises(LogError, match=r"declined\.parquet, row 0: user_id is in no other file"):
        Interactions.read(tmp_path / "log", declined=True)
    prepare_log([tmp_path / "labelled"], tmp_path / "log", replace(contract, declined="drop"))
    assert len(Interactions.read(tmp_path / "log")) == 400
    with pytest.raises(LogError, match="below min_label were dropped; lay the log out again"):
        Interactions.read(tmp_path / "log", declined=True)


@pytest.mark.parametrize("names", [[], ["s0"], ["s1"], ["s2", "s0"], ["s0", "s1", "s2"]])
def test_segments_are_read_alone(tmp_path: Path, names: list[str]) -> None:
    """Of the file nothing but the row groups where they are is read: others may be damaged."""
    folder = small_groups(tmp_path)
    whole = Interactions.read(folder)
    codes = [code for code, name in enumerate(whole.segment_names) if name in names]
    own, expected = Interactions.read(folder, only=names), whole.part(codes)
    assert own.segment_names == expected.segment_names
    assert rows_of(own) == rows_of(expected) and own.offsets.tolist() == expected.offsets.tolist()
    assert own.attributes["device"].tolist() == expected.attributes["device"].tolist()
    path = folder / "log.parquet"
    groups = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    held = [whole.segment_rows[at : at + 64] for at in range(0, len(whole), 64)]
    for at in range(groups.num_row_groups):
        if not np.isin(held[at], codes).any():
            column = groups.row_group(at).column(0)
            first = column.dictionary_page_offset or column.data_page_offset
            data[first : first + column.total_compressed_size] = b"x" * column.total_compressed_size
    path.write_bytes(data)
    assert rows_of(Interactions.read(folder, only=names)) == rows_of(expected)
    if len(names) < 3:
        with pytest.raises(LogError, match="damaged"):
            Interactions.read(folder)


def small_groups(tmp_path: Path) -> Path:
    """A laid-out log of 500 rows in row groups of 64."""
    table = pa.table(
        {
            "user_id": [f"u{i % 50}" for i in range(500)],
            "item_id": [i % 70 for i in range(500)],
            "timestamp": pa.array(range(START, START + 500), pa.timestamp("us")),
            "segment": [f"s{i % 3}" for i in range(500)],
            "device": ["phone" if i % 7 else "desk" for i in range(500)],
            "weight": [i / 8 for i in range(500)],
        }
    )
    pq.write_table(table, tmp_path / "in")
    contract = LogContract(duplicates="exact", attributes=("device",))
    prepare_log([tmp_path / "in"], tmp_path / "log", contract)
    path = tmp_path / "log" / "log.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=64, write_page_checksum=True)
    return tmp_path / "log"


def test_segments_that_are_not_there_are_not_read(folder: Path) -> None:
    with pytest.raises(KeyError, match="no segment 's9' in the log"):
        Interactions.read(folder, only=["s0", "s9"])
    with pytest.raises(ValueError, match="of all segments, not of some"):
        Interactions.read(folder, declined=True, only=["s0"])


@pytest.mark.parametrize("name", ["log.parquet", "user_ids.parquet", "item_ids.parquet"])
def test_read_refuses_damaged_and_missing_files(folder: Path, name: str) -> None:
    whole, path = rows_of(Interactions.read(folder)), folder / name
    data = path.read_bytes()
    caught = 0
    for position in range(0, len(data), len(data) // 100 + 1):
        path.write_bytes(data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :])
        try:
            # A bit that nobody reads may flip, but no row may change or go.
            assert rows_of(Interactions.read(folder)) == whole
        except LogError:
            caught += 1
    assert caught > 30
    (folder / name).unlink()
    with pytest.raises(LogError, match=name):
        Interactions.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(1), "expected 500 rows in log.parquet, got 499"),
        (lambda t: t.take(pa.array(range(499, -1, -1))), "sorted by segment"),
        (lambda t: t.set_column(3, "segment", pa.array(["new"] * 500)), "row 0: segment is in no"),
        (lambda t: t.set_column(0, "user_id", pa.array(["new"] * 500)), "row 0: user_id is in no"),
        (lambda t: t.set_column(0, "user_id", pa.array([1] * 500)), "holds large_string ids"),
        (lambda t: t.drop_columns("item_id"), "item_id"),
    ],
)
def test_read_refuses_files_that_do_not_belong_together(
    folder: Path, change: Any, message: str
) -> None:
    table = pq.read_table(folder / "log.parquet")
    pq.write_table(change(table), folder / "log.parquet")
    with pytest.raises(LogError, match=message):
        Interactions.read(folder)


# Attributes travel with their rows.


def with_attributes(rows: list[Row]) -> Interactions:
    """Two attributes that say which row it is: one by value, one with missing values."""
    tags = [f"{segment}/{time}/{user}/{item}" for segment, time, user, item, _ in rows]
    odd = [None if item % 2 == 0 else "odd" for _, _, _, item, _ in rows]
    return make(rows, attributes={"tag": np.array(tags, dtype=object), "odd": odd})


def check_attributes(log: Interactions, renamed: dict[int, int] | None = None) -> None:
    for row, tag, odd in zip(
        rows_of(log), log.attributes["tag"], log.attributes["odd"], strict=True
    ):
        segment, time, user, item, _ = row
        if renamed is not None:
            segment = renamed[segment]
        assert tag.split("/")[1:] == [str(time), str(user), str(item)]
        assert int(tag.split("/")[0]) == segment
        assert odd == ("odd" if item % 2 else "(none)")


@given(ROWS, ROWS, st.data())
def test_attributes_travel_with_their_rows(rows: list[Row], more: list[Row], data: Any) -> None:
    log = with_attributes(rows)
    check_attributes(log)
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    check_attributes(log.select(np.array(mask, bool)))
    check_attributes(log.only("fr"), {0: 2})
    check_attributes(log.joined(with_attributes(more)))
    moved, _ = log.onto(IdMap(["ann", "bob", "cid", "new"]), IdMap([10, 20, 30, 40]))
    check_attributes(moved)
    few, _ = log.onto(IdMap(["ann"]), IdMap([10, 20, 30, 40]))
    check_attributes(few)
    pooled = log.pooled()
    # Rows that agree in time, user and item may have come from any segment.
    assert sorted(pooled.attributes["tag"]) == sorted(log.attributes["tag"])
    for row, tag in zip(rows_of(pooled), pooled.attributes["tag"], strict=True):
        assert tag.split("/")[1:] == [str(row[1]), str(row[2]), str(row[3])]


def test_categories_that_are_numbers_become_strings() -> None:
    rows = [(0, 1, 0, 0, 1.0), (0, 2, 0, 1, 1.0)]
    numbers = make(rows, attributes={"hour": pd.Categorical([7, 8])})
    strings = make(rows, attributes={"hour": ["7", None]})
    assert list(numbers.joined(strings).attributes["hour"]) == ["7", "7", "8", "(none)"]


def test_attributes_that_do_not_fit_are_refused() -> None:
    rows = [(0, 1, 0, 0, 1.0), (0, 2, 0, 1, 1.0)]
    with pytest.raises(ValueError, match="'device' must have 2 values, got 1"):
        make(rows, attributes={"device": ["tv"]})
    one, none = make(rows, attributes={"device": ["tv", "tv"]}), make(rows)
    with pytest.raises(ValueError, match=r"same attributes, got \['device'\] and \[\]"):
        one.joined(none)


def test_attributes_come_from_files_through_the_laid_out_log(tmp_path: Path) -> None:
    start = 1_700_000_000
    table = pa.table(
        {
            "user_id": ["u1", "u2", "u1", "u1"],
            "item_id": [1, 1, 2, 2],
            "timestamp": [start + 3, start + 1, start + 2, start + 2],
            "segment": ["de", "de", "fr", "fr"],
            'the "device"': pa.array(["tv", None, "web", "app"]).dictionary_encode(),
            "age": [30, 40, 50, 50],
            "is_new": [True, False, None, None],
            "not asked for": [1, 2, 3, 4],
        }
    )
    contract = LogContract(time_unit="s", attributes=("is_new", 'the "device"', "age"))
    logs = []
    for name, rows in (("a", [0, 1, 2, 3]), ("b", [3, 2, 1, 0])):
        pq.write_table(table.take(rows), tmp_path / f"{name}.parquet")
        prepare_log([tmp_path / f"{name}.parquet"], tmp_path / name, contract)
        logs.append(Interactions.read(tmp_path / name))
    for log in logs:
        # Of the two rows of u1 and item 2 the one least by its attributes stays.
        assert {name: list(values) for name, values in log.attributes.items()} == {
            "is_new": ["false", "true", "(none)"],
            'the "device"': ["(none)", "tv", "app"],
            "age": ["40", "30", "50"],
        }
    again = prepare_log([tmp_path / "a.parquet"], tmp_path / "a", LogContract(time_unit="s"))
    assert again.contract.attributes == () and not Interactions.read(tmp_path / "a").attributes


def test_a_missing_or_odd_attribute_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    columns = {"user_id": ["u"], "item_id": [1], "timestamp": [1_700_000_000], "segment": ["s"]}
    pq.write_table(pa.table({**columns, "devcie": ["tv"], "price": [1.5]}), path)
    for attribute, message in (
        ("device", "'device', an attribute: expected once, got 0 times; did you mean 'devcie'"),
        ("price", "column 'price': expected a string, an integer or a boolean, got double"),
    ):
        with pytest.raises(LogError, match=message):
            prepare_log(
                [path], tmp_path / "out", LogContract(time_unit="s", attributes=(attribute,))
            )
    for wrong in (("segment",), ("a", "a"), ("",), ("Hour", "hour"), ("LABEL",)):
        with pytest.raises(ValueError, match="attributes must be names of columns that differ"):
            LogContract(attributes=wrong)


@given(
    st.lists(
        st.tuples(*[st.integers(0, 3)] * 4, st.sampled_from([0.5, 1.0, 2.0])),
        min_size=0,
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_rows_are_in_the_order_of_a_sort_by_all_columns(
    rows: list[tuple[int, int, int, int, float]], sorted_from: int
) -> None:
    # Logs mostly come as runs that are in order already.
    rows = sorted(rows[:sorted_from]) + sorted(rows[sorted_from:])
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    log = Interactions.from_arrays(
        users=IdMap(np.arange(4)),
        items=IdMap(np.arange(4)),
        segment_names=tuple("abcd"),
        segments=np.array(columns[0], np.int64),
        timestamps=np.array(columns[1], np.int64),
        user_rows=np.array(columns[2], np.int64),
        item_rows=np.array(columns[3], np.int64),
        weights=np.array(columns[4], np.float32),
    )
    made = (log.segment_rows, log.timestamps, log.user_rows, log.item_rows, log.weights)
    assert list(zip(*(c.tolist() for c in made), strict=True)) == sorted(rows)
