"""Tests of reclora.interactions.layout: a log is laid out sorted, whole, always the same."""

import fcntl
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions import IdMap, LogContract, LogError, LogSummary, prepare_log

FILES = [
    "item_ids.parquet",
    "log.parquet",
    "quarantine.parquet",
    "summary.json",
    "user_ids.parquet",
]
START = 1_700_000_000
SECONDS = LogContract(time_unit="s")
Row = tuple[Any, ...]
COLUMNS = ("user_id", "item_id", "timestamp", "segment", "label", "weight")


def write(path: Path, rows: list[Row]) -> Path:
    """Write rows (user, item, second, segment[, label[, weight]]); strings or integers as ids."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[2] = [START + second for second in columns[2]]
    pq.write_table(pa.table(columns, names=COLUMNS[: len(columns)]), path)
    return path


def laid_out(folder: Path, name: str = "log.parquet") -> list[Row]:
    """Return the rows of log.parquet, or of another file like it, as `write` takes them."""
    table = pq.read_table(folder / name)
    seconds = [value // 10**6 - START for value in table["timestamp"].cast(pa.int64()).to_pylist()]
    columns = [table[name].to_pylist() for name in table.column_names]
    columns[2] = seconds
    return list(zip(*columns, strict=True))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_are_sorted_and_the_summary_counts_them(tmp_path: Path) -> None:
    rows = [
        ("u2", 5, 9, "fr", 4.0),
        ("u1", 7, 3, "fr", 4.0),
        ("u2", 7, 3, "fr", 2.0),
        ("u1", 5, 8, "de", 5.0),
        ("u1", 5, 6, "de", 3.0),
        ("", 5, 6, "de", 3.0),
    ]
    path = write(tmp_path / "in.parquet", rows)
    folder = tmp_path / "a" / "log"
    contract = LogContract(time_unit="s", min_label=3.0, max_quarantined=0.2)
    summary = prepare_log([path], folder, contract)
    assert names(folder) == FILES
    assert laid_out(folder) == [
        ("u1", 5, 6, "de", 3.0),
        ("u1", 7, 3, "fr", 4.0),
        ("u2", 5, 9, "fr", 4.0),
    ]
    assert summary == LogSummary(
        contract=contract,
        rows_read=6,
        rows_kept=3,
        quarantined={"user_id is empty": 1},
        duplicates=1,
        below_min_label=1,
        users=2,
        items=2,
        segments={"de": 1, "fr": 2},
        first="2023-11-14T22:13:23+00:00",
        last="2023-11-14T22:13:29+00:00",
        inputs={str(path): digest(path)},
    )
    assert IdMap.read(folder / "user_ids.parquet").ids.to_pylist() == ["u1", "u2"]
    assert IdMap.read(folder / "item_ids.parquet").ids.to_pylist() == [5, 7]
    assert pq.read_table(folder / "quarantine.parquet")["row"].to_pylist() == [5]
    assert LogSummary.read(folder) == summary


def test_the_output_has_one_schema(tmp_path: Path) -> None:
    prepare_log([write(tmp_path / "in", [(1, "i", 0, "s", 1, 2)])], tmp_path / "log", SECONDS)
    assert pq.read_schema(tmp_path / "log" / "log.parquet").remove_metadata() == pa.schema(
        [
            ("user_id", pa.int64()),
            ("item_id", pa.large_string()),
            ("timestamp", pa.timestamp("us", "UTC")),
            ("segment", pa.large_string()),
            ("label", pa.float64()),
            ("weight", pa.float64()),
        ]
    )


SMALL = st.integers(0, 3)
LABEL = st.sampled_from([-0.0, 0.0, 1.0])
LOG_ROWS = st.lists(
    st.tuples(SMALL, SMALL, SMALL, st.sampled_from("xyz"), LABEL, LABEL), min_size=1
)


@settings(max_examples=25, deadline=None)
@given(LOG_ROWS, st.sampled_from(["first", "exact"]))
def test_duplicates_merge_as_a_plain_loop_does(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], rule: Any
) -> None:
    folder = tmp_path_factory.mktemp("l")
    contract = LogContract(time_unit="s", duplicates=rule)
    summary = prepare_log([write(folder / "in", rows)], folder / "log", contract)
    kept: dict[Row, Row] = {}
    for row in sorted(rows, key=lambda row: (row[2], row[4], row[5])):
        user, item, second, segment, *_ = row
        kept.setdefault((segment, user, item) + ((second,) if rule == "exact" else ()), row)
    expected = sorted(kept.values(), key=lambda row: (row[3], row[2], row[0], row[1]))
    assert laid_out(folder / "log") == expected
    assert summary.duplicates == len(rows) - len(expected)


@settings(max_examples=25, deadline=None)
@given(LOG_ROWS, st.sampled_from(["first", "exact"]))
def test_declined_rows_are_laid_out_beside_the_log_as_a_plain_loop_does(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], rule: Any
) -> None:
    """The log and the id maps are those of a contract that drops them, to the byte."""
    folder = tmp_path_factory.mktemp("l")
    keep = LogContract(time_unit="s", duplicates=rule, min_label=0.5, declined="keep")
    path = write(folder / "in", rows)
    kept = prepare_log([path], folder / "kept", keep)
    dropped = prepare_log([path], folder / "dropped", replace(keep, declined="drop"))
    assert names(folder / "kept") == sorted([*FILES, "declined.parquet"])
    for name in FILES:
        if name != "summary.json":
            assert digest(folder / "kept" / name) == digest(folder / "dropped" / name)
    taken = [row for row in rows if row[4] >= 0.5]
    users, items = {row[0] for row in taken}, {row[1] for row in taken}
    no: dict[Row, Row] = {}
    for row in sorted(rows, key=lambda row: (row[2], row[4], row[5])):
        user, item, second, segment, label, _ = row
        if label < 0.5 and user in users and item in items:
            no.setdefault((segment, user, item) + ((second,) if rule == "exact" else ()), row)
    expected = sorted(no.values(), key=lambda row: (row[3], row[2], row[0], row[1]))
    assert laid_out(folder / "kept", "declined.parquet") == expected
    assert kept == replace(dropped, contract=keep, declined=len(expected))
    assert dropped.declined == 0 and dropped.below_min_label == len(rows) - len(taken)
    assert LogSummary.read(folder / "kept") == kept


def test_a_summary_that_drops_says_what_it_always_said(tmp_path: Path) -> None:
    """So a folder goes on to be read by versions that know nothing of declined rows."""
    path = write(tmp_path / "in", [("u", 1, 0, "s", 1.0)])
    contract = LogContract(time_unit="s", min_label=1.0)
    for kept in (contract, replace(contract, declined="keep")):
        prepare_log([path], tmp_path / "log", kept)
        said = json.loads((tmp_path / "log" / "summary.json").read_text())
        is_new = kept.declined == "keep"
        assert ("declined" in said) == ("declined" in said["contract"]) == is_new


def test_what_is_declined_is_decided_to_the_last_bit(tmp_path: Path) -> None:
    label = 0.1 + 0.2
    rows = [("u", 1, 0, "s", label), ("u", 1, 1, "t", math.nextafter(label, 0))]
    for least in (label, 1e-300, -1e300):
        contract = LogContract(time_unit="s", min_label=least, declined="keep")
        prepare_log([write(tmp_path / "in", rows)], tmp_path / "log", contract)
        assert laid_out(tmp_path / "log") == [row for row in rows if row[4] >= least]
        declined = [row for row in rows if row[4] < least]
        assert laid_out(tmp_path / "log", "declined.parquet") == declined


def test_declined_rows_come_and_go_with_the_contract(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [("u", 1, 0, "s", 1.0), ("u", 1, 2, "t", 0.0)])
    folder = tmp_path / "log"
    drop = LogContract(time_unit="s", min_label=1.0)
    keep = replace(drop, declined="keep")
    for contract, found in ((drop, 0), (keep, 1), (drop, 0), (keep, 1)):
        summary = prepare_log([path], folder, contract)
        assert summary.declined == found and summary.segments == {"s": 1, "t": 0}
        assert ("declined.parquet" in names(folder)) == bool(found)
    stamp = (folder / "log.parquet").stat().st_mtime_ns
    assert prepare_log([path], folder, keep) == summary
    assert (folder / "log.parquet").stat().st_mtime_ns == stamp
    (folder / "declined.parquet").unlink()
    assert prepare_log([path], folder, keep) == summary
    assert laid_out(folder, "declined.parquet") == [("u", 1, 2, "t", 0.0)]


def test_exact_duplicates_without_label_or_weight(tmp_path: Path) -> None:
    rows = [("u", 1, 0, "s"), ("u", 1, 0, "s"), ("u", 1, 1, "s")]
    contract = LogContract(time_unit="s", duplicates="exact")
    prepare_log([write(tmp_path / "in", rows)], tmp_path / "log", contract)
    assert laid_out(tmp_path / "log") == rows[1:]


def test_order_of_rows_and_files_changes_no_byte(tmp_path: Path) -> None:
    dice = random.Random(0)
    rows = [
        (
            f"u{dice.randrange(50)}",
            dice.randrange(40),
            dice.randrange(99),
            dice.choice("xyz"),
            label,
        )
        for label in (0.0, -0.0, 1.0) * 700
    ]
    seen = set()
    for turn in range(3):
        dice.shuffle(rows)
        files = [
            write(tmp_path / f"{turn}{part}", rows[part::4]) for part in dice.sample(range(4), 4)
        ]
        folder = tmp_path / f"log{turn}"
        prepare_log(files, folder, SECONDS)
        seen.add(tuple(digest(folder / name) for name in FILES if name != "summary.json"))
    assert len(seen) == 1


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXT, st.integers(-(2**63), 2**63 - 1), SMALL, TEXT), min_size=1))
def test_any_string_is_an_id_and_a_segment(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("l")
    contract = LogContract(time_unit="s", duplicates="exact")
    summary = prepare_log([write(folder / "in", rows)], folder / "log", contract)
    expected = sorted(set(rows), key=lambda row: (row[3].encode(), row[2], row[0].encode(), row[1]))
    assert laid_out(folder / "log") == expected
    users = IdMap.read(folder / "log" / "user_ids.parquet").ids.to_pylist()
    assert users == sorted({row[0] for row in rows}, key=str.encode)
    assert list(summary.segments) == sorted({row[3] for row in rows}, key=str.encode)


@pytest.mark.parametrize("name", ["it's [1] * ?", "日本", "a{b,c}", "x\\y", "${HOME} %s"])
def test_any_folder_name_serves(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / f"in {name}.parquet", [("u", 1, 0, "s")])
    assert prepare_log([path], tmp_path / name, SECONDS).rows_kept == 1


def test_paths_may_be_strings_and_one_file_may_stand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [("u", i, i, "de") for i in range(5)]
    path = write(tmp_path / "in.parquet", rows)
    for n, files in enumerate(["in.parquet", ["in.parquet"], Path("in.parquet"), (path,)]):
        assert prepare_log(files, f"log{n}", SECONDS).rows_kept == 5
        assert laid_out(tmp_path / f"log{n}") == rows
    with pytest.raises(
        LogError, match=r"^the log breaks its contract:\nno\.parquet: expected a Par"
    ):
        prepare_log("no.parquet", "log", SECONDS)


def test_the_same_input_and_contract_is_reused_and_another_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [("u", 1, 0, "s"), ("u", 1, 5, "s")])
    folder = tmp_path / "log"
    first = prepare_log([path], folder, SECONDS)
    stamp = (folder / "log.parquet").stat().st_mtime_ns
    assert prepare_log([path], folder, SECONDS) == first
    copied = shutil.copy(path, tmp_path / "copy")
    assert prepare_log([Path(copied)], folder, SECONDS) == first
    assert (folder / "log.parquet").stat().st_mtime_ns == stamp

    exact = LogContract(time_unit="s", duplicates="exact")
    assert prepare_log([path], folder, exact).rows_kept == 2
    write(path, [("u", 1, 0, "s")])
    assert prepare_log([path], folder, exact).rows_kept == 1
    (folder / "user_ids.parquet").unlink()
    prepare_log([path], folder, exact)
    assert names(folder) == FILES


def test_a_refused_log_leaves_the_old_result_and_lists_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    prepare_log([write(tmp_path / "in", [("u", 1, 0, "s")])], folder, SECONDS)
    before = {name: digest(folder / name) for name in FILES}
    bad = write(tmp_path / "bad", [("", 1, 0, "s"), ("u", 1, 1, "s")])
    with pytest.raises(
        LogError, match=re.escape(f"all are listed in {folder / 'refused.parquet'}")
    ):
        prepare_log([bad], folder, SECONDS)
    assert names(folder) == sorted([*FILES, "refused.parquet"])
    assert {name: digest(folder / name) for name in FILES} == before
    assert pq.read_table(folder / "refused.parquet")["file"].to_pylist() == [str(bad)]

    tolerant = LogContract(time_unit="s", max_quarantined=0.5)
    assert prepare_log([bad], folder, tolerant).rows_kept == 1
    assert names(folder) == FILES


def test_nothing_is_made_where_a_file_breaks_the_contract(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "in")
    with pytest.raises(LogError, match="item_id"):
        prepare_log([tmp_path / "in"], tmp_path / "log", SECONDS)
    assert not (tmp_path / "log").exists()


def test_a_damaged_page_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "in"
    table = pq.read_table(write(path, [(f"u{i}", i, i, "s") for i in range(2000)]))
    pq.write_table(table, path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogError, match="damaged"):
        prepare_log([path], tmp_path / "log", SECONDS)
    assert names(tmp_path / "log") == []


def test_a_log_without_rows_is_laid_out_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [("u", 1, 0, "s", 1.0)])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    summary = prepare_log([path], tmp_path / "log", SECONDS)
    assert (summary.rows_kept, summary.first, summary.segments) == (0, "", {})
    assert laid_out(tmp_path / "log") == []


def test_progress_ascends_to_its_total(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [("", 1, 0, "s"), *(("u", 1, i % 3, "s") for i in range(9))])
    calls: list[tuple[int, int]] = []
    contract = LogContract(time_unit="s", max_quarantined=0.5)
    prepare_log([path], tmp_path / "log", contract, progress=lambda *call: calls.append(call))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {total for _, total in calls} == {20}
    assert calls[-1] == (20, 20)


def test_two_runs_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [("u", 1, 0, "s")])
    folder = tmp_path / "log"
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(LogError, match="another run"):
        prepare_log([path], folder, SECONDS)
    os.close(held)
    assert prepare_log([path], folder, SECONDS).rows_kept == 1


def test_a_wrong_memory_limit_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [("u", 1, 0, "s")])
    with pytest.raises(LogError, match="memory_limit='lots'"):
        prepare_log([path], tmp_path / "log", SECONDS, memory_limit="lots")
    assert names(tmp_path / "log") == []


PREPARE = """
import sys
from pathlib import Path
from reclora.interactions import LogContract, prepare_log
prepare_log([Path(sys.argv[1])], Path(sys.argv[2]), LogContract(time_unit="s"))
"""


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a call, is missing"
)
@pytest.mark.slow
@pytest.mark.parametrize("call", ["rename", "fsync", "unlink"])
def test_a_killed_run_is_incomplete_or_complete_and_the_next_one_cleans_up(
    tmp_path: Path, call: str
) -> None:
    path = write(tmp_path / "in", [("u", 1, 0, "s")])
    folder = tmp_path / "log"
    expected = prepare_log([path], tmp_path / "other", SECONDS)
    for nth in range(1, 40):
        shutil.rmtree(folder, ignore_errors=True)
        inject = f"inject={call}:signal=SIGKILL:when={nth}"
        command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject]
        command += [sys.executable, "-c", PREPARE, str(path), str(folder)]
        code = subprocess.run(command, capture_output=True, check=False).returncode
        if (folder / "summary.json").exists():
            assert LogSummary.read(folder) == expected
            assert laid_out(folder) == [("u", 1, 0, "s")]
        assert prepare_log([path], folder, SECONDS) == expected
        assert names(folder) == FILES
        if code == 0:
            assert nth > 1 or call == "unlink"
            return
    pytest.fail(f"{call} was hit forty times in one run")


def planted(path: Path, rows: int) -> Path:
    """Write a log of `rows` rows, all different, in many row groups."""
    numbers = np.random.default_rng(0)
    users = pa.array([f"user-{i:06d}" for i in range(100_000)])
    with pq.ParquetWriter(
        path,
        pa.schema(
            [
                ("user_id", pa.string()),
                ("item_id", pa.int64()),
                ("timestamp", pa.int64()),
                ("segment", pa.string()),
                ("weight", pa.float64()),
            ]
        ),
    ) as writer:
        for _ in range(rows // 100_000):
            segments = pa.array([f"segment {i}" for i in range(20)])
            columns = [
                users.take(pa.array(numbers.integers(0, len(users), 100_000))),
                pa.array(numbers.integers(0, 2**60, 100_000)),
                pa.array(numbers.integers(START, START + 10**7, 100_000)),
                segments.take(pa.array(numbers.integers(0, 20, 100_000))),
                pa.array(numbers.random(100_000)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=writer.schema))
    return path


@pytest.mark.slow
def test_a_log_larger_than_the_memory_limit_is_laid_out(tmp_path: Path) -> None:
    rows = 2_000_000
    path = planted(tmp_path / "in", rows)
    began = time.process_time()
    summary = prepare_log([path], tmp_path / "log", SECONDS, memory_limit="100MB")
    print(f"{rows / (time.process_time() - began):,.0f} rows a CPU second")
    assert summary.rows_kept == rows
    table = pq.read_table(tmp_path / "log" / "log.parquet", columns=["segment", "timestamp"])
    assert table.num_rows == rows
    segments = table["segment"].combine_chunks().dictionary_encode()
    assert segments.dictionary.to_pylist() == list(summary.segments)
    steps = np.diff(np.asarray(segments.indices).astype(np.int64))
    times = np.diff(np.asarray(table["timestamp"].cast(pa.int64())))
    assert (steps >= 0).all() and (times[steps == 0] >= 0).all()
    with pq.ParquetFile(tmp_path / "log" / "log.parquet") as file:
        assert file.metadata.row_group(0).num_rows == 1 << 20
    assert names(tmp_path / "log") == FILES


def test_a_summary_survives_json_and_refuses_what_is_none(tmp_path: Path) -> None:
    summary = prepare_log(
        [write(tmp_path / "in", [("u", 1, 0, "日本")])], tmp_path / "log", SECONDS
    )
    assert LogSummary.from_json(summary.to_json()) == summary
    newer = json.dumps({**json.loads(summary.to_json()), "format": 2})
    for text in ("", "[]", "{}", '{"format": 1}', "null", newer):
        with pytest.raises(LogError):
            LogSummary.from_json(text)
    with pytest.raises(LogError, match="prepare_log makes one"):
        LogSummary.read(tmp_path)
    # A summary that cannot be read is no result: it is made anew.
    (tmp_path / "log" / "summary.json").write_text("{")
    assert prepare_log([tmp_path / "in"], tmp_path / "log", SECONDS) == summary


def test_the_log_is_read_without_torch() -> None:
    code = "import sys, reclora.interactions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
