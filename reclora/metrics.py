"""Ranking metrics: one formula per name, one value per user.

All take which places of a user's list are hits and how many items are relevant to the user:

    hits_UK         bool, hits_UK[u, j]: the item at place j + 1 of user u's list is relevant
    num_relevant_U  how many items are relevant to user u, in the list or not; at least 1
    k               how many places count, 1 to K

and return float64 values in 0 to 1, shape (U,). Places beyond a short list are no hits. Users with
nothing relevant have no value: they are left out before, and counted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[np.bool_], NDArray[np.int64], int], NDArray[np.float64]]


def recall(
    hits_UK: NDArray[np.bool_], num_relevant_U: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """recall@k = hits / |relevant|. A user with more than k relevant items cannot reach 1.

    Raises:
        ValueError: k is not within 1 to K, or a user has nothing relevant.

    Source: Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, sections 8.3
    and 8.4.
    """
    _check(hits_UK, num_relevant_U, k)
    return _num_hits(hits_UK, k) / num_relevant_U


def capped_recall(
    hits_UK: NDArray[np.bool_], num_relevant_U: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """capped_recall@k = hits / min(k, |relevant|): the best possible list has 1.

    Raises:
        ValueError: k is not within 1 to K, or a user has nothing relevant.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018,
    section 4.2.
    """
    _check(hits_UK, num_relevant_U, k)
    return _num_hits(hits_UK, k) / np.minimum(k, num_relevant_U)


def ndcg(
    hits_UK: NDArray[np.bool_], num_relevant_U: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """ndcg@k = dcg@k / ideal, dcg@k = sum_{j <= k} hit_j / log2(j + 1): the best list has 1.

    The ideal is dcg@k of a list with hits at places 1 to min(k, |relevant|). The gain is binary.

    Raises:
        ValueError: k is not within 1 to K, or a user has nothing relevant.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20(4),
    2002, section 2, with the discount 1 / log2(place + 1) of Burges et al., "Learning to Rank using
    Gradient Descent", ICML 2005.
    """
    _check(hits_UK, num_relevant_U, k)
    discount_k = 1.0 / np.log2(np.arange(2.0, k + 2.0))
    ideal_k: NDArray[np.float64] = discount_k.cumsum()
    # Summed in the ideal's order, so that a perfect list has exactly 1.
    dcg_U: NDArray[np.float64] = (hits_UK[:, :k] * discount_k).cumsum(axis=1)[:, -1]
    ideal_U: NDArray[np.float64] = ideal_k[np.minimum(k, num_relevant_U) - 1]
    return dcg_U / ideal_U


def _num_hits(hits_UK: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    num_hits_U: NDArray[np.int64] = hits_UK[:, :k].sum(axis=1)
    return num_hits_U


def _check(hits_UK: NDArray[np.bool_], num_relevant_U: NDArray[np.int64], k: int) -> None:
    if not 1 <= k <= hits_UK.shape[1]:
        raise ValueError(
            f"k must be within 1 to {hits_UK.shape[1]}, the length of the lists, got {k}; "
            "rank at least k items"
        )
    if (num_relevant_U < 1).any():
        user = int(np.argmax(num_relevant_U < 1))
        raise ValueError(
            f"every user must have something relevant, but user {user} of the batch has "
            f"{num_relevant_U[user]} items; leave such users out and count them"
        )


METRICS: dict[str, Metric] = {"recall": recall, "capped_recall": capped_recall, "ndcg": ndcg}

DEFINITIONS: dict[str, str] = {
    "recall": "recall@k = hits / |relevant|",
    "capped_recall": "capped_recall@k = hits / min(k, |relevant|)",
    "ndcg": (
        "ndcg@k = sum of 1 / log2(place + 1) over the hits among the first k places, divided by "
        "the same sum with hits at places 1 to min(k, |relevant|)"
    ),
}
"""The formula of each metric, as reports print it."""
