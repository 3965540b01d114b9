"""Every trained model is tuned alike, on validation, and what was chosen is what is measured."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import FULL, AdapterConfig
from reclora.datasets.planted import PlantedConfig, plant
from reclora.evaluation import EvaluationConfig, HeldOut, evaluate, hold_out
from reclora.files import write_parquet
from reclora.interactions import IdMap, Interactions, LogContract, prepare_log
from reclora.ladder import rungs
from reclora.pipelines import contenders as contenders_module
from reclora.pipelines.contenders import (
    ALONE,
    ON_POOLED,
    OWN_FULL,
    POOLED,
    POOLED_FULL,
    SEARCHED,
    SUBJECT,
    Choice,
    Contender,
    Ground,
    Trained,
    choose,
    contenders,
    grid,
    headline_values,
    num_folds,
    train_contender,
)
from reclora.pipelines.inputs import onto_base
from reclora.pipelines.run import RESIDUAL, Compared, RunSettings, Search
from reclora.ranking import Scorer
from reclora.splits import SplitConfig, split
from reclora.training import TrainingConfig
from tests.small_runs import finished, small_settings
from tests.small_worlds import numbers

World = tuple[RunSettings, Ground]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    settings, _ = finished(tmp_path_factory)
    log = split(Interactions.read(settings.log_folder), settings.split)
    base, windows, _ = onto_base(BaseModel.load(settings.base_folder), log, settings)
    seen = windows.pretrain.joined(windows.train)
    return settings, Ground(base, windows.train, windows.validation, seen, settings.evaluation)


def quiet(done: int, steps: int) -> None:
    """Progress that nobody watches."""


def chosen(
    world: World, contender: Contender, search: Search, told: Callable[[int, int], None]
) -> tuple[TrainingConfig, pd.DataFrame]:
    settings, ground = world
    choice = choose(contender, (ground,), replace(settings, search=search), told)
    return choice.config, choice.tried


def test_the_grid_is_every_combination() -> None:
    found = grid(TrainingConfig(epochs=7), Search((0.1, 0.2), (0.3,), (0.5,), (0.0, 9.0)))
    assert [(c.rows_lr, c.bias_lr, c.l2, c.shrinkage) for c in found] == [
        (0.1, 0.3, 0.5, 0.0),
        (0.1, 0.3, 0.5, 9.0),
        (0.2, 0.3, 0.5, 0.0),
        (0.2, 0.3, 0.5, 9.0),
    ]
    assert {c.epochs for c in found} == {7}
    given = TrainingConfig(rows_lr=0.7, l2=0.3, shrinkage=4.0)
    (as_it_is,) = grid(given, Search((), (0.2,), ()))
    assert as_it_is == replace(given, bias_lr=0.2)


def test_what_has_no_delta_of_tables_is_searched_by_its_own_rate_alone() -> None:
    training, search = TrainingConfig(), Search((0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.0, 9.0))
    bias = rungs(AdapterConfig())["bias"]
    found = grid(training, search, bias)
    assert [(c.rows_lr, c.bias_lr, c.l2, c.shrinkage) for c in found] == [
        (0.1, 0.3, 0.5, 0.0),
        (0.1, 0.4, 0.5, 0.0),
    ]
    for config in (None, AdapterConfig(), replace(bias, item_table="map")):
        assert len(grid(training, search, config)) == 16


def test_a_run_compares_what_is_published_with_its_parent_and_with_no_parent(world: World) -> None:
    settings, _ = world
    full, pooled, alone, subject = contenders(settings)
    assert (pooled.model, alone.model, subject.model) == (POOLED, ALONE, SUBJECT)
    assert full == Contender("pooled full fine-tune", FULL, is_pooled=True)
    assert pooled.is_pooled and not alone.is_pooled and not subject.is_pooled
    assert [c.has_parent for c in contenders(settings)] == [False, False, False, True]
    assert {pooled.config, alone.config, subject.config} == {settings.adapter}
    old = contenders(replace(settings, parent="none"))
    assert old == (full, pooled, replace(alone, model=SUBJECT))


def test_of_a_parent_that_is_tried_there_are_two_subjects(world: World) -> None:
    """Where one is live they stand on it: what serves others is not left by some."""
    auto = replace(world[0], parent="auto", compared=())
    pooled, alone, above = contenders(auto)
    assert pooled.model == POOLED and alone.model == above.model == SUBJECT
    assert not alone.has_parent and above == replace(alone, has_parent=True)
    assert contenders(auto, has_parent=True) == (above,)


def test_everything_that_can_be_compared_is(world: World) -> None:
    everything = get_args(Compared)
    settings = replace(world[0], compared=everything)
    kinds = rungs(settings.adapter)
    lower = [f"per-segment {name}" for name in ("bias", "map", "basis")]
    trained = {c.model: c for c in contenders(settings)}
    assert list(trained) == [POOLED_FULL, OWN_FULL, *lower, POOLED, ALONE, ON_POOLED, SUBJECT]
    assert trained[OWN_FULL] == Contender(OWN_FULL, FULL, is_pooled=False)
    for name in lower:
        assert trained[name] == Contender(name, kinds[name.split()[1]], is_pooled=False)
    assert trained[ON_POOLED] == replace(trained[SUBJECT], model=ON_POOLED)
    assert trained[SUBJECT].has_parent
    alone = [c.model for c in contenders(replace(settings, parent="none"))]
    assert alone == [POOLED_FULL, OWN_FULL, *lower, POOLED, SUBJECT]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_best_on_validation_is_chosen(world: World, place: int) -> None:
    settings, ground = world
    contender = contenders(settings)[place]
    told: list[tuple[int, int]] = []
    search = Search((1e-6, 0.05), (0.05,), (0.01,))
    config, tried = chosen(world, contender, search, lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    assert tried.columns.tolist() == ["model", *SEARCHED, "value", "chosen"]
    assert len(tried) == 2 and tried["chosen"].sum() == 1 and tried["value"].nunique() > 1
    assert tried.loc[tried["chosen"], "value"].item() == tried["value"].max()
    assert config.rows_lr == tried.loc[tried["chosen"], "rows_lr"].item()


def test_epochs_and_settings_are_chosen_by_different_users(world: World) -> None:
    _, ground = world
    rows = {
        users: [s.user_rows_U.tolist() for s in replace(ground, users=users).held_out.segments]
        for users in ("even", "odd")
    }
    whole_window = hold_out(ground.validation, ground.seen, ground.evaluation)
    for segment, even, odd in zip(whole_window.segments, rows["even"], rows["odd"], strict=True):
        assert sorted(even + odd) == segment.user_rows_U.tolist()
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
        "headline_values",
        lambda g, *rest: compared.append(users_of(g.held_out)) or headline_values(g, *rest),
    )
    ladder = rungs(settings.adapter)
    _, pooled, _, subject = contenders(settings)
    parent = choose(pooled, (ground,), settings, quiet).stopped[0].bank.adapters()[0]
    choose(subject, (replace(ground, parent=parent),), settings, quiet)
    # The parent's own rung trains nothing, the top was trained to choose its settings.
    assert grounds == ["even"] * (1 + 1 + len(ladder) - 2)
    assert len(compared) == 1 + 1 + len(ladder)
    for users in compared:
        assert users and all(row % 2 == 1 for row in users)


def test_where_users_are_few_both_halves_compare(world: World) -> None:
    """Each on what the other stopped: the value of a setting is the mean over all of them."""
    settings, ground = world
    pooled = contenders(settings)[1]
    folds = (ground, ground.opposite)
    choice = choose(pooled, folds, settings, quiet)
    values = []
    for fold, stopped in zip(folds, choice.stopped, strict=True):
        again = train_contender(pooled, fold, choice.config, settings.seeds[0])
        assert again.training.best_epoch == stopped.training.best_epoch
        values.append(headline_values(fold.opposite, again))
    users = [set(v["user_id"]) for v in values]
    assert not users[0] & users[1] and len(users[0]) > 10 and len(users[1]) > 10
    whole = hold_out(ground.validation, ground.seen, settings.evaluation)
    assert len(users[0] | users[1]) == len(users_of(whole))
    assert choice.values["value"].mean() == pytest.approx(pd.concat(values)["value"].mean())
    assert choice.tried.loc[choice.tried["chosen"], "value"].item() == choice.values["value"].mean()


def test_a_rung_is_worth_what_both_halves_say(shifted: World) -> None:
    settings, ground = shifted
    _, pooled, _, subject = contenders(settings)
    folds = (replace(ground, parent=None), replace(ground.opposite, parent=None))
    parents = [t.bank.adapters()[0] for t in choose(pooled, folds, settings, quiet).stopped]
    above = [replace(f, parent=p) for f, p in zip(folds, parents, strict=True)]
    choice = choose(subject, above, settings, quiet)
    assert choice.rungs is not None and isinstance(choice.contender.config, tuple)
    (chosen,) = choice.rungs[choice.rungs["chosen"]].to_dict("records")
    assert chosen["users"] == sum(f.held_out.num_users for f in folds)
    assert choice.values["value"].mean() == pytest.approx(chosen["mean"], abs=1e-12)
    values = []
    for fold in above:
        trained = train_contender(choice.contender, fold, choice.config, settings.seeds[0])
        values.append(headline_values(fold.opposite, trained))
    assert choice.values["value"].mean() == pytest.approx(
        pd.concat(values)["value"].mean(), abs=1e-6
    )


def test_one_half_compares_where_it_is_enough_or_nothing_is_chosen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, ground = world
    validation = ground.validation
    assert num_folds(settings, validation) == 2
    given = replace(settings, kinds="given", parent="pooled", search=Search((), (), ()))
    assert num_folds(given, validation) == 1
    for chosen in (
        replace(given, kinds="auto"),
        replace(given, parent="auto"),
        replace(given, search=Search((), (0.1, 0.2), ())),
    ):
        assert num_folds(chosen, validation) == 2
    even = validation.select(validation.user_rows % 2 == 0)
    assert num_folds(settings, even) == 1
    users = len(np.unique(validation.user_rows))
    monkeypatch.setattr(contenders_module, "CROSSED_BELOW", users)
    assert num_folds(settings, validation) == 1
    monkeypatch.setattr(contenders_module, "CROSSED_BELOW", users + 1)
    assert num_folds(settings, validation) == 2


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
    _, tried = chosen(world, contender, Search((1e-9, 1e-8), (1e-9,), (0.0,)), quiet)
    assert tried["value"].nunique() == 1
    assert tried["chosen"].tolist() == [True, False]


def test_the_headline_is_the_mean_over_all_users(world: World) -> None:
    settings, ground = world
    trained = train_contender(contenders(settings)[1], ground, settings.training, 0)
    found = mean_of(ground, trained)
    assert settings.evaluation.ks[0] == 10 and settings.evaluation.metrics[0] == "ndcg"
    table = evaluate(ground.held_out, trained.scorer_of(), model="m", run="", seed=0)
    values = table[(table["metric"] == "ndcg") & (table["k"] == 10)]["value"]
    assert found == pytest.approx(values.mean())


def mean_of(ground: Ground, trained: Trained) -> float:
    return float(headline_values(ground, trained)["value"].mean())


def test_a_pooled_model_is_the_same_for_every_segment(world: World) -> None:
    settings, ground = world
    users = torch.arange(5)

    def scores(scorer_of: Callable[[str], Scorer]) -> list[torch.Tensor]:
        return [scorer_of(name).scores(users) for name in ground.log.segment_names]

    _, whole, apart, _ = contenders(settings)
    pooled, each = (
        train_contender(contender, ground, replace(settings.training, rows_lr=0.3), 0)
        for contender in (whole, apart)
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


# Parents and kinds.


@cache
def _planted(folder: Path, shift: float, bias_shift: float) -> World:
    """A world over its true tables, in which every segment shifts alike, each in its own way."""
    truth = plant(
        PlantedConfig(
            num_users=240,
            num_items=150,
            dim=8,
            num_segments=4,
            unshifted_segments=0,
            tiny_segments=0,
            num_base_interactions=8000,
            num_interactions=8000,
            shift=shift,
            bias_shift=bias_shift,
        )
    )
    folder.mkdir()
    write_parquet(folder / "log.parquet", truth.table())
    base = BaseModel.of(
        IdMap(truth.user_ids),
        IdMap(truth.item_ids),
        *map(torch.from_numpy, (truth.user_vectors, truth.item_vectors, truth.item_bias)),
    )
    prepare_log([folder / "log.parquet"], folder / "log", LogContract())
    log, _ = Interactions.read(folder / "log").onto(base.users, base.items)
    windows = split(log, SplitConfig(pretrain=0.5, train=0.3, validation=0.1, test=0.1))
    settings = small_settings(
        folder,
        folder / "log.parquet",
        training=TrainingConfig(epochs=6, batch_rows=32, num_negatives=32),
        search=Search((0.05,), (0.2,), (0.01,)),
        evaluation=EvaluationConfig((10,), ("ndcg",)),
    )
    seen = windows.pretrain.joined(windows.train)
    ground = Ground(base, windows.train, windows.validation, seen, settings.evaluation)
    pooled = contenders(settings)[1]
    (stopped,) = choose(pooled, (ground,), settings, quiet).stopped
    return settings, replace(ground, parent=stopped.bank.adapters()[0])


@pytest.fixture
def shifted(tmp_path_factory: pytest.TempPathFactory) -> World:
    return _planted(tmp_path_factory.getbasetemp() / "shifted", 1.0, 4.0)


@pytest.fixture
def unshifted(tmp_path_factory: pytest.TempPathFactory) -> World:
    return _planted(tmp_path_factory.getbasetemp() / "unshifted", 0.0, 0.0)


def picked(world: World, **changes: Any) -> Choice:
    settings, ground = world
    return choose(contenders(settings)[-1], (ground,), replace(settings, **changes), quiet)


def test_segments_that_differ_stand_above_their_parent(shifted: World) -> None:
    settings, ground = shifted
    choice = picked(shifted)
    ladder = rungs(settings.adapter)
    assert isinstance(choice.contender.config, tuple) and choice.rungs is not None
    assert choice.rungs["rung"].tolist() == list(ladder)
    rung = choice.rungs.loc[choice.rungs["chosen"], "rung"].item()
    assert rung != "parent" and set(choice.contender.config) == {ladder[rung]}
    judged = choice.rungs.set_index("rung")["mean"]
    assert judged[rung] > judged["parent"] + 0.02
    trained = train_contender(choice.contender, ground, choice.config, 0)
    assert trained.bank.configs == choice.contender.config
    assert set(trained.helped) == set(ground.log.segment_names)
    assert trained.parent is ground.parent


def test_segments_that_want_the_same_are_served_by_their_parent(unshifted: World) -> None:
    """Nothing of their own is trained, and they score what the parent does to the bit."""
    settings, ground = unshifted
    choice = picked(unshifted)
    nothing = rungs(settings.adapter)["parent"]
    assert choice.contender.config == (nothing,) * 4
    trained = train_contender(choice.contender, ground, choice.config, 0)
    assert trained.training.steps == 0 and trained.helped == []
    assert ground.parent is not None
    below = AdapterBank.of(ground.base, [ground.parent]).scorer("pooled")
    users = torch.arange(9)
    for name in ground.log.segment_names:
        assert torch.equal(trained.scorer_of()(name).scores(users), below.scores(users))
        assert trained.bank.adapter(name).num_numbers == 0


def test_rungs_are_the_segments_trained_so_and_judged_apart(shifted: World) -> None:
    """What the rule is given, made again one rung at a time."""
    settings, ground = shifted
    choice = picked(shifted)
    assert choice.rungs is not None
    even, odd = (replace(ground, users=users) for users in ("even", "odd"))
    for rung, kinds in rungs(settings.adapter).items():
        contender = replace(contenders(settings)[-1], config=kinds)
        trained = train_contender(contender, even, choice.config, settings.seeds[0])
        mean = mean_of(odd, trained)
        said = choice.rungs.set_index("rung").loc[rung]
        assert said["mean"] == pytest.approx(mean, abs=1e-12)
        assert said["users"] == odd.held_out.num_users
    top = choice.tried.loc[choice.tried["chosen"], "value"].item()
    assert choice.rungs["mean"].iloc[-1] == pytest.approx(top, abs=1e-12)


def test_given_kinds_are_all_that_the_adapter_says(shifted: World) -> None:
    settings, ground = shifted
    told: list[tuple[int, int]] = []
    subject = contenders(settings)[-1]
    mine = replace(settings, kinds="given")
    choice = choose(subject, (ground,), mine, lambda *done: told.append(done))
    assert choice.contender == subject and choice.rungs is None
    assert told == [(1, 1)]
    choose(subject, (ground,), settings, lambda *done: told.append(done))
    assert told[1:] == [(n, 6) for n in range(1, 7)]


def test_only_what_is_published_has_its_kinds_picked(shifted: World) -> None:
    settings, ground = shifted
    full, pooled, alone, _ = contenders(settings)
    on_pooled = contenders(replace(settings, compared=(RESIDUAL,)))[1]
    assert on_pooled.model == ON_POOLED
    for contender in (full, pooled, alone, on_pooled):
        choice = choose(contender, (ground,), settings, quiet)
        assert choice.rungs is None and choice.contender == contender
        assert (choice.stopped[0].parent is None) == (contender.model != ON_POOLED)


def test_kinds_are_picked_where_there_is_no_parent(shifted: World) -> None:
    """The lowest rung is then the base alone, whatever parent lies beside it."""
    settings, ground = shifted
    mine = replace(settings, parent="none")
    choice = choose(contenders(mine)[-1], (ground,), mine, quiet)
    assert choice.rungs is not None and not choice.contender.has_parent
    odd = replace(ground, users="odd")
    judged = choice.rungs.set_index("rung")
    frozen = ground.base.scorer()
    table = evaluate(odd.held_out, lambda name: frozen, model="m", run="", seed=0)
    assert judged["mean"]["parent"] == pytest.approx(table["value"].mean(), abs=1e-12)
    (rung,) = judged.index[judged["chosen"]]
    assert rung != "parent"
    assert choice.contender.config == (rungs(settings.adapter)[rung],) * 4
    trained = train_contender(choice.contender, ground, choice.config, 0)
    assert trained.parent is None and trained.helped


def test_without_a_parent_something_is_trained_however_little_it_helps(unshifted: World) -> None:
    """Each segment's own validation then says no: a bank without any delta cannot be trained."""
    settings, ground = unshifted
    mine = replace(settings, parent="none", search=Search((1e-9,), (1e-9,), (0.0,)))
    choice = choose(contenders(mine)[-1], (ground,), mine, quiet)
    assert choice.rungs is not None
    assert choice.rungs.loc[choice.rungs["chosen"], "rung"].tolist() == ["parent"]
    assert choice.contender.config == settings.adapter
    trained = train_contender(choice.contender, ground, choice.config, 0)
    assert trained.training.steps > 0 and trained.helped == []


def test_a_segment_without_rows_or_users_stands_with_the_nearest_size(shifted: World) -> None:
    settings, ground = shifted
    name, *others = ground.log.segment_names
    code = ground.log.segment_names.index(name)

    def without(log: Interactions) -> Interactions:
        keep = np.ones(len(log), bool)
        keep[log.offsets[code] : log.offsets[code + 1]] = False
        return log.select(keep)

    empty = replace(ground, log=without(ground.log), validation=without(ground.validation))
    choice = picked((settings, empty))
    assert choice.rungs is not None and set(choice.rungs["segments"]) == {4}
    trained = train_contender(choice.contender, empty, choice.config, 0)
    assert trained.helped == others and trained.training.best_epoch[name] == 0
    users = torch.arange(5)
    fresh = AdapterBank.for_log(empty.base, empty.log, choice.contender.config, 0, empty.parent)
    assert torch.equal(trained.bank.scorer(name).scores(users), fresh.scorer(name).scores(users))


def test_row_dropout_drops_from_those_that_have_a_row_factor(shifted: World) -> None:
    """The full fine-tune and the low rungs have none, and go on without."""
    settings, ground = shifted
    dropping = replace(settings.training, row_dropout=0.5, rows_lr=0.1, epochs=2)
    full, _, alone, _ = contenders(settings)
    bias = replace(alone, config=rungs(settings.adapter)["bias"])
    some = replace(alone, config=(bias.config,) * 3 + (settings.adapter,))
    for contender, is_changed in ((full, False), (bias, False), (alone, True), (some, True)):
        names = ["pooled"] if contender.is_pooled else ground.log.segment_names
        each, whole = (
            train_contender(contender, ground, config, 0).bank
            for config in (dropping, replace(dropping, row_dropout=0.0))
        )
        assert (numbers(each, names[-1]) != numbers(whole, names[-1])) == is_changed
    choice = picked(shifted, training=dropping)
    assert choice.config.row_dropout == 0.5 and choice.rungs is not None
