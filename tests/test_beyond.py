"""What lists are like, by user and by catalogue, equals plain loops."""

import math

import numpy as np
import pytest
import torch

from reclora.comparison import means
from reclora.evaluation import (
    EvaluationConfig,
    HeldOut,
    Lists,
    SegmentLists,
    hold_out,
    measure_catalogue,
    measure_lists,
)
from tests import reference
from tests.test_evaluation import as_interactions

NUM_ITEMS = 7
SEEN = [("de", 0, 0), ("us", 1, 0), ("us", 1, 1), ("jp", 2, 2), ("de", 2, 2)]
HELD = [("de", 0, 3), ("us", 1, 4), ("us", 2, 5)]
SHOWN = {("de", 0): [3, 1, 0], ("us", 1): [4], ("us", 2): []}
OTHER = {("de", 0): [1, 6], ("us", 1): [4, 0], ("us", 2): []}
OWNERS, NUM_SEEN_USERS = [2, 1, 1, 0, 0, 0, 0], 3
FEATURES = np.random.default_rng(0).normal(size=(NUM_ITEMS, 3)).astype(np.float32)


def lists_of(shown: dict[tuple[str, int], list[int]], k: int = 3) -> Lists:
    segments = {}
    for name in ("de", "us"):
        users = sorted(user for segment, user in shown if segment == name)
        rows = [shown[name, user] + [-1] * (k - len(shown[name, user])) for user in users]
        segments[name] = SegmentLists(torch.tensor(users), torch.tensor(rows))
    return Lists(segments)


def held_out(candidates: str = "catalogue", ks: tuple[int, ...] = (3, 2)) -> HeldOut:
    config = EvaluationConfig(ks=ks, candidates=candidates)  # type: ignore[arg-type]
    return hold_out(as_interactions(HELD), as_interactions(SEEN), config)


def test_every_list_equals_the_reference() -> None:
    table = measure_lists(
        held_out(),
        lists_of(SHOWN),
        model="m",
        run="r",
        seed=3,
        features_NF=FEATURES,
        others=lists_of(OTHER),
    )
    assert set(table["seed"]) == {3} and set(table["model"]) == {"m"}
    found = {(r.segment, int(r.user_id[1:]), r.metric, r.k): r.value for r in table.itertuples()}
    expected = {}
    for (segment, user), ranked in SHOWN.items():
        for k in (3, 2):
            values = {
                "novelty": reference.novelty(ranked, OWNERS, NUM_SEEN_USERS, k),
                "popularity": reference.popularity(ranked, OWNERS, NUM_SEEN_USERS, k),
                "diversity": reference.diversity(ranked, FEATURES.tolist(), k),
                "overlap": reference.overlap(ranked, OTHER[segment, user], k),
            }
            expected |= {(segment, user, name, k): value for name, value in values.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5, nan_ok=True), key


def test_users_without_a_value_are_not_in_the_mean() -> None:
    table = means(measure_lists(held_out(), lists_of(SHOWN), model="m", run="r", seed=0))
    whole = table[(table["scope"] == "all") & (table["metric"] == "novelty") & (table["k"] == 3)]
    assert whole["users"].tolist() == [2]


def test_a_list_overlaps_wholly_with_itself() -> None:
    shown = lists_of(SHOWN)
    table = measure_lists(held_out(), shown, model="m", run="r", seed=0, others=shown)
    values = table.loc[table["metric"] == "overlap", "value"]
    assert set(values.dropna()) == {1.0} and values.isna().sum() == 2


def test_without_a_seen_log_nothing_is_novel_or_popular() -> None:
    config = EvaluationConfig(ks=(3,))
    alone = hold_out(as_interactions(HELD), as_interactions([]), config)
    assert measure_lists(alone, lists_of(SHOWN), model="m", run="r", seed=0).empty
    table = measure_catalogue(alone, lists_of(SHOWN), model="m", run="r", seed=0)
    assert set(table["metric"]) == {"coverage", "gini"}


@pytest.mark.parametrize("candidates", ["catalogue", "segment"])
def test_the_catalogue_by_segment_and_together(candidates: str) -> None:
    of_segment = {"de": 2, "us": 2}  # items seen there: {0, 2} and {0, 1}; {0, 1, 2} in either
    table = measure_catalogue(held_out(candidates), lists_of(SHOWN), model="m", run="r", seed=0)
    found = {(r.scope, r.segment, r.metric, r.k): r.value for r in table.itertuples()}
    groups = {("all", ""): list(SHOWN.values())}
    for name in ("de", "us"):
        groups["segment", name] = [shown for (s, _), shown in SHOWN.items() if s == name]
    assert len(found) == len(groups) * 2 * 2
    for (scope, name), lists in groups.items():
        num = NUM_ITEMS
        if candidates == "segment":
            num = of_segment.get(name, 3)
        if candidates == "segment":
            # What is no candidate leaves a place empty.
            own = {"de": {0, 2}, "us": {0, 1}}
            lists = [
                [item if item in own[segment] else None for item in each]
                for (segment, _), each in SHOWN.items()
                if scope == "all" or segment == name
            ]
        for k in (3, 2):
            kept = [[item for item in each[:k] if item is not None] for each in lists]
            assert found[scope, name, "coverage", k] == pytest.approx(
                reference.coverage(kept, num, k)
            )
            assert found[scope, name, "gini", k] == pytest.approx(
                reference.gini(kept, num, k), nan_ok=True
            )
    assert not math.isnan(found["all", "", "coverage", 3])


def one_list(items: list[int], segment: str = "de", user: int = 0) -> Lists:
    return Lists({segment: SegmentLists(torch.tensor([user]), torch.tensor([items]))})


def test_an_empty_list_shares_nothing_with_one_that_is_not() -> None:
    held = hold_out(
        as_interactions([("de", 0, 3)]), as_interactions(SEEN), EvaluationConfig(ks=(2,))
    )
    table = measure_lists(
        held, one_list([-1, -1]), model="m", run="r", seed=0, others=one_list([3, 4])
    )
    values = table.set_index("metric")["value"]
    assert values["overlap"] == 0.0
    assert math.isnan(values["novelty"]) and math.isnan(values["popularity"])


def test_shares_of_the_catalogue_are_within_0_to_1() -> None:
    """Of the segment's candidates 0 and 2; a list of another system may hold others."""
    config = EvaluationConfig(ks=(3,), candidates="segment")
    held = hold_out(as_interactions([("de", 1, 3)]), as_interactions(SEEN), config)
    shown = one_list([3, 4, 5], user=1)
    table = measure_catalogue(held, shown, model="m", run="r", seed=0)
    known = table["value"].dropna()
    assert known.between(0, 1).all(), table[["scope", "metric", "value"]].to_string()
