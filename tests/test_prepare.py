"""The door of every run: a log is laid out once, and a bad one is named."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reclora.interactions import Interactions, LogError
from reclora.pipelines.prepare import prepare
from tests.small_runs import files_below, planted_log, random_log, small_settings


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
