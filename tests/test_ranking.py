"""Ranking is exact: ties, seen items, short catalogues, block sizes."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.ranking import RankedLists, Scorer, UserItems, rank, rank_in_two_stages
from tests import reference


@dataclass(frozen=True)
class Matrix:
    """A scorer that is a matrix of scores, users x items."""

    scores_UN: Tensor

    @property
    def num_items(self) -> int:
        return self.scores_UN.shape[1]

    def scores(self, user_rows_B: Tensor, items: slice) -> Tensor:
        return self.scores_UN[user_rows_B, items]


@dataclass(frozen=True)
class OneRow:
    """A scorer that hands out views of its own numbers, as popularity does."""

    scores_N: Tensor

    @property
    def num_items(self) -> int:
        return len(self.scores_N)

    def scores(self, user_rows_B: Tensor, items: slice) -> Tensor:
        return self.scores_N[items].expand(len(user_rows_B), -1)


@dataclass(frozen=True)
class TwoMatrices(Matrix):
    """Whole scores, and the cheap part of them."""

    cheap_UN: Tensor

    def retriever(self) -> Scorer:
        return Matrix(self.cheap_UN)

    def pair_scores(self, user_rows_B: Tensor, item_rows_BC: Tensor) -> Tensor:
        return self.scores_UN[user_rows_B].gather(1, item_rows_BC)


def as_lists(ranked: RankedLists) -> list[list[int]]:
    return [[item for item in row if item >= 0] for row in ranked.item_rows_UK.tolist()]


def from_sets(sets: list[set[int]]) -> UserItems:
    pairs = [(user, item) for user, items in enumerate(sets) for item in items]
    positions, items = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return UserItems.from_pairs(positions, items, len(sets))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Tensor, list[set[int]], set[int] | None]:
    """Scores with many ties (also of -0.0 with 0.0), seen sets, candidates."""
    num_users, num_items = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    score = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 1.0, 2.0]) | st.floats(
        width=32, allow_nan=False, allow_infinity=False
    )
    row = st.lists(score, min_size=num_items, max_size=num_items)
    scores = draw(st.lists(row, min_size=num_users, max_size=num_users))
    items = st.sets(st.integers(0, num_items - 1))
    seen = draw(st.lists(items, min_size=num_users, max_size=num_users))
    return torch.tensor(scores, dtype=torch.float32), seen, draw(st.none() | items)


@settings(max_examples=300)
@given(worlds(), st.integers(1, 15), st.integers(1, 300))
def test_rank_equals_the_reference(
    world: tuple[Tensor, list[set[int]], set[int] | None], k: int, tile_bytes: int
) -> None:
    scores_UN, seen, candidates = world
    num_users, num_items = scores_UN.shape
    candidates_N = None
    if candidates is not None:
        candidates_N = torch.tensor([item in candidates for item in range(num_items)])
    before = scores_UN.clone()
    ranked = rank(
        Matrix(scores_UN),
        torch.arange(num_users),
        k,
        seen=from_sets(seen),
        candidates_N=candidates_N,
        tile_bytes=tile_bytes,
    )
    assert as_lists(ranked) == [
        reference.rank(scores, k, seen[user], candidates)
        for user, scores in enumerate(scores_UN.tolist())
    ]
    for user in range(num_users):
        for item, score in zip(
            ranked.item_rows_UK[user].tolist(), ranked.scores_UK[user].tolist(), strict=True
        ):
            assert score == (-math.inf if item < 0 else float(scores_UN[user, item]))
    assert torch.equal(scores_UN, before)


def test_integer_scores_of_a_large_catalogue_are_ranked_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    scores_UN = torch.randint(0, 7, (40, 3000), generator=generator).float()
    ranked = rank(Matrix(scores_UN), torch.arange(40), 25)
    order_UN = scores_UN.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(ranked.item_rows_UK, order_UN[:, :25])


def test_block_size_does_not_change_the_result() -> None:
    generator = torch.Generator().manual_seed(5)
    scorer = Matrix(torch.randint(0, 50, (33, 400), generator=generator).float())
    users = torch.randperm(33, generator=generator)
    seen = UserItems.from_pairs(
        torch.randint(0, 33, (500,), generator=generator),
        torch.randint(0, 400, (500,), generator=generator),
        33,
    )
    whole = rank(scorer, users, 10, seen=seen)
    for tile_bytes in (1, 1600 * 7, 1600 * 32, 1600 * 33):
        blocks = rank(scorer, users, 10, seen=seen, tile_bytes=tile_bytes)
        assert torch.equal(blocks.item_rows_UK, whole.item_rows_UK)
        assert torch.equal(blocks.scores_UK, whole.scores_UK)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from(
        ["ties", "ascending", "descending", "one high", "all the same", "no ties", "wide"]
    ),
    st.sampled_from([1, 64, 3000, 40_000, 2**22]),
)
def test_tiles_of_many_users_and_items_equal_a_stable_sort(
    seed: int, k: int, kind: str, tile_bytes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_users, num_items = 3 if tile_bytes < 3000 else 300, 517
    scores_UN = torch.randn(num_users, num_items, generator=generator)
    if kind == "ties":
        scores_UN = scores_UN.round()
    elif kind in ("ascending", "descending"):
        scores_UN = scores_UN.sort(dim=1, descending=kind == "descending").values
    elif kind == "one high":
        scores_UN = (scores_UN > 2.5).float()
    elif kind == "wide":
        powers = torch.rand(scores_UN.shape, generator=generator) * 70 - 35
        scores_UN = scores_UN.sign() * 10**powers
    elif kind == "all the same":
        scores_UN = torch.full_like(scores_UN, 0.5)
    pairs = torch.randint(0, num_users, (2000,), generator=generator)
    seen = UserItems.from_pairs(
        pairs, torch.randint(0, num_items, (2000,), generator=generator), num_users
    )
    candidates_N = torch.rand(num_items, generator=generator) < 0.9
    ranked = rank(
        Matrix(scores_UN),
        torch.arange(num_users),
        k,
        seen=seen,
        candidates_N=candidates_N,
        tile_bytes=tile_bytes,
    )
    open_UN = scores_UN.masked_fill(~candidates_N, -math.inf)
    for user in range(num_users):
        open_UN[user, seen.item_rows[seen.offsets_U1[user] : seen.offsets_U1[user + 1]]] = -math.inf
    scores, order = open_UN.sort(dim=1, descending=True, stable=True)
    order[scores == -math.inf] = -1
    assert torch.equal(ranked.item_rows_UK, order[:, :k])
    assert torch.equal(ranked.scores_UK, scores[:, :k])


def test_seen_belongs_to_positions_not_to_user_rows() -> None:
    scorer = Matrix(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]))
    ranked = rank(scorer, torch.tensor([1, 0, 1]), 2, seen=from_sets([{2}, set(), {0, 1}]))
    assert ranked.item_rows_UK.tolist() == [[1, 0], [0, 1], [2, -1]]
    assert ranked.scores_UK.tolist() == [[2.0, 1.0], [3.0, 2.0], [3.0, -math.inf]]


def test_a_scorer_may_hand_out_its_own_numbers() -> None:
    scorer = OneRow(torch.tensor([1.0, 3.0, 2.0]))
    ranked = rank(scorer, torch.arange(3), 2, seen=from_sets([{1}, set(), {2}]))
    assert as_lists(ranked) == [[2, 0], [1, 2], [1, 0]]
    assert scorer.scores_N.tolist() == [1.0, 3.0, 2.0]


def test_lists_longer_than_the_catalogue_are_padded() -> None:
    ranked = rank(Matrix(torch.tensor([[1.0, 2.0]])), torch.tensor([0]), 4)
    assert ranked.item_rows_UK.tolist() == [[1, 0, -1, -1]]
    assert ranked.scores_UK.tolist() == [[2.0, 1.0, -math.inf, -math.inf]]


@settings(max_examples=100)
@given(worlds(), st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 6))
def test_two_stages_rank_what_the_first_retrieved(
    world: tuple[Tensor, list[set[int]], set[int] | None], seed: int, k: int, more: int
) -> None:
    scores_UN, seen, candidates = world
    generator = torch.Generator().manual_seed(seed)
    cheap_UN = torch.randint(-2, 3, scores_UN.shape, generator=generator).float()
    candidates_N = None
    if candidates is not None:
        candidates_N = torch.tensor([i in candidates for i in range(scores_UN.shape[1])])
    retrieved, shown = rank_in_two_stages(
        TwoMatrices(scores_UN, cheap_UN),
        torch.arange(len(scores_UN)),
        k,
        k + more,
        seen=from_sets(seen),
        candidates_N=candidates_N,
    )
    for user, scores in enumerate(scores_UN.tolist()):
        first = reference.rank(cheap_UN[user].tolist(), k + more, seen[user], candidates)
        assert as_lists(retrieved)[user] == first
        assert as_lists(shown)[user] == reference.rank(scores, k, (), set(first))


@pytest.mark.parametrize("bound", [0.0, -0.0, 1e-38, 1e-40, -1e-40, 1.2e-38])
def test_ties_at_the_bound_are_found_where_denormals_are_zero(bound: float) -> None:
    scores_UN = torch.full((1, 100), bound)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps denormals")
    try:
        ranked = rank(Matrix(scores_UN), torch.tensor([0]), 3)
    finally:
        torch.set_flush_denormal(False)
    assert ranked.item_rows_UK.tolist() == [[0, 1, 2]]


def test_scores_of_pairs_are_checked_like_others() -> None:
    class Narrow(TwoMatrices):
        def pair_scores(self, user_rows_B: Tensor, item_rows_BC: Tensor) -> Tensor:
            return self.scores_UN[user_rows_B, :1]

    with pytest.raises(ValueError, match=r"'us': scores must be float32 of shape \(6, 3\)"):
        rank_in_two_stages(
            Narrow(torch.zeros(6, 4), torch.zeros(6, 4)), torch.arange(6), 1, 3, segment="us"
        )


def test_two_stages_refuse_what_one_refuses() -> None:
    scores_UN = torch.zeros(6, 4)
    scores_UN[5, 2] = math.nan
    scorer = TwoMatrices(scores_UN, torch.zeros(6, 4))
    with pytest.raises(ValueError, match="'us'.*user row 5 and item row 2 is nan"):
        rank_in_two_stages(scorer, torch.arange(6), 1, 3, segment="us")
    with pytest.raises(ValueError, match="k must be within 1 to retrieve, 3, got 4"):
        rank_in_two_stages(scorer, torch.arange(6), 4, 3)


def test_no_users_no_lists() -> None:
    ranked = rank(Matrix(torch.zeros(0, 5)), torch.zeros(0, dtype=torch.int64), 3)
    assert ranked.item_rows_UK.shape == ranked.scores_UK.shape == (0, 3)
    nobody = TwoMatrices(torch.zeros(0, 5), torch.zeros(0, 5))
    for lists in rank_in_two_stages(nobody, torch.zeros(0, dtype=torch.int64), 3, 3):
        assert lists.item_rows_UK.shape == lists.scores_UK.shape == (0, 3)


def test_no_gradient_is_recorded() -> None:
    scores_UN = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert not rank(Matrix(scores_UN), torch.tensor([0]), 1).scores_UK.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_without_order_names_segment_user_and_item(bad: float) -> None:
    scores_UN = torch.zeros(6, 4)
    scores_UN[5, 2] = bad
    # Also where no list could hold it: a model with NaN in it is not to be measured at all.
    for seen in (None, from_sets([set(), {2}])):
        with pytest.raises(ValueError, match=f"'uk.mobile'.*user row 5 and item row 2 is {bad}"):
            rank(Matrix(scores_UN), torch.tensor([1, 5]), 2, seen=seen, segment="uk.mobile")


def test_what_does_not_fit_is_refused() -> None:
    scorer, users = Matrix(torch.zeros(2, 3)), torch.arange(2)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rank(scorer, users, 0)
    with pytest.raises(ValueError, match="got 1 sets for 2 users"):
        rank(scorer, users, 1, seen=from_sets([set()]))
    with pytest.raises(ValueError, match="seen holds item row 3.*item rows 0 to 2"):
        rank(scorer, users, 1, seen=from_sets([{3}, set()]))
    with pytest.raises(ValueError, match=r"candidates_N must be bool of shape \(3,\)"):
        rank(scorer, users, 1, candidates_N=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no items"):
        rank(Matrix(torch.zeros(2, 0)), users, 1)
    with pytest.raises(ValueError, match=r"'us'.*float32 of shape \(2, 3\), got torch.float64"):
        rank(Matrix(torch.zeros(2, 3).double()), users, 1, segment="us")


@pytest.mark.parametrize("users", [[0, 1], ("u7",), np.array([0])])
def test_users_that_are_no_tensor_are_refused(users: object) -> None:
    kind = type(users).__name__
    ways = r"torch\.tensor\(rows\), or for ids torch\.tensor\(base\.users\.rows_of\(ids\)\)"
    with pytest.raises(TypeError, match=rf"a tensor of user rows, got {kind}: give {ways}$"):
        rank(Matrix(torch.zeros(2, 3)), users, 1)  # type: ignore[arg-type]


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30)


@given(PAIRS)
def test_user_items_are_sets(pairs: list[tuple[int, int]]) -> None:
    positions, items = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    sets = [{item for user, item in pairs if user == u} for u in range(5)]
    user_items = UserItems.from_pairs(positions, items, 5)
    assert len(user_items) == 5
    assert user_items.sizes_U.tolist() == [len(s) for s in sets]
    bounds = user_items.offsets_U1.tolist()
    stored = [user_items.item_rows[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]
    assert stored == [sorted(s) for s in sets]
    asked = torch.arange(-1, 12).expand(5, -1)
    assert user_items.contains(torch.arange(5), asked).tolist() == [
        [item in s for item in range(-1, 12)] for s in sets
    ]


@given(PAIRS, st.lists(st.integers(0, 4)))
def test_take_is_the_sets_of_those_users(pairs: list[tuple[int, int]], chosen: list[int]) -> None:
    sets = [{item for user, item in pairs if user == u} for u in range(5)]
    taken = from_sets(sets).take(torch.tensor(chosen, dtype=torch.int64))
    expected = from_sets([sets[u] for u in chosen])
    assert torch.equal(taken.offsets_U1, expected.offsets_U1)
    assert torch.equal(taken.item_rows, expected.item_rows)


def test_pairs_out_of_range_are_refused() -> None:
    with pytest.raises(IndexError, match="positions must be within 0 to 1, got 0 to 2"):
        UserItems.from_pairs(torch.tensor([0, 2]), torch.tensor([0, 0]), 2)
    with pytest.raises(IndexError, match="got -1 to 0"):
        UserItems.from_pairs(torch.tensor([0, -1]), torch.tensor([0, 0]), 2)
    with pytest.raises(IndexError, match="item rows must be at least 0, got -1"):
        UserItems.from_pairs(torch.tensor([0]), torch.tensor([-1]), 2)
