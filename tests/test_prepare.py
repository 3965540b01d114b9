"""The door of every run: a log is laid out once, and a bad one is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclora.files import write_parquet
from reclora.interactions import Interactions, LogContract, LogError
from reclora.pipelines.prepare import prepare
from reclora.pipelines.run import RunSettings
from tests.small_runs import START, files_below, planted_log, random_log, small_settings


def test_the_log_is_laid_out_once(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, planted_log(tmp_path / "log.parquet"))
    summary = prepare(settings)
    assert summary.rows_read == 10_000
    assert summary.rows_kept == summary.rows_read - summary.duplicates
    assert len(Interactions.read(settings.log_folder)) == summary.rows_kept
    files = files_below(settings.log_folder)
    assert prepare(settings) == summary
    assert files_below(settings.log_folder) == files


def test_files_of_a_pattern_are_one_log(tmp_path: Path) -> None:
    for day in ("monday", "sunday"):
        random_log(tmp_path / "logs" / f"{day}.parquet", {day: (0, 1)})
    settings = small_settings(tmp_path, tmp_path / "logs" / "*.parquet")
    assert set(prepare(settings).segments) == {"monday", "sunday"}


def test_a_bad_log_is_named(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, tmp_path / "log.parquet")
    with pytest.raises(FileNotFoundError, match=r"no log file matches .*log\.parquet"):
        prepare(settings)
    table = pq.read_table(random_log(tmp_path / "log.parquet", {"a": (0, 1)}))
    pq.write_table(table.drop_columns("item_id"), tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"log\.parquet.*item_id"):
        prepare(settings)
    (tmp_path / "text.parquet").write_text("user_id,item_id\n")
    several = replace(settings.log, files=(*settings.log.files, tmp_path / "text.parquet"))
    with pytest.raises(LogError, match=r"text\.parquet"):
        prepare(replace(settings, log=several))
    assert not (settings.log_folder / "log.parquet").exists()


def labelled(folder: Path, labels: list[float], **contract: Any) -> RunSettings:
    table = pa.table(
        {
            "user_id": [f"u{i}" for i in range(len(labels))],
            "item_id": ["x"] * len(labels),
            "timestamp": pa.array([START] * len(labels), pa.timestamp("us", "UTC")),
            "segment": ["a"] * len(labels),
            "label": labels,
        }
    )
    write_parquet(folder / "log.parquet", table)
    settings = small_settings(folder, folder / "log.parquet")
    return replace(settings, log=replace(settings.log, contract=LogContract(**contract)))


def test_labels_that_look_negative_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(labelled(tmp_path, [1.0, 0.0]))
    assert "set log.contract.min_label to keep" in capsys.readouterr().err
    prepare(labelled(tmp_path, [1.0, 0.0], min_label=0.5))
    said = capsys.readouterr().err
    assert "the log: 1 of 2 rows kept; 1 below min_label" in said and "set log" not in said
    prepare(labelled(tmp_path, [1.0, 5.0]))
    assert "set log.contract.min_label" not in capsys.readouterr().err


def test_a_log_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no row of the log is left: 0 of 2 rows kept; 2 below min"):
        prepare(labelled(tmp_path, [1.0, 0.0], min_label=2.0))
