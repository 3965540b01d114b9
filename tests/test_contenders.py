"""Every trained model is tuned alike, on validation, and what was chosen is what is measured."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.base import BaseModel
from reclora.evaluation import HeldOut, evaluate
from reclora.interactions import Interactions
from reclora.pipelines import contenders as contenders_module
from reclora.pipelines.contenders import (
    SUBJECT,
    Contender,
    Ground,
    choose,
    contenders,
    grid,
    headline,
    train_contender,
)
from reclora.pipelines.retrain import onto_base
from reclora.pipelines.run import RunSettings, Search
from reclora.ranking import Scorer
from reclora.splits import split
from reclora.training import TrainingConfig
from tests.small_runs import finished

World = tuple[RunSettings, Ground]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    settings, _ = finished(tmp_path_factory)
    log = split(Interactions.read(settings.log_folder), settings.split)
    base, windows, _ = onto_base(BaseModel.load(settings.base_folder), log, settings)
    seen = windows.pretrain.joined(windows.train)
    return settings, Ground(base, windows.train, windows.validation, seen, settings.evaluation)


def chosen(
    world: World, contender: Contender, search: Search, told: Callable[[int, int], None]
) -> tuple[TrainingConfig, pd.DataFrame]:
    settings, ground = world
    return choose(contender, ground, replace(settings, search=search), told)


def test_the_grid_is_every_combination() -> None:
    found = grid(TrainingConfig(epochs=7), Search((0.1, 0.2), (0.3,), (0.0, 0.5)))
    assert [(c.rows_lr, c.bias_lr, c.l2) for c in found] == [
        (0.1, 0.3, 0.0),
        (0.1, 0.3, 0.5),
        (0.2, 0.3, 0.0),
        (0.2, 0.3, 0.5),
    ]
    assert {c.epochs for c in found} == {7}
    (as_it_is,) = grid(TrainingConfig(rows_lr=0.7, l2=0.3), Search((), (0.2,), ()))
    assert (as_it_is.rows_lr, as_it_is.bias_lr, as_it_is.l2) == (0.7, 0.2, 0.3)


def test_a_run_compares_one_way_per_segment_with_pooled_ones(world: World) -> None:
    models = contenders(world[0])
    assert [c.model for c in models if not c.is_pooled] == [SUBJECT]
    assert len({c.model for c in models}) == len(models) == 3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_best_on_validation_is_chosen(world: World, place: int) -> None:
    settings, ground = world
    contender = contenders(settings)[place]
    told: list[tuple[int, int]] = []
    search = Search((1e-6, 0.05), (1e-6, 0.05), (0.01,))
    config, tried = chosen(world, contender, search, lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert tried.columns.tolist() == ["model", "rows_lr", "bias_lr", "l2", "value", "chosen"]
    assert len(tried) == 4 and tried["chosen"].sum() == 1 and tried["value"].nunique() > 1
    assert tried.loc[tried["chosen"], "value"].item() == tried["value"].max()
    assert config.rows_lr == tried.loc[tried["chosen"], "rows_lr"].item()


def test_epochs_and_settings_are_chosen_by_different_users(world: World) -> None:
    _, ground = world
    rows = {
        users: [s.user_rows_U.tolist() for s in replace(ground, users=users).held_out.segments]
        for users in ("all", "even", "odd")
    }
    for whole, even, odd in zip(rows["all"], rows["even"], rows["odd"], strict=True):
        assert sorted(even + odd) == whole
        assert all(row % 2 == 0 for row in even) and all(row % 2 == 1 for row in odd)
    assert sum(map(len, rows["even"])) > 10 and sum(map(len, rows["odd"])) > 10
    pooled = replace(ground, users="odd").pooled.held_out.segments
    assert sorted(pooled[0].user_rows_U.tolist()) == sorted(sum(rows["odd"], []))


def test_settings_are_compared_by_the_users_that_chose_no_epoch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `choose` hands to training and to the comparison, watched as it passes."""
    settings, ground = world
    grounds: list[str] = []
    compared: list[set[int]] = []
    monkeypatch.setattr(
        contenders_module,
        "train_contender",
        lambda c, g, *rest: grounds.append(g.users) or train_contender(c, g, *rest),
    )
    monkeypatch.setattr(
        contenders_module,
        "headline",
        lambda h, *rest: compared.append(users_of(h)) or headline(h, *rest),
    )
    for contender in contenders(settings):
        choose(contender, ground, settings, lambda *done: None)
    assert set(grounds) == {"even"} and len(compared) == len(grounds) >= 3
    for users in compared:
        assert users and all(row % 2 == 1 for row in users)


def users_of(held_out: HeldOut) -> set[int]:
    return {row for segment in held_out.segments for row in segment.user_rows_U.tolist()}


def test_a_half_without_users_is_the_whole(world: World) -> None:
    _, ground = world
    some = ground.validation.user_rows[ground.validation.user_rows % 2 == 0][:1]
    only = ground.validation.select(np.isin(ground.validation.user_rows, some))
    alone = replace(ground, validation=only, users="odd")
    assert alone.held_out.num_users == replace(alone, users="all").held_out.num_users > 0


def test_of_equal_settings_the_first_is_chosen(world: World) -> None:
    """Rates too small to change an order: all settings are as good as the base."""
    contender = contenders(world[0])[1]
    _, tried = chosen(world, contender, Search((1e-9, 1e-8), (1e-9,), (0.0,)), lambda *done: None)
    assert tried["value"].nunique() == 1
    assert tried["chosen"].tolist() == [True, False]


def test_the_headline_is_the_mean_over_all_users(world: World) -> None:
    settings, ground = world
    scorer = ground.base.scorer()
    found = headline(ground.held_out, lambda name: scorer, "base")
    assert settings.evaluation.ks[0] == 10 and settings.evaluation.metrics[0] == "ndcg"
    table = evaluate(ground.held_out, lambda name: scorer, model="base", run="", seed=0)
    values = table[(table["metric"] == "ndcg") & (table["k"] == 10)]["value"]
    assert found == pytest.approx(values.mean())


def test_a_pooled_model_is_the_same_for_every_segment(world: World) -> None:
    settings, ground = world
    users = torch.arange(5)

    def scores(scorer_of: Callable[[str], Scorer]) -> list[torch.Tensor]:
        return [scorer_of(name).scores(users) for name in ground.log.segment_names]

    pooled, each = (
        train_contender(contender, ground, replace(settings.training, rows_lr=0.3), 0)
        for contender in contenders(settings)[1:]
    )
    assert pooled.bank.segment_names == ("pooled",)
    first, *others = scores(pooled.scorer_of())
    assert all(torch.equal(first, other) for other in others)
    first, *others = scores(each.scorer_of())
    assert not all(torch.equal(first, other) for other in others)


def test_what_contenders_train_on_is_pooled_once(world: World) -> None:
    _, ground = world
    pooled = ground.pooled
    assert ground.pooled is pooled and pooled.log.segment_names == ("pooled",)
    assert len(pooled.log) == len(ground.log) and len(pooled.seen) == len(ground.seen)
    assert np.array_equal(
        np.sort(pooled.validation.item_rows), np.sort(ground.validation.item_rows)
    )
