"""XMarket as a log: every line of every market, or an error that names the line."""

import gzip
from datetime import UTC, date, datetime, time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.datasets.xmarket import XMarketError, read, write_log
from reclora.files import read_parquet
from reclora.interactions import LogContract, prepare_log

HEADER = "userId itemId rate date\n"
NAMES = st.text(st.characters(min_codepoint=33, exclude_categories=("Cs", "Z", "C")), min_size=1)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two markets, one of them gzipped; a repeat, and one user in both."""
    folder = tmp_path / "xmarket"
    folder.mkdir()
    (folder / "de_5core.txt").write_text(
        HEADER + "U2 I1 5.0 2016-02-29\nU1 I2 4.0 2016-02-29\nU1 I2 1.0 2016-02-29\n"
    )
    (folder / "ca_5core.txt.gz").write_bytes(
        gzip.compress((HEADER + "U1 I1 3.0 2015-12-27\n").encode())
    )
    (folder / "de_5core.zip").write_text("left alone")
    return folder


def test_the_log_of_two_markets(small: Path) -> None:
    table = read(small)
    assert table.schema.equals(
        pa.schema(
            {
                "user_id": pa.string(),
                "item_id": pa.string(),
                "timestamp": pa.timestamp("us", tz="UTC"),
                "segment": pa.string(),
            }
        )
    )
    leap_day = datetime(2016, 2, 29, tzinfo=UTC)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("U1", "I1", datetime(2015, 12, 27, tzinfo=UTC), "ca"),
        ("U1", "I2", leap_day, "de"),
        ("U1", "I2", leap_day, "de"),
        ("U2", "I1", leap_day, "de"),
    ]


def test_the_written_log_keeps_the_contract(small: Path, tmp_path: Path) -> None:
    out = write_log(small, tmp_path / "logs" / "log.parquet")
    assert read_parquet(out).equals(read(small))
    assert [file.name for file in out.parent.iterdir()] == ["log.parquet"]
    summary = prepare_log([out], tmp_path / "log", LogContract())
    assert (summary.rows_kept, summary.quarantined, summary.duplicates) == (3, {}, 1)
    assert sorted(summary.segments) == ["ca", "de"]


@given(
    rows=st.lists(
        st.tuples(
            NAMES,
            NAMES,
            st.sampled_from(("1.0", "2", "4.5", "5.0")),
            st.dates(date(1990, 1, 1), date(2030, 1, 1)),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_any_rows_in_any_order_give_one_log(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, date]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    expected = sorted(
        (datetime.combine(day, time(), UTC), user.encode(), item.encode())
        for user, item, _, day in rows
    )
    for order in (rows, rows[::-1]):
        lines = "".join(f"{user} {item} {rate} {day}\n" for user, item, rate, day in order)
        (folder / "us_5core.txt").write_text(HEADER + lines, encoding="utf-8")
        found = [
            (row["timestamp"], row["user_id"].encode(), row["item_id"].encode())
            for row in read(folder).to_pylist()
        ]
        assert found == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("U1 I1 5.0 2016-02-30\n", ":2: malformed line, .*2016-02-30"),
        ("U1 I1 5.0 2016-02-28\nU1 I1 5.0 12/31/2016\n", ":3: malformed line, .*12/31/2016"),
        ("U1 I1 5.0\n", ":2: malformed line"),
        ("U1 I1 5.0 2016-02-28 x\n", ":2: malformed line"),
        ("U1 I1  5.0 2016-02-28\n", ":2: malformed line"),
        ("U1 I1 5.0 2016-02-28\n\nU1 I1 5.0 2016-02-28\n", ":3: malformed line"),
        ("U1 I1 five 2016-02-28\n", ":2: malformed line, .*five"),
        ("U1 I1 nan 2016-02-28\n", ":2: malformed line, expected a rate from 1 to 5"),
        ("U1 I1 5 2016-02-28\nU1 I1 0 2016-02-28\n", ":3: .*expected a rate from 1 to 5"),
        (" I1 5.0 2016-02-28\n", ":2: malformed line, expected a user"),
        ("U1  5.0 2016-02-28\n", ":2: malformed line, expected an item"),
        ("U1 I1 5.0 2016-02-28\n" + HEADER, ":3: malformed line"),
        ("", ": expected reviews, found none"),
    ],
)
def test_a_malformed_line_is_named(small: Path, text: str, message: str) -> None:
    (small / "de_5core.txt").write_text(HEADER + text)
    with pytest.raises(XMarketError, match="de_5core.txt" + message):
        read(small)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "jp_5core.txt:1: expected the header 'userId itemId rate date', got ''"),
        (b"userId itemId rate\nU I 5.0\n", "jp_5core.txt:1: expected the header .*got"),
        (b"U1 I1 5.0 2016-02-28\n", "jp_5core.txt:1: expected the header .*got 'U1"),
        (HEADER.encode() + b"U1 I\xff 5.0 2016-02-28\n", "jp_5core.txt:2: malformed line.*UTF8"),
        (HEADER.strip().encode(), "jp_5core.txt: expected reviews, found none"),
    ],
)
def test_a_file_of_another_kind_is_named(small: Path, data: bytes, message: str) -> None:
    (small / "jp_5core.txt").write_bytes(data)
    with pytest.raises(XMarketError, match=message):
        read(small)


def test_windows_line_ends_and_a_last_line_without_end_are_read(tmp_path: Path) -> None:
    (tmp_path / "us_5core.txt").write_bytes(
        b"userId itemId rate date\r\nU1 I1 5.0 2016-02-28\r\nU1 I2 5.0 2016-02-28"
    )
    assert read(tmp_path)["item_id"].to_pylist() == ["I1", "I2"]


@pytest.mark.parametrize("kept", [0, 5, 30])
def test_a_damaged_gzip_file_is_named(small: Path, kept: int) -> None:
    path = small / "ca_5core.txt.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(XMarketError, match="ca_5core.txt.gz"):
        read(small)
    path.write_text(HEADER)
    with pytest.raises(XMarketError, match="ca_5core.txt.gz: not a whole gzip file"):
        read(small)


def test_a_folder_without_a_market_or_with_one_twice_is_refused(
    small: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(XMarketError, match="expected files of markets in .*found none"):
        read(empty)
    (small / "ca_5core.txt").write_text(HEADER)
    with pytest.raises(XMarketError, match="found ca_5core.txt and ca_5core.txt.gz; leave one"):
        read(small)
    (small / "ca_5core.txt").rename(small / "CA_5core.txt")
    with pytest.raises(XMarketError, match="found CA_5core.txt and ca_5core.txt.gz; leave one"):
        read(small)
    with pytest.raises(XMarketError):
        write_log(small, tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()
