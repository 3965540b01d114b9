"""Gowalla's split as two logs: each pair once, in the window that it was published in."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.datasets.gowalla import TEST_TIME, TRAIN_TIME, GowallaError, read, write_logs
from reclora.files import read_parquet
from reclora.interactions import LogContract, prepare_log

IDS = st.integers(0, 10**18 - 1)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "gowalla"
    folder.mkdir()
    (folder / "train.txt").write_text("1 7 3\n0 3 4 5\n")
    (folder / "test.txt.gz").write_bytes(gzip.compress(b"0 7\n1 5\n"))
    return folder


def pairs(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def test_the_two_logs(small: Path) -> None:
    train, test = read(small)
    schema = {
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "segment": pa.string(),
    }
    for table, time in ((train, TRAIN_TIME), (test, TEST_TIME)):
        assert table.schema.equals(pa.schema(schema))
        assert set(table["timestamp"].to_pylist()) == {time}
        assert set(table["segment"].to_pylist()) == {"all"}
    assert TRAIN_TIME < TEST_TIME
    assert pairs(train) == [(0, 3), (0, 4), (0, 5), (1, 3), (1, 7)]
    assert pairs(test) == [(0, 7), (1, 5)]


def test_the_written_logs_keep_the_contract(small: Path, tmp_path: Path) -> None:
    paths = write_logs(small, tmp_path / "logs")
    assert [path.name for path in paths] == ["train.parquet", "test.parquet"]
    assert sorted((tmp_path / "logs").iterdir()) == sorted(paths)
    assert [read_parquet(path) for path in paths] == list(read(small))
    summary = prepare_log(list(paths), tmp_path / "log", LogContract())
    assert (summary.rows_kept, summary.quarantined, summary.duplicates) == (7, {}, 0)


@given(
    items=st.dictionaries(IDS, st.sets(IDS, min_size=2, max_size=6), min_size=1, max_size=6),
    end=st.sampled_from(("\n", "\r\n")),
    last=st.booleans(),
)
def test_any_split_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, items: dict[int, set[int]], end: str, last: bool
) -> None:
    folder = tmp_path_factory.mktemp("split")
    for name, part in (("train.txt", slice(1, None)), ("test.txt", slice(0, 1))):
        lines = [" ".join(map(str, [user, *list(own)[part]])) for user, own in items.items()]
        text = end.join(lines) + (end if last else "")
        (folder / name).write_text(text, newline="")
    train, test = read(folder)
    assert pairs(train) == sorted((u, i) for u, own in items.items() for i in list(own)[1:])
    assert pairs(test) == sorted((u, i) for u, own in items.items() for i in list(own)[:1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "train.txt: expected lines, found none"),
        (b"\n", "train.txt: expected lines, found none"),
        (b"0 1\n1\n", "train.txt:2: malformed line, expected a user and items"),
        (b"0 1\n1 \n", "train.txt:2: malformed line"),
        (b"0 1\n\n1 2\n", "train.txt:2: malformed line"),
        (b"0 1\n1 2\n\n", "train.txt:3: malformed line"),
        (b"0  1\n", "train.txt:1: malformed line"),
        (b"0 1\n1 -2\n", "train.txt:2: malformed line"),
        (b"0 1\n1 2.0\n", "train.txt:2: malformed line"),
        (b"0\t1\n", "train.txt:1: malformed line"),
        (b"0 1 9999999999999999999\n", "train.txt:1: malformed line"),
        (b"user item\n0 1\n", "train.txt:1: malformed line"),
        (b"0 1\n1 2\n0 5\n", "train.txt:3: .*a user that no line before has"),
        (b"0 1\n1 2 3 2\n", "train.txt: expected each item once a user, got item 2 of user 1"),
        (b"0 1\n1 \xb2\n", "train.txt:2: malformed line, expected digits"),
        ("0 1\n1 \u0663\n".encode(), "train.txt:2: malformed line, expected digits"),
        (b"1 5 6\n0 1 7\n", "user 0 has item 7 in .*train.txt and in .*test.txt.gz, .*2 such"),
    ],
)
def test_what_is_wrong_is_named(small: Path, tmp_path: Path, data: bytes, message: str) -> None:
    (small / "train.txt").write_bytes(data)
    with pytest.raises(GowallaError, match=message):
        write_logs(small, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("kept", [0, 5, 20])
def test_a_damaged_gzip_file_is_named(small: Path, kept: int) -> None:
    path = small / "test.txt.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GowallaError, match="test.txt.gz"):
        read(small)


def test_each_file_is_needed_once(small: Path) -> None:
    (small / "test.txt").write_text("0 7\n")
    with pytest.raises(GowallaError, match="test.txt or test.txt.gz in .*, found both; leave one"):
        read(small)
    (small / "train.txt").unlink()
    with pytest.raises(GowallaError, match="train.txt or train.txt.gz in .*, found neither"):
        read(small)
