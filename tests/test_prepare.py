"""The door of every run: a log is laid out once, and a bad one is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from reclora.files import write_parquet
from reclora.interactions import IdMap, Interactions, LogContract, LogError
from reclora.pipelines.prepare import declined_of, prepare, windows_of
from reclora.pipelines.run import LogSettings, RunFolder, RunSettings, WindowFiles
from reclora.splits import WINDOWS, LeakageError, SplitConfig
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


def cut_log(folder: Path) -> WindowFiles:
    """A log of two segments whose four windows are files of their own."""
    table = pq.read_table(random_log(folder / "whole.parquet", {"a": (0, 1), "b": (0, 1)}))
    paths = []
    for name, start, stop in (
        ("pretrain", 0, 0.6),
        ("train", 0.6, 0.8),
        ("validation", 0.8, 0.9),
        ("test", 0.9, 1),
    ):
        rows = range(int(start * len(table)), int(stop * len(table)))
        write_parquet(folder / f"{name}.parquet", table.take(list(rows)))
        paths.append((folder / f"{name}.parquet",))
    return WindowFiles(*paths)


def test_windows_may_be_given_as_files(tmp_path: Path) -> None:
    files = cut_log(tmp_path)
    settings = replace(small_settings(tmp_path, tmp_path), log=LogSettings(windows=files))
    summary = prepare(settings)
    whole = pq.read_table(tmp_path / "whole.parquet")
    assert summary.rows_kept == len(whole) == sum(summary.segments.values())
    assert (summary.users, summary.items) == (
        len(set(whole["user_id"].to_pylist())),
        len(set(whole["item_id"].to_pylist())),
    )
    assert len(summary.inputs) == 4
    windows = windows_of(settings)
    shares = [len(getattr(windows, name)) / len(whole) for name in WINDOWS]
    assert shares == pytest.approx([0.6, 0.2, 0.1, 0.1], abs=0.01)
    cut = replace(settings, log=LogSettings((tmp_path / "whole.parquet",)), folder=tmp_path / "w2")
    prepare(cut)
    same = windows_of(replace(cut, split=SplitConfig("global_time", 0.6, 0.2, 0.1, 0.1)))
    for name in WINDOWS:
        one, other = getattr(windows, name), getattr(same, name)
        assert one.users.ids_of(one.user_rows).equals(other.users.ids_of(other.user_rows))
    # A row of the past in a later window is refused, and named.
    early = pa.concat_tables([pq.read_table(files.test[0]), whole.slice(3, 1)])
    write_parquet(files.test[0], early)
    prepare(settings)
    user, item = (whole[name][3].as_py() for name in ("user_id", "item_id"))
    with pytest.raises(LeakageError, match=f"user_id '{user}', item_id '{item}'"):
        windows_of(settings)


def test_given_windows_are_one_log(tmp_path: Path) -> None:
    """What would go wrong where the windows meet is refused at the door, with the file."""
    files = cut_log(tmp_path)
    settings = replace(small_settings(tmp_path, tmp_path), log=LogSettings(windows=files))
    table = pq.read_table(files.test[0])
    integers = table.set_column(0, "user_id", pa.array(range(len(table))))
    weighted = table.append_column("weight", pa.array([1.0] * len(table)))
    for other, message in (
        (integers, r"odd\.parquet: column 'user_id': expected string as in .*got integer"),
        (weighted, r"odd\.parquet: column 'weight': expected no such column"),
    ):
        pq.write_table(other, tmp_path / "odd.parquet")
        odd = replace(files, test=(tmp_path / "odd.parquet",))
        with pytest.raises(LogError, match=message):
            prepare(replace(settings, log=LogSettings(windows=odd)))
    twice = LogSettings(windows=replace(files, test=files.train))
    with pytest.raises(LogError, match=r"train\.parquet: given twice"):
        prepare(replace(settings, log=twice))
    assert not settings.log_folder.exists()


def declining(settings: RunSettings, path: Path) -> RunSettings:
    """The settings for a log that `random_log` wrote, of whose rows every third is declined."""
    table = pq.read_table(path)
    label = pa.array([float(row % 3 > 0) for row in range(len(table))])
    write_parquet(path, table.append_column("label", label))
    contract = LogContract(min_label=1.0, declined="keep")
    bce = replace(settings.base.factorisation, loss="bce")
    base = replace(settings.base, factorisation=bce)
    return replace(settings, log=replace(settings.log, contract=contract), base=base)


def said_no(log: Interactions) -> list[tuple[str, str, int]]:
    users, items = (
        ids.ids_of(rows).to_pylist()
        for ids, rows in ((log.users, log.user_rows), (log.items, log.item_rows))
    )
    return sorted(zip(users, items, log.timestamps.tolist(), strict=True))


def test_declined_rows_are_on_the_ids_of_a_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = random_log(tmp_path / "log.parquet", {"a": (0, 1), "b": (0, 1)})
    plain = small_settings(tmp_path, path)
    settings = declining(plain, path)
    summary = prepare(settings)
    assert (
        f"600 of 900 rows kept, beside them {summary.declined} declined; 300 below min_label"
        in capsys.readouterr().err
    )
    window = windows_of(settings).pretrain
    declined = declined_of(settings, window.users, window.items, ())
    assert declined is not None and len(declined) == summary.declined
    assert (declined.users, declined.items) == (window.users, window.items)
    table = pq.read_table(path)
    known = set(window.items.ids.to_pylist())
    rows = table.filter(pc.equal(table["label"], 0.0)).to_pylist()
    assert said_no(declined) == sorted(
        (row["user_id"], row["item_id"], int(row["timestamp"].timestamp() * 10**6))
        for row in rows
        if row["item_id"] in known
    )
    few = IdMap(["u1", "u3"])
    some = declined_of(settings, few, window.items, ())
    assert some is not None and len(some)
    assert said_no(some) == [row for row in said_no(declined) if row[0] in ("u1", "u3")]
    prepare(plain)
    assert declined_of(plain, window.users, window.items, ()) is None


@pytest.mark.parametrize("number", [1, 2, 4])
def test_declined_rows_of_given_windows_are_those_of_the_ones_named(
    tmp_path: Path, number: int
) -> None:
    files = cut_log(tmp_path)
    settings = replace(small_settings(tmp_path, tmp_path), log=LogSettings(windows=files))
    for name in WINDOWS:
        settings = declining(settings, getattr(files, name)[0])
    summary = prepare(settings)
    window = windows_of(settings).pretrain
    declined = declined_of(settings, window.users, window.items, WINDOWS[:number])
    assert declined is not None
    assert (declined.users, declined.items) == (window.users, window.items)
    assert (len(declined) == summary.declined) == (number == 4)
    expected = []
    for name in WINDOWS[:number]:
        rows = pq.read_table(getattr(files, name)[0]).to_pylist()
        taken = [row for row in rows if row["label"] == 1]
        known = [{row[column] for row in taken} for column in ("user_id", "item_id")]
        expected += [
            (row["user_id"], row["item_id"], int(row["timestamp"].timestamp() * 10**6))
            for row in rows
            if row["label"] == 0 and row["user_id"] in known[0] and row["item_id"] in known[1]
        ]
    assert said_no(declined) == sorted(expected)


def test_the_same_files_in_other_windows_are_another_run(tmp_path: Path) -> None:
    files = cut_log(tmp_path)
    settings = replace(small_settings(tmp_path, tmp_path), log=LogSettings(windows=files))
    inputs = prepare(settings).inputs
    moved = replace(files, validation=files.test, test=files.validation)
    other = replace(settings, log=LogSettings(windows=moved))
    theirs = prepare(other).inputs
    assert sorted(inputs.values()) == sorted(theirs.values())
    assert RunFolder(settings, "base", inputs).id != RunFolder(other, "base", theirs).id
    # Wherever the files lie.
    (tmp_path / "x").mkdir()
    for name in WINDOWS:
        (tmp_path / f"{name}.parquet").rename(tmp_path / "x" / f"{name}.parquet")
    lie = WindowFiles(*[(tmp_path / "x" / f"{name}.parquet",) for name in WINDOWS])
    same = replace(settings, log=LogSettings(windows=lie), folder=tmp_path / "fresh")
    assert (
        RunFolder(settings, "base", inputs).id == RunFolder(same, "base", prepare(same).inputs).id
    )


def test_a_log_is_given_in_one_way(tmp_path: Path) -> None:
    files = WindowFiles(*[(tmp_path / "x.parquet",)] * 4)
    for given in ({}, {"files": (tmp_path,), "windows": files}):
        with pytest.raises(ValueError, match="give exactly one of them"):
            LogSettings(**given)
    with pytest.raises(ValueError, match="k_core is taken of one log before it is cut"):
        RunSettings(LogSettings(windows=files), split=SplitConfig(k_core=5))
    with pytest.raises(ValueError, match="needs a file at least, got none for train, test"):
        replace(files, train=(), test=())
