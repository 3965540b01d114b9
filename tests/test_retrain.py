"""The main job: what it publishes, writes and refuses, and that it does nothing twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError
from reclora.files import read_parquet, write_parquet
from reclora.interactions import Interactions
from reclora.pipelines import retrain as pipeline
from reclora.pipelines.contenders import SUBJECT, Ground, contenders, train_contender
from reclora.pipelines.retrain import Outcome, retrain
from reclora.pipelines.run import RunSettings, Search
from reclora.pipelines.settings import SettingsError
from reclora.splits import SplitConfig, Windows, split
from reclora.store import AdapterStore, BaseMismatch
from reclora.training import TrainingConfig
from tests.small_runs import (
    HOSTILE,
    START,
    files_below,
    finished,
    planted_log,
    random_log,
    small_settings,
)
from tests.small_worlds import numbers
from tests.test_pretrain import tables

RESULTS = ["run", "model", "segment", "seed", "user_id", "metric", "k", "value"]


def results_of(outcome: Outcome) -> pd.DataFrame:
    return read_parquet(outcome.folder.results).to_pandas()


def windows_of(settings: RunSettings) -> tuple[BaseModel, Windows]:
    whole = split(Interactions.read(settings.log_folder), settings.split)
    base, windows, _ = pipeline.onto_base(BaseModel.load(settings.base_folder), whole, settings)
    return base, windows


def trained_again(settings: RunSettings, outcome: Outcome) -> AdapterBank:
    """The adapters of a run, trained once more with what the run says that it chose."""
    base, windows = windows_of(settings)
    seen = windows.pretrain.joined(windows.train)
    ground = Ground(base, windows.train, windows.validation, seen, settings.evaluation)
    lines = (outcome.folder.path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    config = next(e["config"] for e in events if e["event"] == "chosen" and e["model"] == SUBJECT)
    contender = contenders(settings)[-1]
    return train_contender(contender, ground, TrainingConfig(**config), settings.seeds[0]).bank


def published(settings: RunSettings) -> AdapterBank:
    base = BaseModel.load(settings.base_folder)
    stored = AdapterStore(settings.store_folder)
    stored.verify()
    return AdapterBank.of(base, stored.load_all(base_fingerprint=base.fingerprint))


def states_of(outcome: Outcome) -> set[str]:
    release = AdapterStore(outcome.store).current()
    return set() if release is None else set(release.segments)


def test_the_results_table_is_as_documented(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    results = results_of(outcome)
    assert results.columns.tolist() == RESULTS
    assert set(results["run"]) == {outcome.folder.id} and set(results["seed"]) == {0}
    assert set(results["model"]) == {
        "segment popularity, all time",
        "segment popularity, recent",
        "frozen base",
        "pooled full fine-tune",
        "pooled adapter",
        SUBJECT,
    }
    assert not results.duplicated(RESULTS[:-1]).any()
    assert results["value"].between(0, 1).all()
    sizes = results.groupby(["model", "metric", "k"]).size()
    assert sizes.nunique() == 1 and len(sizes) == 6 * 4
    base, windows = windows_of(settings)
    of_test = base.users.ids_of(np.unique(windows.test.user_rows)).to_pylist()
    assert set(results["user_id"]) <= set(of_test)


def test_the_files_say_how_the_run_was_made(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    about = outcome.folder.summary()
    assert about["release"] == outcome.release == 1
    assert about["settings"]["search"]["rows_lr"] == [0.05]
    assert about["inputs"].keys() == {str(path) for path in settings.log.files}
    assert about["base"] == BaseModel.load(settings.base_folder).fingerprint
    assert about["versions"].keys() >= {"reclora", "torch", "numpy", "pandas", "pyarrow"}
    assert "commit" in about and about["data_quality"]["rows read"] == 10_000
    events = (outcome.folder.path / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in events]
    assert kinds == ["begin", *["chosen", "trained"] * 3, "published", "complete"]
    assert not list(settings.folder.rglob("*.tmp.*")) + list(settings.runs.rglob("*.tmp.*"))


def test_adapters_beat_the_base_where_the_world_shifted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _, outcome = finished(tmp_path_factory)
    compared = read_parquet(outcome.folder.comparison).to_pandas()
    row = compared[
        (compared["scope"] == "all")
        & (compared["model"] == SUBJECT)
        & (compared["baseline"] == "frozen base")
        & (compared["metric"] == "ndcg")
        & (compared["k"] == 10)
    ].iloc[0]
    assert row["difference"] > 0 and row["verdict"] == "better"


def test_the_release_scores_like_the_trained_bank(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bit for bit; and training again from the run's own files gives the same bytes."""
    settings, outcome = finished(tmp_path_factory)
    bank, stored = trained_again(settings, outcome), published(settings)
    assert stored.segment_names
    users = torch.arange(len(stored.base.users))
    for name in stored.segment_names:
        assert numbers(stored, name) == numbers(bank, name)
        assert torch.equal(stored.scorer(name).scores(users), bank.scorer(name).scores(users))
    release = AdapterStore(settings.store_folder).current()
    assert release is not None and outcome.folder.id in release.reason
    for placement in release.segments.values():
        better, base = (
            placement.metrics[f"validation ndcg@10{suffix}"] for suffix in ("", " of the base")
        )
        assert better > base


def test_a_complete_run_is_reused(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    folders = settings.folder, settings.runs
    before = [files_below(folder) for folder in folders]
    again = retrain(replace(settings, author="another", repeat="again"))
    assert again.was_there and again.release == outcome.release
    assert [files_below(folder) for folder in folders] == before


def test_the_same_input_in_another_folder_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """And a run that was complete for one store is none for another."""
    settings, outcome = finished(tmp_path_factory)
    runs = tmp_path / "runs"
    shutil.copytree(settings.runs, runs)
    other = replace(
        settings,
        folder=tmp_path / "elsewhere",
        runs=runs,
        log=replace(settings.log, files=(planted_log(tmp_path / "copy.parquet"),)),
    )
    again = retrain(other)
    assert not again.was_there and again.folder.id == outcome.folder.id
    pd.testing.assert_frame_equal(results_of(again), results_of(outcome), check_exact=True)
    packs = [
        {path.name: path.read_bytes() for path in (each.store / "packs").iterdir()}
        for each in (outcome, again)
    ]
    assert packs[0] == packs[1]


def test_a_run_that_lost_a_file_is_made_again(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs")
    shutil.copytree(settings.folder, mine.folder)
    shutil.copytree(settings.runs, mine.runs)
    outcome = retrain(mine)
    assert outcome.was_there
    before = results_of(outcome)
    outcome.folder.report.unlink()
    again = retrain(mine)
    assert not again.was_there and again.folder.is_complete
    pd.testing.assert_frame_equal(results_of(again), before, check_exact=True)


def test_a_store_of_another_base_is_refused_before_training(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    mine = small_settings(tmp_path, log, base=tables(tmp_path / "tables"))
    shutil.copytree(settings.store_folder, mine.store_folder)
    before = files_below(mine.store_folder)
    with pytest.raises(BaseMismatch, match="name another `folder`, or remove .*store"):
        retrain(mine)
    assert files_below(mine.store_folder) == before and not mine.runs.exists()


def test_segments_without_train_or_validation_rows_keep_the_base(tmp_path: Path) -> None:
    """Of an imported base, too; and one whose rows end before the adapt window has no results."""
    parts: dict[str, tuple[float, float]] = {
        "whole": (0, 1),
        "no train rows": (0.86, 1),
        "no validation rows": (0, 0.84),
        "ended": (0, 0.6),
    }
    log = random_log(tmp_path / "log.parquet", parts, users=60, rows=3000)
    base = tables(tmp_path / "tables")
    settings = small_settings(tmp_path, log, base=base)
    outcome = retrain(settings)
    assert outcome.release == 1 and states_of(outcome) == {"whole"}
    results = results_of(outcome)
    assert set(results["segment"]) == {"whole", "no train rows"}
    of_first = results[results["segment"] == "no train rows"].pivot(
        index=["user_id", "metric", "k"], columns="model", values="value"
    )
    assert (of_first[SUBJECT] == of_first["frozen base"]).all()
    page = outcome.folder.report.read_text()
    assert "no interactions in the train window" in page
    assert "no interactions to validate on" in page
    stored = published(settings)
    assert stored.base.tower is None and numbers(stored, "whole")
    quality = outcome.folder.summary()["data_quality"]
    assert quality["unknown to the base, train window"] > 0


@pytest.fixture(scope="module")
def newcomers(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """A log in which half of the users come in the adapt window, in a segment of their own."""
    folder = tmp_path_factory.mktemp("newcomers")
    parts: dict[str, tuple[float, float]] = {"new": (0.6, 1), "old": (0, 1)}
    log = random_log(folder / "log.parquet", parts, users=40, rows=2500)
    return small_settings(folder, log, split=SplitConfig(pretrain=0.6, train=0.2, test=0.15))


def test_the_next_log_adapts_the_base_that_is_there(tmp_path: Path) -> None:
    """Another log is refused beside a base, unless the settings say to keep that base."""
    first = small_settings(tmp_path, random_log(tmp_path / "1.parquet", {"a": (0, 1), "b": (0, 1)}))
    retrain(first)
    log = random_log(tmp_path / "2.parquet", {"a": (0, 1), "b": (0, 1), "c": (0.5, 1)}, rows=1000)
    second = replace(first, log=replace(first.log, files=(log,)))
    with pytest.raises(SettingsError, match="To adapt that base to this log, set base.saved"):
        retrain(second)
    before = files_below(first.base_folder)
    kept = replace(second, base=replace(second.base, saved=first.base_folder))
    outcome = retrain(kept)
    assert files_below(first.base_folder) == before
    assert outcome.folder.summary()["base"] == BaseModel.load(first.base_folder).fingerprint


def test_nothing_of_test_chooses_or_trains(tmp_path: Path) -> None:
    """Law 10: with other items in the test window, base, rates and adapters are the same."""
    table = pq.read_table(random_log(tmp_path / "a.parquet", {"a": (0, 1), "b": (0, 1)}))
    table = table.sort_by("timestamp")
    first = round(0.9 * len(table))
    items = table["item_id"].to_pylist()
    moved = items[:first] + items[first:][::-1]
    write_parquet(tmp_path / "b.parquet", table.set_column(1, "item_id", pa.array(moved)))
    found = []
    for name in ("a", "b"):
        settings = small_settings(tmp_path / name, tmp_path / f"{name}.parquet")
        grid = Search((1e-6, 0.1), (1e-6, 0.1), (0.01,))
        contract = replace(settings.log.contract, duplicates="exact")
        log = replace(settings.log, contract=contract)
        outcome = retrain(replace(settings, search=grid, log=log))
        assert outcome.release is not None
        store = AdapterStore(outcome.store)
        fingerprint = outcome.folder.summary()["base"]
        adapters = store.load_all(base_fingerprint=fingerprint)
        tensors = [(a.segment, {n: t.tolist() for n, t in a.tensors.items()}) for a in adapters]
        found.append((outcome.folder.summary()["search"], fingerprint, tensors))
    assert found[0] == found[1]


def test_unknown_users_are_dropped_and_counted(newcomers: RunSettings) -> None:
    outcome = retrain(newcomers)
    assert set(results_of(outcome)["segment"]) == {"old"}
    whole = split(Interactions.read(newcomers.log_folder), newcomers.split)
    quality = outcome.folder.summary()["data_quality"]
    of_new = int(np.diff(whole.train.offsets)[whole.train.segment_names.index("new")])
    assert quality["unknown to the base, train window"] >= of_new > 50


def test_unknown_users_grow_into_their_adapter(newcomers: RunSettings) -> None:
    grown = replace(newcomers, unknown="grow", folder=newcomers.folder.with_name("grown"))
    outcome = retrain(grown)
    assert outcome.release is not None and "new" in states_of(outcome)
    results = results_of(outcome)
    base = BaseModel.load(grown.base_folder)
    of_new = set(results.loc[results["segment"] == "new", "user_id"])
    assert of_new and not of_new & set(base.users.ids.to_pylist())
    quality = outcome.folder.summary()["data_quality"]
    assert "unknown to the base, train window" not in quality
    bank, stored = trained_again(grown, outcome), published(grown)
    for name in stored.segment_names:
        # New rows may stand in another order in a bank of what was published.
        mine, its = (
            b.scorer(name).scores(torch.from_numpy(b.base.users.rows_of(sorted(of_new)[:3])))
            for b in (bank, stored)
        )
        order = torch.from_numpy(stored.base.items.rows_of(bank.base.items.ids))
        assert torch.equal(mine[:, order >= 0], its[:, order[order >= 0]])


def test_hostile_names_of_segments_are_only_names(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", dict.fromkeys(HOSTILE, (0, 1)), users=60, rows=2500)
    inside = tmp_path / "inside"
    outcome = retrain(small_settings(inside, log, base=tables(tmp_path / "tables")))
    assert set(results_of(outcome)["segment"]) == set(HOSTILE)
    page = outcome.folder.report.read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "tables", "log.parquet"}
    assert {path.name for path in inside.iterdir()} == {"work", "runs"}
    assert outcome.release is not None and states_of(outcome) <= set(HOSTILE)


def test_lists_longer_than_the_catalogue_and_other_metrics_first(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {"pooled": (0, 1)})
    evaluation = replace(
        small_settings(tmp_path, log).evaluation, ks=(1000, 1), metrics=("recall", "ndcg")
    )
    mine = small_settings(tmp_path, log, base=tables(tmp_path / "tables"), evaluation=evaluation)
    outcome = retrain(mine)
    results = results_of(outcome)
    whole = results[(results["metric"] == "recall") & (results["k"] == 1000)]
    assert (whole["value"] == 1).all(), "the whole catalogue holds all that is relevant"
    assert outcome.release is None, "where every list is whole no adapter can be better"
    compared = read_parquet(outcome.folder.comparison).to_pandas()
    assert compared[["metric", "k"]].iloc[0].tolist() == ["recall", 1000]
    assert "no epoch was better on validation" in outcome.folder.report.read_text()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (AdapterConfig(rank=5), "rank 5 is above the tables' embedding_dim 4"),
        (AdapterConfig("none", "none", "none", "low_rank"), "the bank has no delta to train"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, adapter: AdapterConfig, message: str
) -> None:
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    mine = small_settings(tmp_path, log, base=tables(tmp_path / "tables"), adapter=adapter)
    with pytest.raises((AdapterError, ValueError), match=message):
        retrain(mine)
    (events,) = mine.runs.glob("*/events.jsonl")
    assert len(events.read_text().splitlines()) == 1 and not mine.store_folder.exists()


def test_a_base_that_knows_nobody_is_refused(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    table = read_parquet(log)
    strangers = table.set_column(0, "user_id", [[f"stranger {i % 9}" for i in range(len(table))]])
    numbered = table.set_column(0, "user_id", [np.arange(len(table)) % 9])
    for name, changed, message in (
        ("strangers", strangers, 'knows no user with an item of the train window.*"grow"'),
        ("numbered", numbered, "user_id is int64 in the log and large_string in the base model"),
    ):
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, changed)
        mine = small_settings(tmp_path / name, path, base=tables(tmp_path / "tables"))
        with pytest.raises(ValueError, match=message):
            retrain(mine)


def test_a_test_window_with_nothing_new_is_refused(tmp_path: Path) -> None:
    """Eight items, all of them seen by each of five users long before the end."""
    rows = np.arange(400)
    moments = pa.array(START + rows * 10**6, pa.timestamp("us", "UTC"))
    columns = {
        "user_id": [f"u{row % 5}" for row in rows],
        "item_id": [f"i{row // 5 % 8}" for row in rows],
        "timestamp": moments,
        "segment": ["a"] * len(rows),
    }
    write_parquet(tmp_path / "log.parquet", pa.table(columns))
    mine = small_settings(tmp_path, tmp_path / "log.parquet", base=tables(tmp_path / "tables"))
    contract = replace(mine.log.contract, duplicates="exact")
    with pytest.raises(ValueError, match="nobody has an item in the test window that is new"):
        retrain(replace(mine, log=replace(mine.log, contract=contract)))
    assert not mine.store_folder.exists()
