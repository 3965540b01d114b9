"""Slices change what is relevant and leave the lists as they are."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from reclora.comparison import compare
from reclora.evaluation import (
    EvaluationConfig,
    HeldOut,
    evaluate,
    hold_out,
    measure,
    measure_slice,
    recommend,
    slices_of,
)
from reclora.interactions import IdMap, Interactions
from tests import reference
from tests.test_evaluation import LOGS, as_interactions, everywhere

NUM_USERS, NUM_ITEMS = 6, 8
Row = tuple[str, int, int]


def log(rows: list[Row], devices: list[str] | None = None) -> Interactions:
    return Interactions.from_arrays(
        users=IdMap([f"u{i}" for i in range(NUM_USERS)]),
        items=IdMap([f"i{i}" for i in range(NUM_ITEMS)]),
        segment_names=("de", "us"),
        segments=[("de", "us").index(segment) for segment, _, _ in rows],
        user_rows=[user for _, user, _ in rows],
        item_rows=[item for _, _, item in rows],
        timestamps=np.arange(len(rows)),
        attributes={} if devices is None else {"device": devices},
    )


# Item 0 holds half of what was seen; items 5 to 7 nobody has; user 4 has much, user 5 nothing.
SEEN = [("de", u, 0) for u in (0, 1, 2, 3)] + [("us", 4, i) for i in (1, 2, 3, 4)]
HELD = [("de", 0, 1), ("de", 1, 5), ("us", 4, 0), ("us", 5, 0), ("us", 5, 6), ("de", 4, 7)]
CONFIG = EvaluationConfig(ks=(2,), metrics=("recall",))


def made(devices: list[str] | None = None) -> tuple[HeldOut, dict[str, dict[str, HeldOut]]]:
    heldout, seen = log(HELD, devices), log(SEEN)
    held_out = hold_out(heldout, seen, CONFIG)
    return held_out, slices_of(held_out, heldout, seen)


def relevant(held_out: HeldOut) -> set[Row]:
    """Every relevant item as (segment, user row, item row)."""
    found = set()
    for segment in held_out.segments:
        bounds = segment.relevant.offsets_U1.tolist()
        for u, user in enumerate(segment.user_rows_U.tolist()):
            items = segment.relevant.item_rows[bounds[u] : bounds[u + 1]].tolist()
            found |= {(segment.name, user, item) for item in items}
    return found


def test_every_slice_by_hand() -> None:
    _, slices = made()
    assert {name: {v: relevant(h) for v, h in parts.items()} for name, parts in slices.items()} == {
        "users": {
            "cold": {("us", 5, 0), ("us", 5, 6)},
            "warm": {("de", 0, 1), ("de", 1, 5), ("us", 4, 0), ("de", 4, 7)},
        },
        "items": {
            "cold": {("de", 1, 5), ("us", 5, 6), ("de", 4, 7)},
            "warm": {("de", 0, 1), ("us", 4, 0), ("us", 5, 0)},
        },
        "user activity": {
            "0": {("us", 5, 0), ("us", 5, 6)},
            "1-9": {("de", 0, 1), ("de", 1, 5), ("us", 4, 0), ("de", 4, 7)},
        },
        "item popularity": {
            "cold": {("de", 1, 5), ("us", 5, 6), ("de", 4, 7)},
            "head": {("us", 4, 0), ("us", 5, 0)},
            "tail": {("de", 0, 1)},
        },
    }


def test_the_values_of_a_slice_are_all_that_is_relevant() -> None:
    held_out, slices = made()
    for parts in slices.values():
        together = [row for part in parts.values() for row in relevant(part)]
        assert len(together) == len(set(together))
        assert set(together) == relevant(held_out)


def test_a_slice_that_does_not_split_is_none() -> None:
    heldout, seen = log([("de", 0, 1), ("de", 1, 1)]), log([("de", 0, 0), ("de", 1, 0)])
    slices = slices_of(hold_out(heldout, seen, CONFIG), heldout, seen)
    assert slices == {}


def test_activity_goes_by_decades() -> None:
    seen = [("de", 0, 0)] * 9 + [("de", 1, 0)] * 10 + [("de", 2, 0)] * 99 + [("de", 3, 0)] * 100
    heldout = log([("de", u, 1) for u in range(5)])
    slices = slices_of(hold_out(heldout, log(seen), CONFIG), heldout, log(seen))
    assert {value: relevant(part) for value, part in slices["user activity"].items()} == {
        "0": {("de", 4, 1)},
        "1-9": {("de", 0, 1)},
        "10-99": {("de", 1, 1), ("de", 2, 1)},
        "100-999": {("de", 3, 1)},
    }


def test_attributes_of_the_log_are_slices() -> None:
    _, slices = made(["tv", "web", "tv", "tv", "web", "web"])
    assert {value: relevant(part) for value, part in slices["device"].items()} == {
        "tv": {("de", 0, 1), ("us", 4, 0), ("us", 5, 0)},
        "web": {("de", 1, 5), ("us", 5, 6), ("de", 4, 7)},
    }


def test_lists_stay_and_only_the_slice_counts() -> None:
    held_out, slices = made()
    scores_UN = torch.zeros(NUM_USERS, NUM_ITEMS)
    scores_UN[:, 0], scores_UN[:, 5] = 2.0, 1.0  # everybody is shown items 0 and 5
    shown = recommend(held_out, everywhere(scores_UN), model="m")[""]
    table = measure_slice(
        slices["item popularity"], lambda part: measure(part, shown, model="m", run="r", seed=0)
    )
    means = table.groupby("segment", observed=True)["value"].mean().to_dict()
    # Users 0 and 1 have seen item 0, so they are shown 5 and the lowest other row.
    assert means == {"cold": pytest.approx(1 / 3), "head": 1.0, "tail": 1.0}
    assert not table.duplicated(["segment", "user_id"]).any()


def test_a_slice_is_compared_like_a_segment() -> None:
    """A user in two segments is two units there, too."""
    held_out, slices = made(["tv", "web", "tv", "tv", "web", "web"])
    generator = torch.Generator().manual_seed(0)
    tables = []
    for model in ("a", "b"):
        scorer_of = everywhere(torch.rand(NUM_USERS, NUM_ITEMS, generator=generator))
        tables.append(
            measure_slice(
                slices["device"],
                lambda part, scorer_of=scorer_of, model=model: evaluate(
                    part, scorer_of, model=model, run="r", seed=0
                ),
            )
        )
    rows = compare(pd.concat(tables), "a", "b", metric="recall", k=2)
    assert rows["segment"].tolist() == ["", "tv", "web"]
    assert rows["users"].tolist() == [6, 3, 3]


def with_attribute(name: str, values: list[str]) -> Interactions:
    return Interactions.from_arrays(
        users=IdMap(["u0", "u1", "u2"]),
        items=IdMap(["a", "b"]),
        segment_names=("us",),
        segments=[0] * len(values),
        user_rows=np.arange(len(values)) % 3,
        item_rows=[0] * len(values),
        timestamps=np.arange(len(values)),
        attributes={name: values},
    )


@settings(max_examples=40, deadline=None)
@given(LOGS, LOGS)
def test_users_of_a_slice_of_users_sum_to_all_users(
    heldout: reference.Log, seen: reference.Log
) -> None:
    held, before = as_interactions(heldout), as_interactions(seen)
    held_out = hold_out(held, before, CONFIG)
    slices = slices_of(held_out, held, before)
    for name in ("users", "user activity"):
        if name in slices:
            assert sum(part.num_users for part in slices[name].values()) == held_out.num_users
    for parts in slices.values():
        assert sum(part.num_users for part in parts.values()) >= held_out.num_users


def test_values_of_an_attribute_come_by_name() -> None:
    held = with_attribute("device", ["tv", "phone", "watch"])
    before = held.select(np.zeros(len(held), bool))
    slices = slices_of(hold_out(held, before, CONFIG), held, before)
    assert list(slices["device"]) == ["phone", "tv", "watch"]


def test_an_attribute_does_not_take_the_place_of_a_built_in_slice() -> None:
    held = with_attribute("users", ["x", "y", "z"])
    rows = held.select(np.arange(3) < 1)
    before = Interactions.from_arrays(
        users=held.users,
        items=held.items,
        segment_names=("us",),
        segments=[0],
        user_rows=rows.user_rows,
        item_rows=[1],
        timestamps=[0],
    )
    slices = slices_of(hold_out(held, before, CONFIG), held, before)
    assert list(slices["users"]) == ["cold", "warm"]


def test_half_of_the_seen_log_is_counted_in_its_rows() -> None:
    """User 1 has item 0 six times: six of the nine rows are of one item, one user each."""
    seen = as_interactions([("us", 1, 0)] * 6 + [("us", 1, 1), ("us", 2, 1), ("us", 2, 2)])
    held = as_interactions([("us", 0, 0), ("us", 0, 1), ("us", 0, 2)])
    popularity = slices_of(hold_out(held, seen, CONFIG), held, seen)["item popularity"]
    heads = popularity["head"].segments[2].relevant.item_rows.tolist()
    assert heads == [0]


@pytest.mark.parametrize("gap", [1, 0])
def test_rows_grow_older_by_doublings_of_days(gap: int) -> None:
    """Where every one of them is later than what was seen; else there is no such slice."""
    day, days = 86_400_000_000, [0, 1, 2, 3, 4, 7, 8, 100]
    seen = log([("de", 0, 0)])
    heldout = Interactions.from_arrays(
        users=seen.users,
        items=seen.items,
        segment_names=("de", "us"),
        segments=[0] * len(days),
        user_rows=[1] * len(days),
        item_rows=range(len(days)),
        timestamps=[number * day + gap for number in days],
    )
    slices = slices_of(hold_out(heldout, seen, CONFIG), heldout, seen)
    if not gap:
        assert "days after" not in slices
        return
    found = {value: {i for _, _, i in relevant(h)} for value, h in slices["days after"].items()}
    assert list(found) == ["0-1", "2-3", "4-7", "8-15", "64-127"]
    assert found == {"0-1": {0, 1}, "2-3": {2, 3}, "4-7": {4, 5}, "8-15": {6}, "64-127": {7}}
