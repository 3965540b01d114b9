"""A base trained on a window: better than popularity, the same bytes again, and what chose it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from reclora.base import BaseModel
from reclora.evaluation import EvaluationConfig, evaluate, hold_out
from reclora.factorisation import factorise
from reclora.interactions import Interactions
from reclora.pipelines.base_settings import BaseSearch, TowerTraining
from reclora.pipelines.train_base import train_base
from reclora.popularity import popularity
from reclora.splits import SplitBy, split
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


def declined_at(window: Interactions, moments: np.ndarray) -> Interactions:
    """Rows of the window's users, each with an item of another's, declined at these moments."""
    some = np.arange(0, len(window), 7)
    return Interactions.from_arrays(
        users=window.users,
        items=window.items,
        segment_names=("x",),
        segments=np.zeros(len(some), np.int64),
        user_rows=window.user_rows[some],
        item_rows=window.item_rows[some[::-1]],
        timestamps=moments[some],
    )


@pytest.mark.parametrize("by", ["global_time", "user_time"])
def test_a_base_knows_what_was_declined_before_its_windows_end_and_nothing_later(
    tmp_path_factory: pytest.TempPathFactory, by: SplitBy
) -> None:
    settings, _ = finished(tmp_path_factory)
    log = Interactions.read(settings.log_folder).pooled()
    window = split(log, replace(settings.split, by=by)).pretrain
    last_U = np.full(len(log.users), window.timestamps.max())
    if by == "user_time":
        last_U[:] = 0
        np.maximum.at(last_U, window.user_rows, window.timestamps)
    last = last_U[window.user_rows]
    few = replace(settings.base.factorisation, loss="bce", epochs=2, judge_every=1)
    base = replace(settings.base, factorisation=few, hidden=())

    def fingerprint(declined: Interactions | None) -> str:
        return train_base(window, base, by, declined=declined).base.fingerprint

    within, after = declined_at(window, last), declined_at(window, last + 1)
    assert fingerprint(after) == fingerprint(None) != fingerprint(within)
    assert fingerprint(within.joined(after)) == fingerprint(within)


def test_what_chooses_does_not_know_what_was_declined_later(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings, _ = finished(tmp_path_factory)
    window = window_of(tmp_path_factory)
    few = replace(settings.base.factorisation, loss="bce", epochs=2, judge_every=1)
    base = replace(settings.base, factorisation=few, hidden=())
    end = np.full(len(window), window.timestamps.max())
    begin = np.full(len(window), window.timestamps.min())
    plain, late, early = (
        train_base(window, base, "global_time", declined=declined)
        for declined in (None, declined_at(window, end), declined_at(window, begin))
    )
    assert late.tried["value"].item() == plain.tried["value"].item() != early.tried["value"].item()
    assert late.base.fingerprint != plain.base.fingerprint


def test_declined_rows_fade_as_the_others_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From the window's last moment, also where the last row was declined long before."""
    settings, _ = finished(tmp_path_factory)
    window = window_of(tmp_path_factory).pooled()
    few = replace(settings.base.factorisation, loss="bce", epochs=2, judge_every=1)
    base = replace(settings.base, factorisation=few, hidden=(), half_life=3.0)
    first, last = int(window.timestamps.min()), int(window.timestamps.max())
    declined = declined_at(window, np.linspace(first, (first + last) // 2, len(window)).astype(int))
    made = train_base(window, base, "global_time", declined=declined, own_ids=False)

    def weighted(log: Interactions) -> Interactions:
        ages = (last - log.timestamps) / (24 * 3600 * 10**6)
        return replace(log, weights=(0.5 ** (ages / 3.0)).astype(np.float32))

    plain = factorise(
        weighted(window), few, seed=base.seed, declined=weighted(declined), epochs=made.epochs
    ).base
    for table in ("user_table", "item_table", "item_bias"):
        ours, theirs = (getattr(b, table).materialised() for b in (made.base, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


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
