"""The metrics equal the plain formulas, at every edge."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.metrics import DEFINITIONS, METRICS, capped_recall, ndcg, recall
from tests import reference

K = 6


@st.composite
def ranked_users(draw: st.DrawFn) -> list[tuple[list[int], set[int]]]:
    """Some users, each with a list of distinct items, perhaps short, and a relevant set."""
    user = st.tuples(
        st.lists(st.integers(0, 12), unique=True, max_size=K),
        st.sets(st.integers(0, 12), min_size=1),
    )
    return draw(st.lists(user, min_size=1, max_size=6))


def as_arrays(users: list[tuple[list[int], set[int]]]) -> tuple[np.ndarray, np.ndarray]:
    hits = [[j < len(r) and r[j] in rel for j in range(K)] for r, rel in users]
    return np.array(hits), np.array([len(rel) for _, rel in users])


@given(ranked_users(), st.integers(1, K))
def test_every_metric_equals_the_reference(users: list[tuple[list[int], set[int]]], k: int) -> None:
    hits_UK, num_relevant_U = as_arrays(users)
    for name, metric in METRICS.items():
        values_U = metric(hits_UK, num_relevant_U, k)
        expected = [reference.METRICS[name](ranked, relevant, k) for ranked, relevant in users]
        assert values_U.dtype == np.float64
        np.testing.assert_allclose(values_U, expected, rtol=1e-12, atol=0)
        assert ((values_U >= 0) & (values_U <= 1)).all()


def test_one_list_by_hand() -> None:
    hits_UK = np.array([[True, False, True, False]])
    num_relevant_U = np.array([5])
    assert recall(hits_UK, num_relevant_U, 4) == pytest.approx(2 / 5)
    assert capped_recall(hits_UK, num_relevant_U, 4) == pytest.approx(2 / 4)
    ideal = sum(1 / math.log2(place + 1) for place in (1, 2, 3, 4))
    assert ndcg(hits_UK, num_relevant_U, 4) == pytest.approx((1 + 1 / 2) / ideal)


def test_a_perfect_list_has_exactly_one() -> None:
    for k in range(1, 101):
        hits_UK = np.ones((1, 100), dtype=bool)
        for num_relevant in (k, 100):
            assert ndcg(hits_UK, np.array([num_relevant]), k) == [1.0]
            assert capped_recall(hits_UK, np.array([num_relevant]), k) == [1.0]
        hits_UK[:, k:] = False
        assert ndcg(hits_UK, np.array([k]), 100) == [1.0]
        assert recall(hits_UK, np.array([k]), 100) == [1.0]


def test_no_users_is_no_values() -> None:
    for metric in METRICS.values():
        assert metric(np.zeros((0, 3), dtype=bool), np.zeros(0, dtype=np.int64), 3).shape == (0,)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_list_is_an_error(name: str, k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be within 1 to 3, .* got {k}"):
        METRICS[name](np.zeros((2, 3), dtype=bool), np.array([1, 1]), k)


@pytest.mark.parametrize("name", METRICS)
def test_a_user_with_nothing_relevant_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="user 1 of the batch has 0 items"):
        METRICS[name](np.zeros((2, 3), dtype=bool), np.array([1, 0]), 3)


def test_every_metric_has_a_definition() -> None:
    assert DEFINITIONS.keys() == METRICS.keys()
    for name, definition in DEFINITIONS.items():
        assert definition.startswith(f"{name}@k = ")
