"""How well lists hit: one formula per name, one value per user.

All take which places of a user's list are hits and how many items are relevant to the user:

    hits_UK         bool, hits_UK[u, j]: the item at place j + 1 of user u's list is relevant
    num_relevant_U  how many items are relevant to user u, in the list or not; at least 1
    k               how many places count, 1 to K

and return float64 values in 0 to 1, shape (U,). Places beyond a short list are no hits. Users with
nothing relevant have no value: they are left out before, and counted. All raise ValueError where k
is not within 1 to K or a user has nothing relevant.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Counts = NDArray[np.int64]
PerUser = NDArray[np.float64]
Metric = Callable[[Hits, Counts, int], PerUser]


def recall(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """recall@k = hits / |relevant|. A user with more than k relevant items cannot reach 1.

    Source: Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, sections 8.3
    and 8.4.
    """
    _check(hits_UK, num_relevant_U, k)
    return _num_hits(hits_UK, k) / num_relevant_U


def capped_recall(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """capped_recall@k = hits / min(k, |relevant|): the best possible list has 1.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018,
    section 4.2.
    """
    _check(hits_UK, num_relevant_U, k)
    return _num_hits(hits_UK, k) / np.minimum(k, num_relevant_U)


def precision(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """precision@k = hits / k, also where a list is shorter.

    Source: Manning et al., 2008, section 8.4.
    """
    _check(hits_UK, num_relevant_U, k)
    return _num_hits(hits_UK, k) / k


def hit_rate(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """hit_rate@k = 1 where any of the first k places is a hit, else 0.

    Source: Deshpande and Karypis, "Item-based top-N recommendation algorithms", TOIS 22(1), 2004,
    section 6.1.2.
    """
    _check(hits_UK, num_relevant_U, k)
    has_hit_U: PerUser = np.asarray(hits_UK[:, :k].any(axis=1), np.float64)
    return has_hit_U


def ndcg(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """ndcg@k = dcg@k / ideal, dcg@k = sum_{j <= k} hit_j / log2(j + 1): the best list has 1.

    The ideal is dcg@k of a list with hits at places 1 to min(k, |relevant|). The gain is binary.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20(4),
    2002, section 2, with the discount 1 / log2(place + 1) of Burges et al., "Learning to Rank using
    Gradient Descent", ICML 2005.
    """
    _check(hits_UK, num_relevant_U, k)
    discount_k = 1.0 / np.log2(np.arange(2.0, k + 2.0))
    return discounted_gain(hits_UK, num_relevant_U, discount_k)


def mrr(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """mrr@k = 1 / place of the first hit; 0 where the first k places have none.

    Source: Voorhees, "The TREC-8 Question Answering Track Report", 1999, section 3.
    """
    _check(hits_UK, num_relevant_U, k)
    first_U = hits_UK[:, :k].argmax(axis=1)
    return np.where(hits_UK[:, :k].any(axis=1), 1.0 / (first_U + 1), 0.0)


def average_precision(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """map@k = sum_{j <= k} hit_j * precision@j / |relevant|, of each user; `map` is their mean.

    A user with more than k relevant items cannot reach 1.

    Source: Manning et al., 2008, section 8.4; cut at k as trec_eval's map_cut.
    """
    _check(hits_UK, num_relevant_U, k)
    hits_Uk = hits_UK[:, :k]
    so_far_Uk = hits_Uk.cumsum(axis=1, dtype=np.float64)
    gained_Uk = hits_Uk * so_far_Uk / np.arange(1, k + 1)
    total_U: PerUser = gained_Uk.sum(axis=1)
    return total_U / num_relevant_U


def discounted_gain(
    hits_UK: Hits, num_relevant_U: Counts, discount_k: NDArray[np.float64]
) -> PerUser:
    """sum of the discounts of hits, over that of a list whose first min(k, |relevant|) are hits."""
    k = len(discount_k)
    ideal_k: NDArray[np.float64] = discount_k.cumsum()
    # Summed in the ideal's order, so that a perfect list has exactly 1.
    gain_U: PerUser = (hits_UK[:, :k] * discount_k).cumsum(axis=1)[:, -1]
    ideal_U: PerUser = ideal_k[np.minimum(k, num_relevant_U) - 1]
    return gain_U / ideal_U


def _num_hits(hits_UK: Hits, k: int) -> Counts:
    num_hits_U: Counts = np.count_nonzero(hits_UK[:, :k], axis=1)
    return num_hits_U


def _check(hits_UK: Hits, num_relevant_U: Counts, k: int) -> None:
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
