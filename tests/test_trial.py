"""Trials: judged as a run chooses, on segments of every size, without the test window."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclora.factorisation import FactorisationConfig
from reclora.pipelines.base_settings import BaseSearch, BaseSettings
from reclora.pipelines.inputs import Inputs
from reclora.pipelines.learning import learn
from reclora.pipelines.prepare import windows_of
from reclora.pipelines.run import LogSettings, RunSettings, Search
from reclora.pipelines.trial import Material, sampled
from reclora.splits import SplitConfig
from reclora.training import TrainingError
from tests.small_runs import poisoned_windows, random_log, small_settings

TABLES = FactorisationConfig(embedding_dim=8, epochs=4, batch_users=16, temperature=0.3)
BASE = BaseSettings(TABLES, search=BaseSearch(()), hidden=())
SPLIT = SplitConfig("global_time", pretrain=0.4, train=0.3, validation=0.2, test=0.1)
SEGMENTS = {"de": (0, 1), "fr": (0, 1), "日本": (0, 0.9), "old": (0, 0.5), "new": (0.75, 1)}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    folder = tmp_path_factory.mktemp("trial")
    log = random_log(folder / "log.parquet", SEGMENTS)
    return small_settings(folder, log, base=BASE, split=SPLIT, kinds="given", compared=())


@pytest.fixture(scope="module")
def material(settings: RunSettings) -> Material:
    return Material.read(settings, 100)


def test_segments_of_every_size_are_drawn() -> None:
    sizes = {f"small {n}": 1 + n % 9 for n in range(80)}
    sizes |= {f"middle {n}": 20 + n for n in range(19)} | {"large": 123_456}
    drawn = sampled(sizes, 10)
    assert Counter(name.split()[0] for name in drawn) == {"small": 8, "middle": 2, "large": 1}
    assert {sizes[name] for name in drawn if name.startswith("small")} >= {1, 9}
    assert len({*drawn}) == len(drawn)
    # It is of the sizes alone, in whatever order they come.
    assert sampled(dict(sorted(sizes.items())), 10) == drawn
    assert sampled(sizes, 100) == [*sizes]


def test_segments_that_cannot_tell_are_not_drawn(settings: RunSettings, material: Material) -> None:
    """`old` ends in the train window, `new` begins in validation."""
    assert material.windows.train.segment_names == ("de", "fr", "日本") and material.segments == 3
    few = Material.read(settings, 1)
    assert 1 <= few.windows.train.num_segments < 3 and few.segments == 3
    assert {*few.judge(settings).values["segment"]} == {*few.windows.train.segment_names}


@pytest.mark.parametrize(("parent", "kinds"), [("pooled", "auto"), ("auto", "given")])
def test_a_setting_is_worth_what_a_run_chooses_by(parent: str, kinds: str, tmp_path: Path) -> None:
    """With its grid, its kinds and its parents, where all segments are drawn."""
    mine = small_settings(
        tmp_path,
        random_log(tmp_path / "log.parquet", {"de": (0, 1), "fr": (0, 1), "日本": (0, 0.9)}),
        base=BASE,
        split=SPLIT,
        compared=(),
        parent=parent,
        kinds=kinds,
        search=Search((0.3, 0.003), (0.1,), (0.01,)),
    )
    inputs = Inputs.read(mine, ())
    inputs.folder.begin()
    learned = learn(mine, inputs)
    judged = Material.read(mine, 100).judge(mine)
    (choice,) = (c for c in learned.choices if c.contender.model == "per-segment adapters")
    pd.testing.assert_frame_equal(judged.values, choice.values)
    assert judged.mean == choice.values["value"].mean()
    assert judged.chosen["training.rows_lr"] == choice.config.rows_lr in (0.3, 0.003)
    assert judged.chosen["parent"] == ("pooled" if choice.contender.has_parent else "none")


def test_who_stops_does_not_judge(settings: RunSettings, material: Material) -> None:
    folds = material.folds(settings)
    assert [fold.users for fold in folds] == ["even", "odd"]
    for fold in folds:
        stop, judge = (
            {int(row) for s in ground.held_out.segments for row in s.user_rows_U}
            for ground in (fold, fold.opposite)
        )
        assert stop and judge and not stop & judge
    values = material.judge(settings).values
    everybody = sum(fold.held_out.num_users for fold in folds)
    assert len(values) == len(values[["segment", "user_id"]].drop_duplicates()) == everybody


def test_every_epoch_is_told_and_can_be_the_last(settings: RunSettings, material: Material) -> None:
    told: list[tuple[int, float]] = []
    whole = material.judge(settings, lambda epoch, score: told.append((epoch, score)))
    # Of the first training alone, whatever else is trained.
    assert [epoch for epoch, _ in told] == list(range(settings.training.epochs + 1))
    scores = [score for _, score in told]
    assert scores == sorted(scores) and scores[-1] > scores[0]
    fold = material.folds(settings)[0]
    parent = fold.pooled  # what its segments stand on was trained on all of them
    assert parent.log.num_segments == 1
    # That it is told changes nothing.
    pd.testing.assert_frame_equal(material.judge(settings).values, whole.values)

    class Enough(Exception):
        pass

    def stop(epoch: int, score: float) -> None:
        if epoch == 1:
            raise Enough

    with pytest.raises(Enough):
        material.judge(settings, stop)


def test_the_log_is_that_of_the_trial(settings: RunSettings, material: Material) -> None:
    window = material.folds(settings)[0].log
    whole = material.folds(replace(settings, history="all", half_life=1e-3))[0].log
    assert len(whole) > len(window) and len({*whole.weights.tolist()}) > 1
    assert material.folds(replace(settings, seeds=(5,)))[0].log is window


def test_rates_at_which_numbers_are_lost(settings: RunSettings, material: Material) -> None:
    lost = replace(settings, parent="none", search=Search((math.inf,), (0.1,), (0.0,)))
    with pytest.raises(ValueError, match="rows_lr must be a positive number"):
        material.judge(lost)
    lost = replace(lost, search=Search((1e38,), (1e38,), (0.0,)))
    with pytest.raises(TrainingError, match="lower its learning rates"):
        material.judge(lost)


def test_the_test_window_decides_nothing(settings: RunSettings, tmp_path: Path) -> None:
    """Other test rows, of the same users and items, and every number stays as it is."""
    table = pq.read_table(settings.log.files[0])
    ends = np.cumsum([0, 360, 270, 180, 90])
    found = []
    for night, windows in poisoned_windows(table, ends, tmp_path).items():
        mine = replace(settings, log=LogSettings(windows=windows), folder=tmp_path / night)
        material = Material.read(mine, 100)
        assert len(material.windows.test) == 0 and len(material.windows.validation) > 100
        found.append((material.judge(mine), windows_of(mine).test))
    (clean, rows), (poisoned, others) = found
    assert rows.items == others.items and not np.array_equal(rows.item_rows, others.item_rows)
    pd.testing.assert_frame_equal(clean.values, poisoned.values, check_exact=True)


def test_a_log_without_a_segment_that_could_tell(settings: RunSettings, tmp_path: Path) -> None:
    table = pq.read_table(settings.log.files[0])
    names = pa.array(["before"] * 630 + ["after"] * 270)
    pq.write_table(table.set_column(3, "segment", names), tmp_path / "log.parquet")
    mine = small_settings(tmp_path, tmp_path / "log.parquet", base=BASE, split=SPLIT)
    with pytest.raises(ValueError, match="no segment has a row in the train and in the valid"):
        Material.read(mine, 5)
