"""The verb `reclora stability`: its figures are those of a run a seed; it publishes nothing."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from reclora.configs import AdapterConfig, AdapterError
from reclora.gate import GateConfig
from reclora.pipelines.contenders import (
    SUBJECT,
    Contender,
    Ground,
    Trained,
    headline_values,
    train_contender,
)
from reclora.pipelines.inputs import Inputs
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import LogSettings, RunSettings, Search
from reclora.pipelines.settings import SettingsError
from reclora.pipelines.stability import Stability, seeds_of, stability
from reclora.pipelines.stability_cli import verbs
from reclora.pipelines.under_seeds import train_under_seeds
from reclora.pipelines.workshop import Workshop
from reclora.training import TrainingConfig, TrainingError
from tests.small_runs import poisoned_windows, random_log, small_settings, write_toml
from tests.test_trial import BASE, SPLIT

SEGMENTS = {"de": (0, 1), "fr": (0, 1), "=日本": (0, 0.9), "old": (0, 0.5), "new": (0.75, 1)}
"""`old` ends in the train window, `new` begins in validation."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    folder = tmp_path_factory.mktemp("stability")
    return small_settings(
        folder,
        random_log(folder / "log.parquet", SEGMENTS, users=60, rows=2000),
        base=BASE,
        split=SPLIT,
        kinds="given",
        # Of each list the first is taken.
        search=Search((0.2, 9.0), (0.1,), (0.01,)),
        seeds=(4, 1),
        compared=(),
        # A gate that says much, so that it flips.
        gate=GateConfig(rule="each", confidence=0.5),
    )


@pytest.fixture(scope="module")
def found(settings: RunSettings) -> Stability:
    return stability(settings, seeds=3, average=True)


def test_the_settings_seeds_come_first(settings: RunSettings) -> None:
    assert [seeds_of(settings, number) for number in (2, 4)] == [(4, 1), (4, 1, 0, 2)]
    assert seeds_of(replace(settings, seeds=(7, 0, 5)), 2) == (7, 0)
    with pytest.raises(ValueError, match="at least 2 to differ, got 1"):
        seeds_of(settings, 1)


def pooled_by_hand(settings: RunSettings) -> tuple[Ground, TrainingConfig, Trained]:
    """The pooled adapter of the first seed at the first rates, what it was trained with, and the
    ground of those who stand on it.
    """
    inputs = Inputs.read(settings, ())
    windows = inputs.windows
    ground = Ground(
        inputs.base,
        windows.train,
        windows.validation,
        windows.before_validation,
        settings.evaluation,
    )
    config = replace(settings.training, rows_lr=0.2, bias_lr=0.1, l2=0.01)
    pooled = train_contender(Contender("", settings.adapter, True), ground, config, 4)
    (parent,) = pooled.bank.adapters()
    return replace(ground, parent=parent), config, pooled


def test_each_seed_is_as_a_run_trains_and_decides_it(
    settings: RunSettings, found: Stability, tmp_path: Path
) -> None:
    """With the first seed's parent; the first seed is the run itself."""
    single = replace(settings, search=Search((0.2,), (0.1,), (0.01,)), seeds=(4,), runs=tmp_path)
    ground, config, _ = pooled_by_hand(single)
    own = Contender(SUBJECT, settings.adapter, False, has_parent=True)
    values = [
        headline_values(ground.opposite, train_contender(own, ground, config, seed))
        for seed in found.seeds
    ]
    means = np.array([table["value"].mean() for table in values])
    row = found.models.set_index("model").loc[SUBJECT]
    assert row["mean"] == pytest.approx(means.mean()) and row["sd"] == pytest.approx(
        means.std(ddof=1)
    )
    assert (row["low"], row["high"]) == pytest.approx((means.min(), means.max()))
    assert row["sd"] > 0 and 0 < row["overlap"] < 1 and row["users"] == len(values[0])
    segments = found.segments.set_index("segment")
    for name in ("de", "=日本"):
        each = [table["value"][table["segment"] == name].mean() for table in values]
        assert segments["mean"][name] == pytest.approx(np.mean(each))
    # The gate: what the first seed comes to is what the run does.
    assert found.decisions["not decided"] > 0 and found.decisions["kept"] > 0
    outcome = retrain(replace(single, folder=tmp_path / "work"))
    statuses = outcome.decisions.table.set_index("segment")["status"]
    for name, told in found.segments.set_index("segment").iterrows():
        status = {"skipped": "kept", "quarantined": "kept"}.get(statuses[name], statuses[name])
        assert told[status] >= 1
        counts = {word: told[word] for word in ("promoted", "fell back", "kept") if word in told}
        assert sum(counts.values()) == 3
        assert told["decision"] == (status if told[status] == 3 else "not decided")


@pytest.mark.parametrize("chunk_rows", [1, 100_000])
def test_seeds_in_one_pass_are_contenders_seed_by_seed(
    settings: RunSettings, chunk_rows: int
) -> None:
    inputs = Inputs.read(settings, ())
    windows = inputs.windows
    ground = Ground(
        inputs.base,
        windows.train,
        windows.validation,
        windows.before_validation,
        settings.evaluation,
        Workshop(chunk_rows=chunk_rows),
    )
    told: list[tuple[int, int]] = []
    for is_pooled in (False, True):
        contender = Contender("", settings.adapter, is_pooled)
        trained = train_under_seeds(
            contender, ground, settings.training, (3, 8), lambda *done: told.append(done)
        )
        for seed, found in zip((3, 8), trained, strict=True):
            wanted = train_contender(contender, ground, settings.training, seed)
            assert found.training.best_epoch == wanted.training.best_epoch and wanted.helped
            for own, one in zip(found.bank.adapters(), wanted.bank.adapters(), strict=True):
                assert own.segment == one.segment and own.tensors.keys() == one.tensors.keys()
                for name, tensor in one.tensors.items():
                    torch.testing.assert_close(own.tensors[name], tensor, rtol=0, atol=1e-6)
    assert told == ([(n, 5) for n in range(1, 6)] if chunk_rows == 1 else [(1, 1)]) + [(1, 1)]


def test_segments_that_cannot_tell_are_there_all_the_same(found: Stability) -> None:
    segments = found.segments.set_index("segment")
    assert {*segments.index} == {*SEGMENTS}
    assert segments["rows"]["new"] == segments["users"]["old"] == 0
    assert segments["mean"].isna()["old"] and segments["decision"]["old"] == "kept"
    assert sum(found.decisions.values()) == 5


def test_the_averages_are_held_against_one_seed(found: Stability) -> None:
    exact, cut = found.averages.to_dict("records")
    one = found.models.set_index("model")["mean"][SUBJECT]
    for row in (exact, cut):
        assert row["baseline_mean"] == pytest.approx(one)
        assert row["difference"] == pytest.approx(row["model_mean"] - one)
        assert row["low"] <= row["difference"] <= row["high"]
    assert exact["model"] == "mean of the seeds" and cut["model"].startswith("mean of the seeds, ")
    by_segment = found.segments.dropna(subset="average lift")
    lift = np.average(by_segment["average lift"], weights=by_segment["users"])
    assert lift == pytest.approx(cut["difference"])


def test_it_publishes_nothing_and_writes_a_table(settings: RunSettings, found: Stability) -> None:
    assert not settings.store_folder.exists()
    table = pd.read_csv(found.table)
    # A spreadsheet would run the name of one.
    names = [f"'{name}" if name.startswith("=") else name for name in found.segments["segment"]]
    assert table["segment"].tolist() == names
    assert table["mean"].tolist() == pytest.approx(found.segments["mean"].tolist(), nan_ok=True)
    assert (found.folder / "run.json").exists() and not (found.folder / "training").exists()


def test_the_test_window_has_no_say(settings: RunSettings, tmp_path: Path) -> None:
    """Other test rows, of the same users and items, and every number stays as it is."""
    table, ends = pq.read_table(settings.log.files[0]), (0, 800, 1400, 1800, 2000)
    told = []
    for night, windows in poisoned_windows(table, ends, tmp_path).items():
        log = LogSettings(windows=windows)
        told.append(stability(replace(settings, log=log, folder=tmp_path / night), seeds=2))
    clean, poisoned = told
    assert clean.folder != poisoned.folder
    pd.testing.assert_frame_equal(clean.models, poisoned.models, check_exact=True)
    pd.testing.assert_frame_equal(clean.segments, poisoned.segments, check_exact=True)


def test_many_rows_are_trained_chunk_by_chunk(
    settings: RunSettings, found: Stability, tmp_path: Path
) -> None:
    told = stability(replace(settings, chunk_rows=1, runs=tmp_path), seeds=3)
    pd.testing.assert_frame_equal(told.models, found.models, atol=1e-6)


def test_one_that_was_killed_is_gone_on_with(
    settings: RunSettings, found: Stability, tmp_path: Path
) -> None:
    """To the same bytes as without the break."""
    shutil.copytree(settings.folder, tmp_path / "work")
    write_toml(
        tmp_path / "run.toml",
        mine := replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs"),
    )
    command = "from reclora.pipelines.stability_cli import verbs; verbs()"
    with subprocess.Popen(
        [sys.executable, "-c", command, "run.toml", "--seeds", "3", "--average"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training: pooled adapter, 3 seeds in one pass: done"):
                break
        process.send_signal(signal.SIGKILL)
    (folder,) = (tmp_path / "runs").iterdir()
    assert [*(folder / "training").iterdir()] and not (folder / "stability.csv").exists()
    told = stability(mine, seeds=3, average=True)
    assert told.folder == folder and told.folder.name == found.folder.name
    assert told.table.read_bytes() == found.table.read_bytes()
    lines = (folder / "events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("begin") == events.count("resume") == events.count("complete") == 1


def test_what_cannot_be_is_refused_before_anything_is_trained(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    magnitude = AdapterConfig(rank=2, item_bias="none", magnitude=True, tower="none")
    mine = replace(settings, runs=tmp_path, parent="none", adapter=magnitude)
    with pytest.raises(AdapterError, match="no average of 3 seeds: .*magnitude"):
        stability(mine, seeds=3, average=True)
    large = replace(mine, adapter=AdapterConfig(rank=99))
    with pytest.raises(ValueError, match="rank 99 is above"):
        stability(large, seeds=3)
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="start it without torchrun"):
        stability(settings)


def test_rates_at_which_numbers_are_lost(settings: RunSettings, tmp_path: Path) -> None:
    wild = replace(settings, parent="none", search=Search((1e38,), (1e38,), ()), runs=tmp_path)
    told = stability(wild, seeds=2)
    # `old` has nobody to be judged by, and does not train.
    assert told.quarantined == 2 * 3 and told.decisions == {"kept": 5}
    log = random_log(tmp_path / "log.parquet", {"de": (0, 1), "fr": (0, 1)})
    all_lost = replace(wild, log=LogSettings((log,)), folder=tmp_path / "work")
    with pytest.raises(TrainingError, match="no segment is left to train: .*not finite"):
        stability(all_lost, seeds=2)


def test_what_is_said(settings: RunSettings, found: Stability, tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "run.toml", replace(settings, runs=tmp_path))
    words = [str(toml), "--seeds", "2", "--set", "parent=none", "--set", "training.epochs=1"]
    done = CliRunner().invoke(verbs, [*words, "--average"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.exception
    text = done.stdout
    assert re.search(r"ndcg@10 on validation, \d+ users, seeds 4, 1", text)
    assert "per-segment adapters" in text and "pooled adapter" not in text
    assert "mean of the seeds, cut to the rank" in text and "=日本" in text
    (folder,) = tmp_path.glob("small-stability-*")
    *_, segments, table = text.splitlines()
    assert table == f"table     {folder / 'stability.csv'}" and segments.startswith("segments  ")
    told = json.loads((folder / "run.json").read_text())["settings"]["repeat"]
    assert told.startswith("reclora stability ") and "--seeds 2 --average --set parent=none" in told
    said = CliRunner().invoke(verbs, [*words, "--json"])
    assert said.exit_code == 0, said.exception
    printed = json.loads(said.stdout)
    assert printed["seeds"] == [4, 1] and printed["averages"] == []
    assert {row["segment"] for row in printed["segments"]} == {*SEGMENTS}
    assert sum(printed["decisions"].values()) == 5 and printed["folder"] == str(folder)
    assert CliRunner().invoke(verbs, [str(toml), "--seeds", "1"]).exit_code == 2


def test_its_examples_are_commands() -> None:
    command = typer.main.get_command(verbs)
    assert command.help is not None
    examples = re.findall(r"(?m)^ *Example: reclora stability (.*)$", command.help)
    assert len(examples) == 2
    for example in examples:
        assert command.make_context("stability", shlex.split(example)).params["seeds"] == 5
