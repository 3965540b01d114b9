"""Seeds side by side: a copy is a training with its seed, and what differs is what is said."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.configs import AdapterError
from reclora.counted import under_seed
from reclora.evaluation import (
    EvaluationConfig,
    HeldOut,
    Lists,
    RankingJudge,
    evaluate,
    hold_out,
    recommend,
)
from reclora.interactions import Interactions
from reclora.stability import (
    NOT_DECIDED,
    adapters_under,
    agreed,
    averaged,
    copied,
    copied_users,
    overlaps,
    spread,
    training_under,
)
from reclora.training import Training, TrainingConfig, TrainingError, train
from tests import reference
from tests.small_worlds import KINDS, configs_of, fill, make_base, make_log

BASE = make_base()
LOG = make_log(BASE, weighted=True)
EARLIER = make_log(BASE, seed=3, weighted=True)
"""What users took before."""
HELD_OUT = hold_out(make_log(BASE, seed=5), LOG, EvaluationConfig((5, 3), ("ndcg", "recall")))
SEEDS = 3, 0, 12
SHORT = TrainingConfig(
    epochs=3, patience=1, batch_rows=16, num_negatives=20, rows_lr=0.2, bias_lr=0.2, l2=0.01
)


def parent_of(kind: str) -> Adapter:
    bank = AdapterBank.for_log(BASE, LOG.pooled(), configs_of(kind, ["pooled"]))
    return fill(bank).adapters()[0]


def trained(
    log: Interactions,
    held_out: HeldOut,
    taken: Interactions,
    kind: str,
    parent: Adapter | None,
    seed: int = 0,
) -> tuple[AdapterBank, Training]:
    bank = AdapterBank.for_log(BASE, log, KINDS[kind], seed, parent)
    return bank, train(bank, log, SHORT, judge=RankingJudge(held_out), seed=seed, taken=taken)


# The law.


@pytest.mark.parametrize(("kind", "is_on_parent"), [("rows", False), ("ladder", True)])
def test_each_copy_is_a_training_with_its_seed(kind: str, is_on_parent: bool) -> None:
    parent = parent_of("rows") if is_on_parent else None
    bank, together = trained(
        copied(LOG, SEEDS), copied_users(HELD_OUT, SEEDS), copied(EARLIER, SEEDS), kind, parent
    )
    epochs = []
    for seed in SEEDS:
        alone, training = trained(LOG, HELD_OUT, EARLIER, kind, parent, seed)
        own = training_under(seed, together, LOG.segment_names)
        assert own.best_epoch == training.best_epoch and not own.quarantined
        epochs.append(tuple(own.best_epoch.values()))
        # The order of rows is that of steps, which copies share.
        curves = [t.curves.sort_values(["segment", "epoch"]) for t in (own, training)]
        pd.testing.assert_frame_equal(*(c.reset_index(drop=True) for c in curves), atol=1e-6)
        for found, wanted in zip(
            adapters_under(seed, bank, LOG.segment_names), alone.adapters(), strict=True
        ):
            assert (found.segment, found.config) == (wanted.segment, wanted.config)
            assert found.parent is wanted.parent is parent
            assert found.tensors.keys() == wanted.tensors.keys()
            for name, tensor in wanted.tensors.items():
                torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-6)
    assert max(map(max, epochs)) > 0, "something was learned"
    first, other = (adapters_under(seed, bank, ["market 0"])[0].tensors for seed in SEEDS[:2])
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_copies_have_the_rows_of_their_segment_and_its_users_themselves() -> None:
    many = copied(LOG, SEEDS)
    assert len(many) == 3 * len(LOG) and many.num_segments == 3 * LOG.num_segments
    for name in LOG.segment_names:
        wanted = LOG.only(name)
        for seed in SEEDS:
            found = many.only(under_seed(name, seed))
            for column in ("user_rows", "item_rows", "timestamps", "weights"):
                assert np.array_equal(getattr(found, column), getattr(wanted, column))
    for at, segment in enumerate(copied_users(HELD_OUT, SEEDS).segments):
        own = HELD_OUT.segments[at % len(HELD_OUT.segments)]
        assert segment.name == under_seed(own.name, SEEDS[at // len(HELD_OUT.segments)])
        assert segment.user_rows_U is own.user_rows_U and segment.relevant is own.relevant
    unweighted = make_log(BASE)
    assert copied(unweighted, (1,)).weights is None


@pytest.mark.parametrize("seeds", [(), (1, 2, 1)])
def test_seeds_are_different_ones(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="seeds must be different numbers, at least one, got"):
        copied(LOG, seeds)
    with pytest.raises(ValueError, match="seeds must be different numbers"):
        copied_users(HELD_OUT, seeds)


def test_what_broke_under_a_seed_is_told_by_the_segments_names() -> None:
    many = copied(LOG, SEEDS)
    bank = AdapterBank.for_log(BASE, many, KINDS["rows"])
    with pytest.raises(TrainingError) as caught:
        train(bank, many, TrainingConfig(rows_lr=1e30, bias_lr=1e30, tower_lr=1e30), judge=None)
    own = training_under(SEEDS[1], caught.value.training, LOG.segment_names)
    assert {*own.quarantined} <= {*own.best_epoch} == {*LOG.segment_names}
    assert "market 0" in own.quarantined and "not finite" in own.quarantined["market 0"]
    with pytest.raises(KeyError):
        training_under(99, caught.value.training, LOG.segment_names)
    with pytest.raises(AdapterError, match="the bank has no segment"):
        adapters_under(99, bank, LOG.segment_names)


# What differs.


@pytest.fixture(scope="module")
def lists() -> dict[int, Lists]:
    """Of banks of random numbers, one a seed."""
    return {seed: recommend(HELD_OUT, bank_of(seed).scorer, model="")[""] for seed in SEEDS}


def bank_of(seed: int) -> AdapterBank:
    return fill(AdapterBank.for_log(BASE, LOG, KINDS["rows"], seed), seed)


def test_the_spread_is_that_of_the_seeds_means() -> None:
    results = pd.concat(
        evaluate(HELD_OUT, bank_of(seed).scorer, model="own", run="", seed=seed) for seed in SEEDS
    )
    one = results[(results["metric"] == "ndcg") & (results["k"] == 3)]
    table = spread(one)
    assert table["scope"].tolist() == ["all"] + ["segment"] * (len(table) - 1)
    for row in table.to_dict("records"):
        of = one if row["scope"] == "all" else one[one["segment"] == row["segment"]]
        means = [sum(of["value"][of["seed"] == s]) / row["users"] for s in SEEDS]
        mean = sum(means) / 3
        sd = (sum((m - mean) ** 2 for m in means) / 2) ** 0.5
        found = [row[name] for name in ("mean", "sd", "low", "high")]
        assert found == pytest.approx([mean, sd, min(means), max(means)])
        assert row["users"] == (of["seed"] == SEEDS[0]).sum() and row["seeds"] == 3
    assert table["sd"].iat[0] > 0
    assert np.isnan(spread(one[one["seed"] == 0])["sd"]).all()
    with pytest.raises(ValueError, match="a spread is of one model, metric and k, got"):
        spread(results)
    with pytest.raises(ValueError, match="same users under each seed; .*'market 0'"):
        lost = (one["seed"] == 0) & (one["segment"] == "market 0") & (one["value"] >= 0)
        spread(one[~(lost & (lost.cumsum() == 1))])


def test_overlaps_are_those_of_every_pair_of_seeds(lists: dict[int, Lists]) -> None:
    table = overlaps(HELD_OUT, lists, 4).set_index(["scope", "segment"])["overlap"]
    whole = []
    for segment in HELD_OUT.segments:
        if not segment.num_users:
            assert ("segment", segment.name) not in table.index
            continue
        rows = {seed: its.of(segment, 4).tolist() for seed, its in lists.items()}
        own = [
            reference.overlap(a, b, 4)
            for left, right in combinations(SEEDS, 2)
            for a, b in zip(rows[left], rows[right], strict=True)
        ]
        assert table["segment", segment.name] == pytest.approx(np.mean(own))
        whole += own
    assert table["all", ""] == pytest.approx(np.mean(whole)) and 0 < table["all", ""] < 1
    same = overlaps(HELD_OUT, {0: lists[0], 1: lists[0]}, 4)
    assert (same["overlap"] == 1).all()
    assert overlaps(HELD_OUT, {0: lists[0]}, 4)["overlap"].isna().all()


def test_a_decision_that_flips_is_not_decided() -> None:
    table = agreed(
        {
            0: {"de": "promoted", "fr": "kept", "jp": "fell back"},
            7: {"de": "promoted", "fr": "kept", "jp": "kept"},
            9: {"de": "promoted", "fr": "kept", "jp": "fell back"},
        }
    )
    assert table.to_dict("list") == {
        "segment": ["de", "fr", "jp"],
        "decision": ["promoted", "kept", NOT_DECIDED],
        "fell back": [0, 0, 2],
        "kept": [0, 3, 1],
        "promoted": [3, 0, 0],
    }
    with pytest.raises(ValueError, match="seed 1 decides on other segments .*'fr'"):
        agreed({0: {"de": "kept"}, 1: {"fr": "kept"}})
    with pytest.raises(ValueError, match="at least one seed"):
        agreed({})


# The average.


@pytest.mark.parametrize("kind", ["rows", "items", "full"])
def test_the_average_changes_by_the_mean_of_the_changes(kind: str) -> None:
    parent = parent_of("rows")
    banks = [fill(AdapterBank.for_log(BASE, LOG, KINDS[kind], s, parent), s) for s in SEEDS[:2]]
    mean = averaged([bank.adapters() for bank in banks], is_cut=False)
    assert [adapter.segment for adapter in mean] == list(LOG.segment_names)
    found = AdapterBank.of(BASE, mean)
    for name in ("market 0", "no rows"):
        one, other = (bank.merged(name).item_table.materialised() for bank in banks)
        table = found.merged(name).item_table.materialised()
        torch.testing.assert_close(table, (one + other) / 2, atol=1e-5, rtol=0)


def test_the_average_that_is_cut_is_as_large_as_one() -> None:
    adapters = [bank_of(seed).adapters() for seed in SEEDS[:2]]
    exact, cut = averaged(adapters, is_cut=False), averaged(adapters, is_cut=True)
    for own, whole, small in zip(adapters[0], exact, cut, strict=True):
        assert small.config == own.config and small.num_numbers == own.num_numbers
        assert whole.num_numbers >= own.num_numbers
    assert exact[0].num_numbers > adapters[0][0].num_numbers
    # Of one seed's adapter with itself there is nothing to cut.
    same = AdapterBank.of(BASE, averaged([adapters[0]] * 2, is_cut=True)).merged("market 0")
    wanted = bank_of(SEEDS[0]).merged("market 0").item_table.materialised()
    torch.testing.assert_close(same.item_table.materialised(), wanted, atol=1e-5, rtol=0)


def test_what_has_no_average() -> None:
    magnitudes = [AdapterBank.for_log(BASE, LOG, KINDS["magnitude"], s).adapters() for s in SEEDS]
    with pytest.raises(AdapterError, match="magnitude"):
        averaged(magnitudes, is_cut=False)
    with pytest.raises(AdapterError, match="needs rank 9, but user_table.* has none above 8"):
        averaged([bank_of(seed).adapters() for seed in SEEDS], is_cut=True)
