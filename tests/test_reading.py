"""Tests of reclora.interactions.reading: a row is kept as it is, or quarantined with a reason."""

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions.contract import LogContract, LogError, check_files
from reclora.interactions.reading import Quarantine, read_rows

NOW = 1_760_000_000.0
GOOD: dict[str, Any] = {
    "user_id": ["a", "b", "c"],
    "item_id": [1, 2, 3],
    "timestamp": [1_700_000_000, 1_700_000_001, 1_700_000_002],
    "segment": ["x", "y", "x"],
}


def read(
    folder: Path, table: pa.Table, *, time_unit: Any = "s", limit: float = 1.0, **options: Any
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Return the rows kept and the rows quarantined of `table`, written to a file first."""
    path = folder / "log.parquet"
    pq.write_table(table, path, **options)
    (file,) = check_files([path], LogContract(time_unit=time_unit), now=NOW)
    with Quarantine(folder / "q.parquet") as quarantine:
        read_ = list(read_rows(file, quarantine, now=NOW))
    assert sum(rows for rows, _ in read_) == table.num_rows
    listed = pq.read_table(folder / "q.parquet").to_pylist()
    assert quarantine.counts.total() == len(listed)
    quarantine.check(limit, table.num_rows, folder / "q.parquet", NOW)
    return pa.Table.from_batches([batch for _, batch in read_]), listed


def test_good_rows_come_through_canonically(tmp_path: Path) -> None:
    table = pa.table(
        {
            **GOOD,
            "segment": pa.array(GOOD["segment"]).dictionary_encode(),
            "item_id": pa.array([1, 2, 3], pa.uint8()),
            "weight": pa.array([0, 1, 2], pa.int8()),
            "price": [1, 2, 3],
        }
    )
    kept, listed = read(tmp_path, table)
    assert listed == []
    assert kept.schema == pa.schema(
        [
            ("user_id", pa.large_string()),
            ("item_id", pa.int64()),
            ("timestamp", pa.int64()),
            ("segment", pa.large_string()),
            ("weight", pa.float64()),
        ]
    )
    assert kept["item_id"].to_pylist() == [1, 2, 3]
    assert kept["segment"].to_pylist() == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("time", "unit"),
    [
        (pa.array([1_700_000_000_123], pa.int64()), "ms"),
        (pa.array([1_700_000_000_123_999_999], pa.int64()), "ns"),
        (pa.array([1_700_000_000_123], pa.uint64()), "ms"),
        (pa.array([1_700_000_000_123], pa.timestamp("ms")), None),
        (pa.array([1_700_000_000_123_000_000], pa.timestamp("ns", "Asia/Tokyo")), None),
    ],
)
def test_every_unit_becomes_microseconds_of_utc(tmp_path: Path, time: pa.Array, unit: str) -> None:
    table = pa.table({"user_id": ["a"], "item_id": ["b"], "timestamp": time, "segment": ["x"]})
    kept, _ = read(tmp_path, table, time_unit=unit)
    assert kept["timestamp"].to_pylist()[0] in (1_700_000_000_123_000, 1_700_000_000_123_999)


DAY = 86_400


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "user_id is null"),
        ("user_id", "", "user_id is empty"),
        ("item_id", None, "item_id is null"),
        ("segment", None, "segment is null"),
        ("segment", "", "segment is empty"),
        ("timestamp", None, "timestamp is null"),
        ("timestamp", 0, "timestamp is before 1990"),
        ("timestamp", -(2**63), "timestamp is before 1990"),
        ("timestamp", 631_151_999, "timestamp is before 1990"),
        ("timestamp", int(NOW) + DAY + 1, "timestamp is more than a day in the future"),
        ("timestamp", 2**63 - 1, "timestamp is more than a day in the future"),
        ("label", None, "label is null"),
        ("label", float("nan"), "label is NaN"),
        ("label", float("-inf"), "label is infinite"),
        ("weight", None, "weight is null"),
        ("weight", float("nan"), "weight is NaN"),
        ("weight", float("inf"), "weight is infinite"),
        ("weight", -1e-9, "weight is negative"),
    ],
)
def test_a_row_that_breaks_the_contract_is_listed_with_its_reason(
    tmp_path: Path, column: str, value: Any, reason: str
) -> None:
    columns = {**GOOD, "label": [1.0, -2.0, 3.0], "weight": [1.0, 0.0, 3.0]}
    columns[column] = [columns[column][0], value, columns[column][2]]
    kept, listed = read(tmp_path, pa.table(columns))
    written = "-1e-9" if value == -1e-9 else None if value is None else str(value)
    assert kept["user_id"].to_pylist() == ["a", "c"]
    assert listed == [
        {
            "file": str(tmp_path / "log.parquet"),
            "row": 1,
            "column": column,
            "reason": reason,
            "value": written,
        }
    ]


def test_the_edges_of_time_are_kept(tmp_path: Path) -> None:
    table = pa.table({**GOOD, "timestamp": [631_152_000, int(NOW), int(NOW) + DAY]})
    kept, listed = read(tmp_path, table)
    assert (kept.num_rows, listed) == (3, [])


def test_integer_ids_above_64_bits_with_a_sign_are_listed(tmp_path: Path) -> None:
    table = pa.table({**GOOD, "user_id": pa.array([1, 2**63, 2**63 - 1], pa.uint64())})
    kept, listed = read(tmp_path, table)
    assert kept["user_id"].to_pylist() == [1, 2**63 - 1]
    assert [(row["row"], row["reason"], row["value"]) for row in listed] == [
        (1, "user_id is above 2**63 - 1", str(2**63))
    ]


@pytest.mark.parametrize("dictionary", [True, False])
def test_strings_that_are_not_utf8_are_listed(tmp_path: Path, dictionary: bool) -> None:
    users = pa.array([b"a", b"\xff\xfe", "é".encode()]).view(pa.string())
    table = pa.table({**GOOD, "user_id": users.dictionary_encode() if dictionary else users})
    kept, listed = read(tmp_path, table)
    assert kept["user_id"].to_pylist() == ["a", "é"]
    assert [(row["row"], row["reason"]) for row in listed] == [(1, "user_id is not UTF-8")]


def test_rows_are_numbered_through_batches_and_row_groups(tmp_path: Path) -> None:
    rows = 300_000
    users = ["a"] * rows
    for row in (0, 140_000, rows - 1):
        users[row] = ""
    table = pa.table(
        {
            "user_id": users,
            "item_id": range(rows),
            "timestamp": [1_700_000_000] * rows,
            "segment": ["x"] * rows,
        }
    )
    kept, listed = read(tmp_path, table, row_group_size=70_000)
    assert [row["row"] for row in listed] == [0, 140_000, rows - 1]
    assert kept.num_rows == rows - 3


def test_a_row_with_several_faults_is_counted_once(tmp_path: Path) -> None:
    table = pa.table({**GOOD, "user_id": ["", "b", "c"], "timestamp": [0, 0, 1_700_000_000]})
    kept, listed = read(tmp_path, table)
    assert [(row["row"], row["column"]) for row in listed] == [(0, "user_id"), (1, "timestamp")]
    assert kept.num_rows == 1


def test_above_the_limit_the_error_names_the_first_row_and_the_counts(tmp_path: Path) -> None:
    table = pa.table({**GOOD, "user_id": ["a", "b", ""], "timestamp": [1_700_000_000, 7, None]})
    with pytest.raises(LogError) as caught:
        read(tmp_path, table, limit=0.6)
    message = str(caught.value)
    assert "2 of 3 rows" in message and "max_quarantined=0.6 allows 1" in message
    assert "log.parquet, row 1, column 'timestamp': timestamp is before 1990 ('7')" in message
    assert "timestamp is before 1990: 1" in message and "user_id is empty: 1" in message
    assert "q.parquet" in message
    assert "they look like" not in message
    assert "q.parquet; mend them, or raise max_quarantined of the log's contract" in message


@pytest.mark.parametrize(
    ("declared", "true"), [("s", "ms"), ("ms", "s"), ("us", "ns"), ("ns", "s")]
)
def test_a_wrong_unit_is_found_out(tmp_path: Path, declared: str, true: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[true]
    times = [second * per_second for second in GOOD["timestamp"]]
    said = f"out of range in '{declared}'; they look like '{true}': set time_unit = '{true}'"
    with pytest.raises(LogError, match=said):
        read(tmp_path, pa.table({**GOOD, "timestamp": times}), time_unit=declared, limit=0.01)


def test_negative_zero_is_zero(tmp_path: Path) -> None:
    kept, _ = read(tmp_path, pa.table({**GOOD, "label": [-0.0, 0.0, 1.0]}))
    assert struct.pack("d", kept["label"][0].as_py()) == struct.pack("d", 0.0)


ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=3)),
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(631_152_000, int(NOW))),
        st.one_of(st.none(), st.sampled_from(["x", "", "日本"])),
        st.one_of(st.none(), st.floats()),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_kept_and_quarantined_are_what_a_plain_loop_says(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    types = [pa.string(), pa.int64(), pa.int64(), pa.string(), pa.float64()]
    names = ["user_id", "item_id", "timestamp", "segment", "weight"]
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]
    kept, listed = read(tmp_path_factory.mktemp("r"), pa.table(columns, names=names))

    def good(row: tuple[Any, ...]) -> bool:
        user, item, time, segment, weight = row
        return bool(
            user
            and item is not None
            and time is not None
            and 631_152_000 <= time <= NOW + DAY
            and segment
            and weight is not None
            and 0 <= weight < float("inf")
        )

    expected = [row for row in rows if good(row)]
    assert kept.num_rows == len(expected)
    assert [tuple(row.values()) for row in kept.to_pylist()] == [
        (user, item, time * 10**6, segment, weight)
        for user, item, time, segment, weight in expected
    ]
    assert [row["row"] for row in listed] == [i for i, row in enumerate(rows) if not good(row)]


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6])
def test_a_flipped_bit_under_a_checksum_is_an_error_that_names_the_file(
    tmp_path: Path, place: float
) -> None:
    rows = 2000
    table = pa.table(
        {
            "user_id": [f"u{i}" for i in range(rows)],
            "item_id": range(rows),
            "timestamp": range(1_700_000_000, 1_700_000_000 + rows),
            "segment": ["x"] * rows,
        }
    )
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 16
    path.write_bytes(data)
    (file,) = check_files([path], LogContract(time_unit="s"), now=NOW)
    with Quarantine(tmp_path / "q.parquet") as quarantine:
        with pytest.raises(LogError, match=r"log\.parquet: damaged"):
            list(read_rows(file, quarantine, now=NOW))
