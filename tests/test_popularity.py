"""Popularity orders the catalogue as two plain counts do."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from reclora.interactions import IdMap, Interactions
from reclora.popularity import popularity
from reclora.ranking import UserItems, rank
from tests import reference

SEGMENTS = ("de", "jp", "us")
NUM_ITEMS = 7

LOGS = st.lists(
    st.tuples(st.sampled_from(SEGMENTS[:2]), st.integers(0, 3), st.integers(0, NUM_ITEMS - 1)),
    max_size=40,
)


def as_interactions(log: reference.Log) -> Interactions:
    return Interactions.from_arrays(
        users=IdMap([f"u{i}" for i in range(4)]),
        items=IdMap(range(NUM_ITEMS)),
        segment_names=SEGMENTS,
        segments=np.array([SEGMENTS.index(segment) for segment, _, _ in log], dtype=np.int64),
        user_rows=np.array([user for _, user, _ in log], dtype=np.int64),
        item_rows=np.array([item for _, _, item in log], dtype=np.int64),
        timestamps=np.arange(len(log)),
        weights=np.arange(len(log), dtype=np.float32),
    )


@given(LOGS, st.sampled_from([*SEGMENTS, "nowhere"]))
def test_the_order_is_by_segment_then_by_all_then_by_row(log: reference.Log, segment: str) -> None:
    scorer = popularity(as_interactions(log))(segment)
    ranked = rank(scorer, torch.arange(2), NUM_ITEMS)
    expected = reference.popularity_order(log, segment, NUM_ITEMS)
    assert ranked.item_rows_UK.tolist() == [expected, expected]


def test_a_segment_without_interactions_has_the_order_of_all() -> None:
    log = as_interactions([("de", 0, 5), ("jp", 1, 5), ("jp", 2, 3)])
    for segment in ("us", "nowhere"):
        assert rank(popularity(log)(segment), torch.tensor([0]), 2).item_rows_UK.tolist() == [
            [5, 3]
        ]


def test_ties_of_large_counts_are_told_apart() -> None:
    """20,000 and a fraction of 1 / 60,000 have one float32: a score made of both would tie."""
    codes = np.repeat([0, 0, 1, 1], [20_000, 20_000, 1, 60_000])
    item_rows = np.repeat([0, 1, 1, 2], [20_000, 20_000, 1, 60_000])
    log = Interactions.from_arrays(
        users=IdMap(["u"]),
        items=IdMap(["a", "b", "c"]),
        segment_names=["de", "jp"],
        segments=codes,
        user_rows=np.zeros_like(codes),
        item_rows=item_rows,
        timestamps=np.zeros_like(codes),
    )
    assert popularity(log)("de").scores_N.tolist() == [1.0, 2.0, 0.0]


def test_all_users_share_one_row_and_seen_items_leave_it_alone() -> None:
    scorer = popularity(as_interactions([("de", 0, 1), ("de", 1, 1), ("de", 1, 2)]))("de")
    assert scorer.scores(torch.arange(1000)).untyped_storage().nbytes() == 4 * NUM_ITEMS
    before = scorer.scores_N.clone()
    seen = UserItems.from_pairs(torch.tensor([0]), torch.tensor([1]), 2)
    ranked = rank(scorer, torch.arange(2), 1, seen=seen)
    assert ranked.item_rows_UK.tolist() == [[2], [1]]
    assert torch.equal(scorer.scores_N, before)
