"""A hierarchy: each level stands frozen on the one above, scores and stores with all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.bank import AdapterBank
from reclora.evaluation import EvaluationConfig, RankingJudge, hold_out
from reclora.hierarchy import Hierarchy, groups_of, regrouped, scorers, train_levels
from reclora.interactions import Interactions
from reclora.shrinkage import shrink, toward_parents
from reclora.store import AdapterStore
from reclora.training import TrainingConfig, train
from tests.plain_models import PlainModel
from tests.small_worlds import KINDS, make_base, make_log

BASE = make_base(num_users=20, num_items=15, hidden=(4,))
SIZES = {"fr": 90, "us": 120, "de": 60, "ca": 25, "at": 8, "nowhere": 0}
REGIONS = {
    "fr": "europe",
    "de": "europe",
    "at": "europe",
    "us": "america",
    "ca": "america",
    "nowhere": "america",
}
ALL = dict.fromkeys(SIZES, "all")
LOG = make_log(BASE, SIZES)
CONFIG = TrainingConfig(epochs=2, batch_rows=16, num_negatives=8)
USERS = torch.arange(len(BASE.users))


@pytest.fixture(scope="module")
def trained() -> Hierarchy:
    return train_levels(BASE, LOG, [ALL, REGIONS], KINDS["rows"], CONFIG)


def test_every_level_stands_on_the_one_above(trained: Hierarchy) -> None:
    top, regions, own = trained.levels
    assert list(top) == ["all"] and set(regions) == {"europe", "america"}
    assert [a.segment for a in trained.adapters] == list(own) == list(SIZES)
    assert top["all"].parent is None
    assert all(region.parent is top["all"] for region in regions.values())
    assert all(own[segment].parent is regions[REGIONS[segment]] for segment in SIZES)
    assert [len(trainings) for trainings in trained.trainings] == [1, 1, 2]
    for segment in ("fr", "ca"):
        scores = [
            scorers(BASE, [adapter])(adapter.segment).scores(USERS)
            for adapter in (top["all"], regions[REGIONS[segment]], own[segment])
        ]
        assert not torch.equal(scores[0], scores[1]) and not torch.equal(scores[1], scores[2])
    # Nothing was learned where nothing was seen.
    nowhere, america = own["nowhere"], regions["america"]
    assert torch.equal(
        scorers(BASE, [nowhere])("nowhere").scores(USERS),
        scorers(BASE, [america])("america").scores(USERS),
    )


def test_scores_equal_plain_loops_over_all_levels(trained: Hierarchy) -> None:
    scorer_of = scorers(BASE, trained.adapters)
    for adapter in trained.adapters:
        expected = PlainModel.of(BASE).adapted(adapter).scores()
        torch.testing.assert_close(scorer_of(adapter.segment).scores(USERS), expected)


def test_each_level_is_what_training_it_alone_gives(trained: Hierarchy) -> None:
    """All in one pass or a segment alone: the same numbers but for rounding."""
    top, regions, own = trained.levels
    whole = LOG.pooled("all")
    bank = AdapterBank.for_log(BASE, whole, KINDS["rows"])
    train(bank, whole, CONFIG, judge=None)
    for name, tensor in bank.adapter("all").tensors.items():
        assert torch.equal(tensor, top["all"].tensors[name])
    alone = LOG.only("ca")
    bank = AdapterBank.for_log(BASE, alone, KINDS["rows"], parent=regions["america"])
    train(bank, alone, CONFIG, judge=None)
    for name, tensor in bank.adapter("ca").tensors.items():
        torch.testing.assert_close(tensor, own["ca"].tensors[name])


def test_it_is_stored_and_comes_back_with_all_that_it_stands_on(
    trained: Hierarchy, tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path)
    store.publish(trained.adapters, reason="hierarchy")
    stored = store.load_all(base_fingerprint=BASE.fingerprint)
    assert {a.segment for a in stored} == set(SIZES)
    again, before = scorers(BASE, stored), scorers(BASE, trained.adapters)
    for adapter in stored:
        assert adapter.parent is not None and adapter.parent.parent is not None
        assert adapter.parent.parent.parent is None
        scores = again(adapter.segment).scores(USERS)
        assert torch.equal(scores, before(adapter.segment).scores(USERS))


def test_validation_chooses_the_epochs_of_every_level() -> None:
    later, before = make_log(BASE, SIZES, seed=3), make_log(BASE, dict.fromkeys(SIZES, 5), seed=4)
    measured = EvaluationConfig(ks=(5,), metrics=("ndcg",))
    found = train_levels(
        BASE, LOG, [ALL, REGIONS], KINDS["bias"], CONFIG,
        validation=later, seen=before, measured=measured,
    )  # fmt: skip
    judge = RankingJudge(hold_out(regrouped(later, REGIONS), regrouped(before, REGIONS), measured))
    bank = AdapterBank.for_log(
        BASE, regrouped(LOG, REGIONS), KINDS["bias"], parent=found.levels[0]["all"]
    )
    alone = train(bank, regrouped(LOG, REGIONS), CONFIG, judge=judge)
    assert found.trainings[1][0].best_epoch == alone.best_epoch
    pd.testing.assert_frame_equal(found.trainings[1][0].curves, alone.curves)
    assert all(0 <= e <= 2 for t in found.trainings[2] for e in t.best_epoch.values())


def test_segments_of_several_regions_shrink_toward_their_own(trained: Hierarchy) -> None:
    later = make_log(BASE, SIZES, seed=3)
    held_out = hold_out(
        later,
        make_log(BASE, dict.fromkeys(SIZES, 5), seed=4),
        EvaluationConfig(ks=(5,), metrics=("ndcg",)),
    )
    shrinkage = shrink(trained.adapters, BASE, held_out, SIZES)
    shrunk = {a.segment: a for a in toward_parents(trained.adapters, shrinkage.factors)}
    assert all(shrunk[a.segment].parent is a.parent for a in trained.adapters)
    assert shrunk["nowhere"].is_served or shrinkage.factors["nowhere"] > 0


def with_column(values: dict[str, list[str]]) -> Interactions:
    """The log with a region for each row, given for each segment in turn."""
    codes = LOG.segment_rows
    regions = [
        values[LOG.segment_names[code]][n % len(values[LOG.segment_names[code]])]
        for n, code in enumerate(codes)
    ]
    return replace(LOG, attributes={"region": pd.Categorical(regions)})


def test_a_level_is_read_from_a_column() -> None:
    log = with_column({segment: [region] for segment, region in REGIONS.items()})
    found = groups_of(log, "region")
    assert found == {s: r for s, r in REGIONS.items() if s != "nowhere"}
    with pytest.raises(ValueError, match=r"no column 'continent', it has \['region'\]"):
        groups_of(log, "continent")
    both = with_column({s: [r, "elsewhere"] for s, r in REGIONS.items()})
    with pytest.raises(ValueError, match="segment 'fr' has 2 values of 'region', such as"):
        groups_of(both, "region")


def test_the_rows_of_a_region_are_those_of_its_countries() -> None:
    found = regrouped(LOG, REGIONS)
    assert found.segment_names == ("europe", "america")
    assert np.diff(found.offsets).tolist() == [90 + 60 + 8, 120 + 25]
    rows = sorted(zip(found.timestamps, found.user_rows, found.item_rows, strict=True))
    assert rows == sorted(zip(LOG.timestamps, LOG.user_rows, LOG.item_rows, strict=True))
    assert (np.diff(found.only("europe").timestamps) >= 0).all()


def test_levels_that_are_no_hierarchy_are_refused() -> None:
    odd = {"fr": "x", "us": "x", "de": "x", "ca": "y", "at": "y", "nowhere": "y"}
    with pytest.raises(ValueError, match="group 'x' of level 1 lies in 'europe' and in 'america'"):
        train_levels(BASE, LOG, [REGIONS, odd], KINDS["bias"], CONFIG)
    missing = {s: r for s, r in REGIONS.items() if s != "de"}
    with pytest.raises(ValueError, match="segment 'de' has no group"):
        train_levels(BASE, LOG, [missing], KINDS["bias"], CONFIG)
    with pytest.raises(ValueError, match="segment 'de' has no group: give one for each"):
        regrouped(LOG, missing)
