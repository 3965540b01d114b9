"""What a verb prints: true numbers, inert names, files that are there, and what to do next."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from reclora.files import make_folder, read_parquet, write_parquet
from reclora.pipelines.prepare import prepare
from reclora.pipelines.run import RunFolder
from reclora.pipelines.summary import SEGMENTS_SHOWN, VERDICTS, print_log, print_outcome
from tests.small_runs import finished, small_settings


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_an_outcome_names_its_numbers_and_files(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    _, outcome = finished(tmp_path_factory)
    print_outcome(outcome, "reclora do that")
    printed = capsys.readouterr().out
    lifts = read_parquet(outcome.folder.comparison).to_pandas()
    headline = lifts[(lifts["metric"] == "ndcg") & (lifts["k"] == 10)]
    overall = headline[(headline["scope"] == "all") & (headline["baseline"] == "frozen base")]
    assert f"ndcg@10 on test, {overall['users'].iloc[0]} users" in printed
    for _, row in overall.iterrows():
        (line,) = [
            line for line in printed.splitlines() if line.strip().startswith(f"{row['model']} ")
        ]
        numbers = [f"{row['model_mean']:.4f}"]
        numbers += [f"{row[name]:+.4f}" for name in ("difference", "low", "high")]
        assert all(number.replace("0.", ".") in line for number in numbers)
        assert row["verdict"] in line
    over = headline[(headline["scope"] == "all") & (headline["model"] == "per-segment adapters")]
    for _, row in over.iterrows():
        (line,) = [
            s
            for s in printed.splitlines()
            if s.startswith("per-segment adapters: ") and row["baseline"] in s
        ]
        assert line.split(": ")[1].startswith(VERDICTS[row["verdict"]])
    lines = printed.splitlines()
    for word in ("report", "results", "settings"):
        (line,) = [line for line in lines if line.startswith(f"{word} ")]
        assert Path(line.split()[1]).is_file()
    assert f"release   1 in {outcome.store}" in lines and lines[-1] == "next      reclora do that"
    assert "reused" not in printed
    print_outcome(replace(outcome, was_there=True, release=None), None)
    printed = capsys.readouterr().out
    assert "was complete already" in printed and ("release   none: what was live stays" in printed)
    assert "next" not in printed


def test_names_of_segments_are_inert_and_many_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, outcome = finished(tmp_path_factory)
    lifts = read_parquet(outcome.folder.comparison).to_pandas()
    names = ["[red]\x1b[31mx\n", *(f"market {n}" for n in range(SEGMENTS_SHOWN + 4))]
    template = lifts[lifts["scope"] == "segment"].drop_duplicates(
        ["model", "baseline", "metric", "k"]
    )
    parts = [template.assign(segment=name, low=float("nan")) for name in names]
    # The last one by name has the most users.
    parts[-1] = parts[-1].assign(users=10**6)
    folder = RunFolder(small_settings(tmp_path, Path("log")), "base", {})
    make_folder(folder.path)
    whole = pd.concat([lifts[lifts["scope"] == "all"], *parts])
    write_parquet(folder.comparison, pa.Table.from_pandas(whole, preserve_index=False))
    print_outcome(replace(outcome, folder=folder), None)
    printed = capsys.readouterr().out
    assert "[red]\\x1b[31mx\\n" in printed and "\x1b" not in printed
    assert "5 more in the report, of fewer users" in printed
    shown = [names[-1], *names[1 : SEGMENTS_SHOWN - 1]]
    assert [n for n in names[1:] if f" {n} " in printed] == sorted(shown, key=names.index)
    assert "none" in printed


def test_every_row_of_a_log_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table(
        {
            "user_id": ["a", "a", "b", "c"] * 300,
            "item_id": ["x", "x", "y", "z"] * 300,
            "timestamp": pa.array(
                [1_700_000_000_000_000 + n for n in range(1199)] + [None],
                pa.timestamp("us", "UTC"),
            ),
            "segment": ["[s]"] * 1200,
            "label": [5.0, 5.0, 1.0, 4.0] * 300,
        }
    )
    write_parquet(tmp_path / "log.parquet", table)
    settings = small_settings(tmp_path, tmp_path / "log.parquet")
    contract = replace(settings.log.contract, min_label=3.0)
    settings = replace(settings, log=replace(settings.log, contract=contract))
    print_log(prepare(settings), settings.log_folder, "reclora pretrain run.toml")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 of 1,200 rows kept; ")
    dropped = [int(part.split()[0]) for part in lines[0].split(";")[1].split(",")]
    assert sum(dropped) == 1198 and sorted(dropped) == [1, 300, 897]
    assert "300 below min_label" in lines[0] and "897 duplicates (first)" in lines[0]
    assert "; 2 users, 2 items, 1 segments, 2023-11-14" in lines[0]
    assert lines[-2:] == [str(settings.log_folder), "next: reclora pretrain run.toml"]
