"""Segments and users that are unknown, empty or tiny, and rows that come twice: rows 22 to 27.

Each test is named after its row of the list of faults that a run survives.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reclora.base import BaseModel
from reclora.evaluation import LabelledRows, measure_labels
from reclora.files import read_parquet, write_parquet
from reclora.interactions import Interactions, LogContract, prepare_log
from reclora.pipelines.assessment import write_table
from reclora.pipelines.prepare import prepare, windows_of
from reclora.pipelines.recommend import recommend
from reclora.pipelines.retrain import Outcome, retrain
from reclora.pipelines.run import LogSettings, WindowFiles
from reclora.pipelines.settings import SettingsError
from reclora.ranking.parts import MANIFEST
from reclora.splits import LeakageError, SplitConfig, split
from reclora.store import AdapterStore, UnknownSegment
from tests.small_runs import START, finished, random_log, reclora, small_settings, write_toml
from tests.test_faults_input import log_file, rows


def of_segment(
    segment: str, user: str, moments: Sequence[float], label: float = 1.0
) -> dict[str, list[Any]]:
    """Rows of one user with items of his own; moments are shares of the log's time."""
    return {
        "user_id": [user] * len(moments),
        "item_id": [f"i{20 + i}" for i in range(len(moments))],
        "timestamp": [START + int(2500 * moment) * 10**9 for moment in moments],
        "segment": [segment] * len(moments),
        "label": [label] * len(moments),
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run with segments that are new, tiny, ended or all negative."""
    folder = tmp_path_factory.mktemp("odd")
    log = folder / "log.parquet"
    table = read_parquet(random_log(log, {"old": (0, 1), "new": (0.6, 1)}, users=40, rows=2500))
    table = table.append_column("label", pa.array([1.0] * len(table)))
    throughout = (0.1, 0.65, 0.7, 0.85, 0.97)
    parts = [
        of_segment("one row", "u0", [0.7]),
        of_segment("one user", "u2", throughout),
        of_segment("all negative", "u4", throughout, label=0.0),
        of_segment("ended", "u6", (0.1, 0.2)),
    ]
    more = [pa.table(part).cast(table.schema) for part in parts]
    write_parquet(log, pa.concat_tables([table, *more]))
    settings = small_settings(
        folder,
        log,
        compared=(),
        # Without a parent nothing else can serve a segment without data.
        parent="none",
        split=SplitConfig(pretrain=0.6, train=0.2, validation=0.1, test=0.1),
    )
    positive = LogContract(min_label=1.0)
    return retrain(replace(settings, log=replace(settings.log, contract=positive)))


def test_row_22_rows_of_unknown_users_are_dropped_counted_and_reported(odd: Outcome) -> None:
    quality = odd.folder.summary()["data_quality"]
    page = odd.folder.report.read_text()
    for window in ("train", "validation", "test"):
        lost = quality[f"unknown to the base, {window} window"]
        assert lost > 50 and lost < quality["rows kept"]
        assert f"<dt>unknown to the base, {window} window</dt><dd>{lost}</dd>" in page
    results = read_parquet(odd.folder.results)
    log = read_parquet(odd.store.parent / "log" / "log.parquet").to_pandas()
    base = BaseModel.load(odd.store.parent / "base").users.ids.to_pylist()
    strangers = set(log["user_id"]) - set(base)
    assert strangers and not strangers & set(results["user_id"].to_pylist())


def test_row_23_an_unknown_segment_is_refused_with_near_names_or_counted(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    store = AdapterStore(settings.store_folder)
    base = BaseModel.load(settings.base_folder)
    release = store.current()
    assert release is not None
    name = max(release.segments)
    near = f"near names: .*'{re.escape(name)}'"
    with pytest.raises(UnknownSegment, match=near):
        store.load(name + "?", base_fingerprint=base.fingerprint)
    with pytest.raises(SettingsError, match=near):
        retrain(settings, only=[name + "?"])
    users, into = tmp_path / "users.parquet", tmp_path / "lists"
    asked = {"user_id": base.users.ids[:2], "segment": [name, name + "?"]}
    write_parquet(users, pa.table(asked))
    with pytest.raises(ValueError, match=f"column segment: 1 of 2 rows are unknown.*{near}"):
        recommend(settings, users=users, k=3, into=into)
    assert recommend(settings, users=users, k=3, into=into, unknown="drop").lists == 1
    manifest = json.loads((into / MANIFEST).read_text())
    assert manifest["dropped"]["unknown segments"] == 1


@pytest.mark.parametrize("segment", ["one row", "ended"])
def test_row_24_a_segment_without_data_has_no_adapter_a_reason_and_no_number(
    odd: Outcome, segment: str
) -> None:
    decided = odd.decisions.table.set_index("segment").loc[segment]
    assert decided["status"] == "skipped" and "no interactions to" in decided["reason"]
    page = odd.folder.report.read_text()
    assert "<td>skipped</td>" in page and f"<td>{decided['reason']}</td>" in page
    release = AdapterStore(odd.store).current()
    assert release is None or segment not in release.segments
    assert segment not in set(read_parquet(odd.folder.results)["segment"].to_pylist())
    compared = read_parquet(odd.folder.comparison)
    assert segment not in set(compared["segment"].to_pylist())


def test_row_24_a_segment_of_negatives_alone_has_no_adapter_and_a_reason(odd: Outcome) -> None:
    assert odd.folder.summary()["data_quality"]["below the least label"] == 5
    assert "all negative" not in set(read_parquet(odd.folder.results)["segment"].to_pylist())
    decided = odd.decisions.table.set_index("segment")
    assert "all negative" in decided.index, "it vanished without a word"
    assert decided.loc["all negative", "status"] == "skipped"


def test_row_24_a_measure_that_does_not_exist_is_null_in_the_file(tmp_path: Path) -> None:
    rows = LabelledRows(
        np.array(["good", "good", "mixed", "mixed"]),
        np.array([0, 1, 0, 1]),
        np.array([0, 0, 1, 1]),
        np.array([1, 1, 0, 1]),
    )
    chances = np.array([0.5, 0.6, 0.1, 0.9])
    measured = measure_labels(rows, chances, model="m", run="r", seed=0)
    write_table(tmp_path / "labels.parquet", measured)
    found = [
        row
        for row in read_parquet(tmp_path / "labels.parquet").to_pylist()
        if row["metric"] == "auc" and row["segment"]
    ]
    values = {row["segment"]: (row["rows"], row["positives"], row["value"]) for row in found}
    assert values == {"good": (2, 2, None), "mixed": (2, 1, 1.0)}


def test_row_25_one_user_or_one_row_is_decided_on_and_shown_without_an_interval(
    odd: Outcome,
) -> None:
    decided = odd.decisions.table.set_index("segment")
    assert set(decided.loc[["one row", "one user"], "status"]) == {"skipped"}
    compared = read_parquet(odd.folder.comparison).to_pandas()
    few = compared[(compared["scope"] == "segment") & (compared["users"] == 1)]
    assert len(few) and few["low"].isna().all() and (few["verdict"] == "cannot tell").all()


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("by", ["global_time", "user_time", "leave_last"])
def test_row_25_a_split_never_makes_an_empty_window_silently(
    tmp_path: Path, num: int, by: Any
) -> None:
    table = rows(num * 2, user_id=["u"] * 2 * num).slice(0, num)
    prepare_log([log_file(tmp_path / "log.parquet", table)], tmp_path / "log", LogContract())
    log = Interactions.read(tmp_path / "log")
    with pytest.raises(ValueError, match=r"the \w+ window has no rows"):
        split(log, SplitConfig(by))


def test_row_26_duplicates_are_merged_by_rule_and_counted(tmp_path: Path) -> None:
    later = rows(timestamp=pa.array([START + 10**13] * 40, pa.timestamp("us", "UTC")))
    files = [log_file(tmp_path / "a.parquet", rows()), log_file(tmp_path / "b.parquet", rows())]
    files.append(log_file(tmp_path / "later.parquet", later))
    for duplicates, merged in (("first", 80), ("exact", 40)):
        contract = LogContract(duplicates=duplicates)  # type: ignore[arg-type]
        summary = prepare_log(files, tmp_path / duplicates, contract)
        assert (summary.duplicates, summary.rows_kept) == (merged, 120 - merged)
    kept = Interactions.read(tmp_path / "first").timestamps
    assert sorted(kept) == [START + i * 10**9 for i in range(40)], "the earliest stays"


def test_row_26_a_row_on_both_sides_of_the_split_is_refused_and_named(tmp_path: Path) -> None:
    table, files = rows(80), {}
    for at, name in enumerate(("pretrain", "train", "validation", "test")):
        part = table.slice(20 * at, 20)
        if name == "test":
            part = pa.concat_tables([part, table.slice(25, 1)])
        files[name] = (log_file(tmp_path / f"{name}.parquet", part),)
    windows = WindowFiles(**files)
    settings = replace(small_settings(tmp_path, tmp_path), log=LogSettings(windows=windows))
    prepare(settings)
    with pytest.raises(LeakageError, match="test window's rows are among the train.*") as caught:
        windows_of(settings)
    assert "user_id 'u25', item_id 'i4'" in str(caught.value)
    done = reclora("retrain", write_toml(tmp_path / "run.toml", settings), cwd=tmp_path)
    assert done.returncode == 1 and "user_id 'u25'" in done.stderr
    assert not settings.store_folder.joinpath("releases", "00000001.json").exists()


def test_row_27_no_order_of_rows_files_or_workers_changes_an_adapter(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, outcome = finished(tmp_path_factory)
    table = read_parquet(settings.log.files[0])
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    cuts = [0, 3000, 3001, len(table)]
    for at, (first, last) in enumerate(zip(cuts, cuts[1:], strict=False)):
        write_parquet(tmp_path / f"{'bca'[at]}.parquet", shuffled.slice(first, last - first))
    again = retrain(
        replace(
            settings,
            log=replace(settings.log, files=tuple(tmp_path / f"{n}.parquet" for n in "cab")),
            folder=tmp_path / "work",
            runs=tmp_path / "runs",
            workers=2,
        )
    )
    packs = [sorted(p.name for p in (o.store / "packs").iterdir()) for o in (outcome, again)]
    assert packs[0] == packs[1] and len(packs[0]) > 1
    results = [read_parquet(o.folder.results).drop_columns("run") for o in (outcome, again)]
    assert results[0].equals(results[1])
