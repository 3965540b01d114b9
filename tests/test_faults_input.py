"""Logs and tables that are damaged, mixed up or out of bounds: rows 14 to 19 and 21.

Each test is named after its row of the list of faults that a run survives.
"""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reclora.base import BaseModel
from reclora.files import make_folder, read_parquet, sha256_of, write_parquet
from reclora.interactions import IdMap, Interactions, LogContract, LogError, prepare_log
from reclora.interchange import import_base
from reclora.tables import BaseError
from tests.small_runs import START, reclora, small_settings, write_toml


def rows(num: int = 40, **changes: Any) -> pa.Table:
    """A log of `num` different rows; a column may be replaced, added or, by None, left out."""
    columns = {
        "user_id": [f"u{i}" for i in range(num)],
        "item_id": [f"i{i % 7}" for i in range(num)],
        "timestamp": pa.array(START + np.arange(num) * 10**9, pa.timestamp("us", "UTC")),
        "segment": ["de", "fr"] * (num // 2),
        **changes,
    }
    return pa.table({name: column for name, column in columns.items() if column is not None})


def log_file(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, write_page_checksum=True)
    return path


def refusal(files: list[Path], folder: Path, **contract: Any) -> str:
    """What a log is refused with; nothing of it is laid out."""
    with pytest.raises(LogError) as caught:
        prepare_log(files, folder, LogContract(**contract))
    assert not (folder / "log.parquet").exists() and not (folder / "summary.json").exists()
    return str(caught.value)


# --- damaged files -----------------------------------------------------------------------------


def test_row_14_all_bad_files_are_named_in_one_pass(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    make_folder(logs)
    whole = log_file(logs / "whole.parquet", rows()).read_bytes()
    bad = {
        "cut.parquet": whole[: len(whole) // 2],
        "empty.parquet": b"",
        "headless.parquet": whole[4:],
        "table.parquet": b"user_id,item_id,timestamp,segment\n",
    }
    for name, data in bad.items():
        (logs / name).write_bytes(data)
    settings = small_settings(tmp_path, logs / "*.parquet")
    done = reclora("prepare", write_toml(tmp_path / "run.toml", settings), cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert all(str(logs / name) in done.stderr for name in bad)
    assert "whole.parquet" not in done.stderr and "Traceback" not in done.stderr
    assert not settings.folder.exists()


def test_row_14_every_length_of_a_cut_file_is_refused(tmp_path: Path) -> None:
    whole = log_file(tmp_path / "whole.parquet", rows()).read_bytes()
    cut = tmp_path / "cut.parquet"
    for length in range(0, len(whole), 41):
        cut.write_bytes(whole[:length])
        assert f"{cut}: not a whole Parquet file" in refusal([cut], tmp_path / "log")


def flipped(data: bytes, dice: random.Random, first: int, length: int) -> bytes:
    damaged = bytearray(data)
    damaged[first + dice.randrange(length)] ^= 1 << dice.randrange(8)
    return bytes(damaged)


def pages(path: Path) -> tuple[int, int]:
    """Where a file's pages begin, and how many bytes they have."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    first = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
    return first, sum(c.total_compressed_size for c in columns)


def test_row_15_a_flipped_bit_never_becomes_another_row(tmp_path: Path) -> None:
    path = log_file(tmp_path / "log.parquet", rows())
    whole, folder = path.read_bytes(), tmp_path / "laid out"
    assert prepare_log([path], folder, LogContract()).inputs == {str(path): sha256_of(path)}
    wanted = read_parquet(folder / "log.parquet")
    dice, caught = random.Random(0), 0
    for _ in range(30):
        path.write_bytes(flipped(whole, dice, *pages(path)))
        try:
            prepare_log([path], folder, LogContract())
        except LogError as error:
            assert str(path) in str(error)
            caught += 1
        # A flip in the padding of a page header may change nothing.
        assert read_parquet(folder / "log.parquet").equals(wanted)
        path.write_bytes(whole)
    assert caught >= 20


def test_row_15_what_was_laid_out_is_read_with_verification(tmp_path: Path) -> None:
    path, folder = log_file(tmp_path / "log.parquet", rows()), tmp_path / "laid out"
    prepare_log([path], folder, LogContract())
    wanted, dice = Interactions.read(folder), random.Random(1)
    for name in ("log.parquet", "user_ids.parquet", "item_ids.parquet"):
        whole, caught = (folder / name).read_bytes(), 0
        for _ in range(15):
            (folder / name).write_bytes(flipped(whole, dice, *pages(folder / name)))
            try:
                found = Interactions.read(folder)
            except LogError as error:
                assert f"{folder}: damaged, lay the log out again" in str(error)
                caught += 1
            else:
                assert np.array_equal(found.timestamps, wanted.timestamps)
                assert (found.users, found.items) == (wanted.users, wanted.items)
                assert np.array_equal(found.item_rows, wanted.item_rows)
            (folder / name).write_bytes(whole)
        assert caught >= 10


# --- columns and times ---------------------------------------------------------------------------

NAIVE = pa.array(START + np.arange(40) * 10**9, pa.timestamp("us"))
IN_MS = pa.array(START // 1000 + np.arange(40) * 10**6, pa.timestamp("ms", "UTC"))


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (rows(item_id=None), "column 'item_id': missing; got 'user_id', 'timestamp', 'segment'"),
        (rows().rename_columns(["User_ID", "item_id", "timestamp", "segment"]), "'User_ID'"),
        (rows().append_column("user_id", pa.array(["u"] * 40)), "'user_id': expected once, got 2"),
        (rows(user_id=np.arange(40)), "'user_id': expected string as in"),
        (rows(item_id=np.arange(40.0)), "'item_id': expected a string or an integer, got double"),
        (rows(segment=np.arange(40)), "'segment': expected a string, got int64"),
        (rows(label=np.ones(40)), "'label': expected no such column as in"),
        (rows(timestamp=NAIVE), "with zone as in"),
        (rows(timestamp=IN_MS), "'timestamp': expected timestamp[us] with zone as in"),
        (rows(timestamp=[str(i) for i in range(40)]), "'timestamp': expected a timestamp"),
    ],
)
def test_row_16_columns_that_differ_are_named_with_file_found_and_wanted(
    tmp_path: Path, table: pa.Table, found: str
) -> None:
    first = log_file(tmp_path / "first.parquet", rows())
    other = log_file(tmp_path / "other.parquet", table)
    message = refusal([first, other], tmp_path / "log")
    assert str(other) in message and found in message


def test_row_16_a_column_that_may_be_null_gives_no_null_and_an_extra_one_is_kept_only_by_config(
    tmp_path: Path,
) -> None:
    strict = rows().cast(
        pa.schema([field.with_nullable(False) for field in rows().schema], rows().schema.metadata)
    )
    holed = rows(40, user_id=[None] + [f"v{i}" for i in range(39)], device=["tv"] * 40)
    files = [log_file(tmp_path / "strict.parquet", strict)]
    files.append(log_file(tmp_path / "holed.parquet", holed))
    summary = prepare_log(files, tmp_path / "log", LogContract(max_quarantined=0.05))
    assert summary.quarantined == {"user_id is null": 1}
    laid_out = read_parquet(tmp_path / "log" / "log.parquet")
    assert laid_out["user_id"].null_count == 0 and "device" not in laid_out.column_names
    message = refusal(files, tmp_path / "kept", attributes=("device",))
    assert f"{files[0]}: column 'device', an attribute: expected once, got 0 times" in message


def test_row_17_mixed_units_are_found_out_with_the_one_that_fits(tmp_path: Path) -> None:
    units = {"s": 10**6, "ms": 10**3, "us": 1}
    files = {
        unit: log_file(
            tmp_path / f"{unit}.parquet",
            rows(timestamp=START // divisor + np.arange(40) * (10**9 // divisor)),
        )
        for unit, divisor in units.items()
    }
    for unit, path in files.items():
        undeclared = refusal([path], tmp_path / "log")
        assert "[log.contract] time_unit" in undeclared and f"look like {unit!r}" in undeclared
        others = [files[other] for other in units if other != unit]
        message = refusal([path, *others], tmp_path / "log", time_unit=unit)
        for other in others:
            hint = f"40 of 40 timestamps are out of range in {unit!r}; they look like"
            assert f"{other}: {hint} {other.stem!r}" in message
        assert f"{path}: 40" not in message
        assert prepare_log([path], tmp_path / unit, LogContract(time_unit=unit)).rows_kept == 40


@pytest.mark.parametrize("moment", [datetime(1969, 12, 31, tzinfo=UTC), datetime(9, 1, 1)])
def test_row_17_before_the_epoch_is_no_time_of_a_log(tmp_path: Path, moment: datetime) -> None:
    since = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    micros = since // timedelta(microseconds=1)
    times = pa.array([micros, *range(START, START + 39)], pa.timestamp("us", "UTC"))
    path = log_file(tmp_path / "log.parquet", rows(timestamp=times))
    message = refusal([path], tmp_path / "log")
    assert f"{path}, row 0, column 'timestamp': timestamp is before 1990" in message


def test_row_18_the_future_is_dropped_and_counted_and_refused_above_the_limit(
    tmp_path: Path,
) -> None:
    ahead = int((datetime.now(UTC) + timedelta(days=3)).timestamp() * 1e6)
    times = pa.array([ahead, ahead + 1, *range(START, START + 38)], pa.timestamp("us", "UTC"))
    path = log_file(tmp_path / "log.parquet", rows(timestamp=times))
    reason = "timestamp is more than a day in the future"
    message = refusal([path], tmp_path / "log", max_quarantined=0.04)
    assert "2 of 40 rows break the log's contract; max_quarantined=0.04 allows 1" in message
    assert f"{path}, row 0" in message and f"{reason}: 2" in message
    summary = prepare_log([path], tmp_path / "log", LogContract(max_quarantined=0.05))
    assert summary.quarantined == {reason: 2} and summary.rows_kept == 38
    assert Interactions.read(tmp_path / "log").timestamps.max() < ahead
    listed = read_parquet(tmp_path / "log" / "quarantine.parquet")
    assert listed["row"].to_pylist() == [0, 1]


# --- numbers and identifiers ---------------------------------------------------------------------


def test_row_19_labels_and_weights_that_are_no_numbers_are_listed_and_limited(
    tmp_path: Path,
) -> None:
    labels, weights = np.ones(40), np.ones(40)
    labels[:2], weights[2:5] = (np.nan, np.inf), (np.nan, -np.inf, -1)
    path = log_file(tmp_path / "log.parquet", rows(label=labels, weight=weights))
    message = refusal([path], tmp_path / "log")
    assert f"first: {path}, row 0, column 'label': label is NaN" in message
    summary = prepare_log([path], tmp_path / "log", LogContract(max_quarantined=0.125))
    assert summary.quarantined == {
        "label is NaN": 1,
        "label is infinite": 1,
        "weight is NaN": 1,
        "weight is infinite": 1,
        "weight is negative": 1,
    }
    assert summary.rows_kept == 35
    kept = Interactions.read(tmp_path / "log").weights
    assert kept is not None and np.isfinite(kept).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_row_19_features_that_are_no_numbers_are_refused_with_their_row(
    tmp_path: Path, bad: float
) -> None:
    vectors = [[0.0, 1.0]] * 5
    users, items = tmp_path / "users.parquet", tmp_path / "items.parquet"
    write_parquet(users, pa.table({"user_id": range(5), "vector": vectors}))
    write_parquet(
        items, pa.table({"item_id": range(5), "vector": [*vectors[:3], [0, bad], [0, 0]]})
    )
    with pytest.raises(BaseError, match=r"items\.parquet, column 'vector', row 3: holds NaN"):
        import_base(users, items)


def small_base(num_users: int = 40, num_items: int = 7) -> BaseModel:
    users = IdMap.of(pa.array([f"u{i}" for i in range(num_users)]))
    items = IdMap.of(pa.array([f"i{i}" for i in range(num_items)]))
    return BaseModel.random(users, items, 4, (4,), seed=0)


@pytest.mark.parametrize("row", [-1, 7, 2**40])
def test_row_21_a_row_out_of_range_is_refused_and_never_wrapped(row: int) -> None:
    base = small_base()
    wanted = f"{row} was asked of a table with rows 0 to 6"
    with pytest.raises(IndexError, match=wanted):
        base.item_table.lookup(torch.tensor([0, row]))
    with pytest.raises(IndexError, match=f"item_rows must be in 0..6, got {row} at position 1"):
        Interactions.from_arrays(
            users=base.users,
            items=base.items,
            segment_names=["de"],
            segments=[0, 0],
            user_rows=[0, 1],
            item_rows=[0, row],
            timestamps=[START, START],
        )


def test_row_21_integer_ids_may_be_negative_and_keep_their_own_rows(tmp_path: Path) -> None:
    """An identifier is a name, not a position."""
    path = log_file(
        tmp_path / "log.parquet",
        rows(user_id=pa.array([-1, 0, -(2**63), 2**63 - 1] * 10), item_id=np.arange(40) - 20),
    )
    prepare_log([path], tmp_path / "log", LogContract())
    log = Interactions.read(tmp_path / "log")
    assert log.users.ids.to_pylist() == [-(2**63), -1, 0, 2**63 - 1]
    assert set(log.items.ids_of(log.item_rows).to_pylist()) == set(range(-20, 20))
