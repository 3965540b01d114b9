"""A base trained on a window: better than popularity, the same bytes again, and what chose it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from reclora.base import BaseModel
from reclora.evaluation import EvaluationConfig, evaluate, hold_out
from reclora.interactions import Interactions
from reclora.pipelines.base_settings import BaseSearch, TowerTraining
from reclora.pipelines.train_base import train_base
from reclora.popularity import popularity
from reclora.splits import split
from tests.small_runs import finished


def test_the_base_knows_the_first_window_and_predicts_better_than_popularity(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings, _ = finished(tmp_path_factory)
    base = BaseModel.load(settings.base_folder)
    base.verify()
    windows = split(Interactions.read(settings.log_folder), settings.split)
    first = windows.pretrain
    assert set(base.users.ids.to_pylist()) == set(
        first.users.ids_of(np.unique(first.user_rows)).to_pylist()
    )
    assert len(base.items) == len(np.unique(first.item_rows))
    seen, later = (w.pooled().onto(base.users, base.items)[0] for w in (first, windows.train))
    held_out = hold_out(later, seen, EvaluationConfig((10,), ("ndcg",)))
    popular, scorer = popularity(seen), base.scorer()
    means = [
        evaluate(held_out, of, model="", run="", seed=0)["value"].mean()
        for of in (lambda name: scorer, popular)
    ]
    assert means[0] > 1.2 * means[1]


def test_the_same_log_and_settings_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings, _ = finished(tmp_path_factory)
    window = split(Interactions.read(settings.log_folder), settings.split).pretrain
    base = BaseModel.load(settings.base_folder)
    again = train_base(window, settings.base, settings.split.by)
    assert again.base.fingerprint == base.fingerprint
    about = json.loads((settings.base_folder / "base.json").read_text())["provenance"]
    assert about["by"] == "pretrain" and about["epochs"] == again.epochs and about["inputs"]
    other = train_base(window, replace(settings.base, seed=1), settings.split.by)
    assert other.base.fingerprint != base.fingerprint


def window_of(factory: pytest.TempPathFactory) -> Interactions:
    settings, _ = finished(factory)
    return split(Interactions.read(settings.log_folder), settings.split).pretrain


def test_the_search_keeps_what_the_last_tenth_liked_best(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings, _ = finished(tmp_path_factory)
    search = BaseSearch(temperature=(0.01, 0.3), half_life=(0.0, 0.001))
    base = replace(settings.base, hidden=(), search=search)
    made = train_base(window_of(tmp_path_factory), base, "global_time")
    assert len(made.tried) == 4
    best = made.tried.loc[made.tried["value"].idxmax()]
    assert made.tried["chosen"].sum() == 1 and best["chosen"]
    assert made.chosen.factorisation.temperature == best["temperature"]
    assert made.chosen.half_life == best["half_life"] and made.epochs == best["epochs"]
    assert made.base.tower is None and made.tower_epochs == 0
    alone = train_base(window_of(tmp_path_factory), made.chosen, "global_time")
    assert alone.base.fingerprint == made.base.fingerprint


def test_a_tower_leaves_the_tables_as_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, _ = finished(tmp_path_factory)
    window = window_of(tmp_path_factory)
    plain = train_base(window, replace(settings.base, hidden=()), "global_time").base
    made = train_base(window, settings.base, "global_time")
    for table in ("user_table", "item_table", "item_bias"):
        ours, theirs = (getattr(b, table).materialised() for b in (made.base, plain))
        assert ours.equal(theirs)
    assert (made.base.tower is None) == (made.tower_epochs == 0)


def test_a_tower_that_cannot_help_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, _ = finished(tmp_path_factory)
    wild = replace(settings.base, tower=TowerTraining(epochs=1, tower_lr=1e4, batch_rows=512))
    made = train_base(window_of(tmp_path_factory), wild, "global_time")
    assert made.base.tower is None and made.tower_epochs == 0
    assert "a tower did not help; there is none" in capsys.readouterr().err
