"""Tests of reclora.interactions.contract: a file that breaks it is named, with what is wrong."""

import random
import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclora.interactions.contract import LogContract, LogError, check_files, plausible_unit

NOW = 1_760_000_000
GOOD: dict[str, Any] = {
    "user_id": pa.array(["u1", "u2"]),
    "item_id": pa.array([1, 2], pa.int32()),
    "timestamp": pa.array([NOW * 1000 - 5, NOW * 1000 - 9], pa.timestamp("ms")),
    "segment": pa.array(["de", "fr"]),
}


def write(path: Path, **changes: Any) -> Path:
    """Write a file that keeps the contract but for `changes`; None leaves a column out."""
    columns = {**GOOD, **changes}
    pq.write_table(pa.table({name: c for name, c in columns.items() if c is not None}), path)
    return path


def refusal(*files: Path, **contract: Any) -> str:
    with pytest.raises(LogError) as caught:
        check_files(list(files), LogContract(**contract), now=NOW)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "contract"),
    [
        ({}, {}),
        ({"user_id": pa.array([1, 2], pa.uint64()), "item_id": pa.array([1, 2], pa.int8())}, {}),
        ({"user_id": pa.array(["a", "b"], pa.large_string())}, {}),
        ({"user_id": pa.array(["a", "b"]).dictionary_encode()}, {}),
        ({"segment": pa.array(["a", "b"]).dictionary_encode()}, {}),
        ({"timestamp": pa.array([1, 2], pa.timestamp("ns", "Europe/Berlin"))}, {}),
        ({"timestamp": pa.array([1, 2], pa.int32())}, {"time_unit": "s"}),
        ({"label": pa.array([1, 2], pa.uint8()), "weight": pa.array([1, 2], pa.float32())}, {}),
        ({"label": pa.array([1.0, 2.0])}, {"min_label": 1.5}),
        ({"price": pa.array([1, 2]), "Label2": pa.array([1, 2])}, {}),
    ],
)
def test_what_keeps_the_contract_passes(
    tmp_path: Path, changes: dict[str, Any], contract: dict[str, Any]
) -> None:
    path = write(tmp_path / "log.parquet", **changes)
    (file,) = check_files([path], LogContract(**contract), now=NOW)
    assert file.path == path
    assert file.rows == 2
    assert set(file.columns) >= set(GOOD)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"user_id": None}, ["column 'user_id': missing", "'item_id', 'timestamp', 'segment'"]),
        ({"segment": None}, ["column 'segment': missing"]),
        ({"user_id": None, "User_ID": pa.array(["a", "b"])}, ["'User_ID'", "rename", "'user_id'"]),
        ({"LABEL": pa.array([1, 2])}, ["column 'LABEL': rename it to 'label'"]),
        ({" weight": pa.array([1, 2])}, ["column ' weight': rename it to 'weight'"]),
        (
            {"item_id": pa.array([1.0, 2.0])},
            ["'item_id': expected a string or an integer, got double; write whole numbers as"],
        ),
        ({"user_id": pa.array([b"a", b"b"])}, ["'user_id'", "got binary; write strings"]),
        ({"segment": pa.array([1, 2])}, ["'segment': expected a string, got int64; write strings"]),
        (
            {"label": pa.array(["1", "2"])},
            ["'label': expected a float or an integer, got string; write numbers"],
        ),
        ({"weight": pa.array([True, False])}, ["'weight'", "got bool; write 1 and 0"]),
        ({"timestamp": pa.array([1, 2], pa.date32())}, ["'timestamp'", "got date32[day]; write"]),
        ({"timestamp": pa.array([1.0, 2.0])}, ["'timestamp'", "got double; write whole numbers"]),
        (
            {"timestamp": pa.array(["2024-01-01", "2024-01-02"])},
            ["'timestamp'", "got string; write moments"],
        ),
    ],
)
def test_a_broken_column_is_named_with_what_was_found(
    tmp_path: Path, changes: dict[str, Any], wanted: list[str]
) -> None:
    message = refusal(write(tmp_path / "bad.parquet", **changes))
    assert all(words in message for words in ["bad.parquet", *wanted]), message


@pytest.mark.parametrize(
    ("column", "contract"),
    [
        (pd.Series(["2024-01-01", "2024-01-02"], name="timestamp"), {}),
        (pd.Series([NOW + 0.0, NOW + 1.0], name="timestamp"), {"time_unit": "s"}),
        (pd.Series([True, False], name="label"), {}),
        (pd.Series(["1", "0.5"], name="weight"), {}),
        (pd.Series([1.0, 2.0], name="item_id"), {}),
        (pd.Series([1, 2], name="segment"), {}),
        (pd.Series([0.5, 1.5], name="price"), {"attributes": ("price",)}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_it_says_to_do_about_a_type_mends_it(
    tmp_path: Path, column: pd.Series, contract: dict[str, Any]
) -> None:
    log = pa.table(GOOD).to_pandas()
    log[column.name] = column
    log.to_parquet(tmp_path / "log.parquet")
    message = refusal(tmp_path / "log.parquet", **contract)
    (remedy,) = re.findall(r"(?:pd\.\w+\()?log\['\w+'\][^ ]*(?: utc=True\))?", message)
    log[column.name] = eval(remedy.rstrip(","), {"pd": pd, "log": log})
    log.to_parquet(tmp_path / "log.parquet")
    assert check_files([tmp_path / "log.parquet"], LogContract(**contract), now=NOW)


def test_a_duplicated_column_is_an_error(tmp_path: Path) -> None:
    table = pa.table([*GOOD.values(), GOOD["user_id"]], names=[*GOOD, "user_id"])
    pq.write_table(table, tmp_path / "twice.parquet")
    message = refusal(tmp_path / "twice.parquet")
    assert "twice.parquet: column 'user_id': expected once, got 2 times" in message


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_integers_without_a_unit_are_refused_with_the_likely_one(tmp_path: Path, unit: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pa.array([(NOW - 5) * per_second] * 2, pa.int64())
    message = refusal(write(tmp_path / "a.parquet", timestamp=times))
    assert (
        f"its values look like {unit!r} (in a settings file: [log.contract] time_unit)" in message
    )


def test_the_likely_unit_is_found_behind_nested_columns(tmp_path: Path) -> None:
    columns = {"pair": pa.array([{"timestamp": "x", "b": 2.0}] * 2), **GOOD}
    columns["timestamp"] = pa.array([NOW - 5] * 2)
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert "its values look like 's'" in refusal(tmp_path / "a.parquet")


def test_a_unit_beside_parquet_timestamps_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.parquet"), time_unit="s")
    assert "time_unit='s'" in message and "carries its own unit" in message


def test_min_label_needs_labels(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.parquet"), min_label=3.0)
    assert "column 'label': missing (min_label is set)" in message


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"user_id": pa.array([1, 2])}, "'user_id': expected string as in"),
        ({"item_id": pa.array(["1", "2"])}, "'item_id': expected integer as in"),
        (
            {"timestamp": pa.array([1, 2], pa.timestamp("ms", "UTC"))},
            "expected timestamp[ms] without zone as in",
        ),
        ({"timestamp": pa.array([1, 2], pa.timestamp("us"))}, "got timestamp[us] without zone"),
        ({"label": pa.array([1, 2])}, "'label': expected no such column as in"),
    ],
)
def test_files_must_agree(tmp_path: Path, changes: dict[str, Any], wanted: str) -> None:
    first, other = write(tmp_path / "1.parquet"), write(tmp_path / "2.parquet", **changes)
    message = refusal(first, other)
    assert f"{other}: column" in message and wanted in message and "1.parquet" in message
    # Wherever the odd one stands, it is never cast or filled in silence.
    assert "column" in refusal(other, first)


def test_integers_of_different_width_agree(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{kind}.parquet", item_id=pa.array([1, 2], kind))
        for kind in ("int64", "uint16")
    ]
    assert len(check_files(files, LogContract(), now=NOW)) == 2


def test_all_bad_files_are_named_in_one_pass(tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet")
    data = good.read_bytes()
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.parquet").write_text("user_id,item_id\n" * 100)
    (tmp_path / "folder.parquet").mkdir()
    bad = [tmp_path / f"{name}.parquet" for name in ("empty", "cut", "text", "folder", "missing")]
    message = refusal(good, *bad, good)
    for path in bad:
        assert f"{path}: " in message
    assert f"{good}: given twice" in message


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "good.parquet").read_bytes()
    path = tmp_path / "cut.parquet"
    for size in random.Random(0).sample(range(len(data)), 50):
        path.write_bytes(data[:size])
        assert "cut.parquet: not a whole Parquet file" in refusal(path)


def test_no_files_are_an_error() -> None:
    assert "at least one" in refusal()


def test_a_unit_is_plausible_for_one_range_only() -> None:
    now = time.time()
    assert [plausible_unit(int(now * 10**power), now) for power in (0, 3, 6, 9)] == [
        "s",
        "ms",
        "us",
        "ns",
    ]
    assert plausible_unit(0, now) is None
    assert plausible_unit(20240101, now) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_unit": "m"}, "got 'm'"),
        ({"duplicates": "last"}, "'first' or 'exact', got 'last'"),
        ({"min_label": float("nan")}, "finite"),
        ({"declined": "forget", "min_label": 1.0}, "declined must be 'drop' or 'keep'"),
        ({"declined": "keep"}, "keeps the rows below min_label, and there is none"),
        ({"max_quarantined": 1.5}, "in 0..1, got 1.5"),
        ({"max_quarantined": float("nan")}, "in 0..1"),
    ],
)
def test_a_contract_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogContract(**fields)
