"""What lists are like, whatever is relevant: how novel, popular, diverse, and far from others.

All take `item_rows_UK`, int64, whose place j is the item at place j + 1 of user u's list and -1
beyond the end of a shorter one, and look at the first k places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Lists = NDArray[np.int64]
PerUser = NDArray[np.float64]

_FLOATS_AT_ONCE = 2**22


def novelty(
    item_rows_UK: Lists, item_users_N: NDArray[np.int64], num_users: int, k: int
) -> PerUser:
    """novelty@k = mean over the list of -log2(share of users who have the item), in bits.

    An item that nobody has counts as if one user had it. An empty list has none (NaN).

    Args:
        item_users_N: how many of the users of the seen log have each item.
        num_users: how many users the seen log has.

    Source: Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems",
    PNAS 107(10), 2010 (surprisal).
    """
    share_N = np.maximum(item_users_N, 1) / max(1, num_users)
    return _mean_over_list(-np.log2(share_N), item_rows_UK, k)


def popularity(
    item_rows_UK: Lists, item_users_N: NDArray[np.int64], num_users: int, k: int
) -> PerUser:
    """popularity@k = mean over the list of the share of users who have the item, 0 to 1.

    An empty list has none (NaN). Arguments as for `novelty`.

    Source: Abdollahpouri et al., "Managing popularity bias in recommender systems with personalized
    re-ranking", FLAIRS 2019, section 4.2 (ARP), as a share.
    """
    return _mean_over_list(item_users_N / max(1, num_users), item_rows_UK, k)


def diversity(item_rows_UK: Lists, features_NF: NDArray[np.float32], k: int) -> PerUser:
    """diversity@k = mean over the list's pairs of items of 1 - cosine of their features, 0 to 2.

    An item whose features are all zero is at distance 1 from every other. A list of fewer than two
    items has none (NaN).

    Source: Smyth and McClave, "Similarity vs. diversity", ICCBR 2001; as intra-list distance in
    Castells, Hurley and Vargas, "Novelty and Diversity in Recommender Systems", 2015, section 3.3.
    """
    values_U = np.empty(len(item_rows_UK))
    at_once = max(1, _FLOATS_AT_ONCE // (k * features_NF.shape[1]))
    for start in range(0, len(item_rows_UK), at_once):
        rows_Bk = item_rows_UK[start : start + at_once, :k]
        is_item_Bk = rows_Bk >= 0
        own_BkF = np.where(is_item_Bk[..., None], features_NF[rows_Bk], 0)
        # Squares of float32 overflow, or vanish, in float32.
        lengths_Bk = np.sqrt(np.einsum("bkf,bkf->bk", own_BkF, own_BkF, dtype=np.float64))
        scale_Bk = 1 / np.where(lengths_Bk > 0, lengths_Bk, 1)
        # Of n unit vectors: the sum over pairs of cosines is (|sum|^2 - sum of |v|^2) / 2.
        sums_BF = np.einsum("bkf,bk->bf", own_BkF, scale_Bk)
        squares_B = (lengths_Bk > 0).sum(axis=1)
        n_B = is_item_Bk.sum(axis=1)
        pairs_B = n_B * (n_B - 1) / 2
        cosines_B = ((sums_BF**2).sum(axis=1) - squares_B) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            values_U[start : start + at_once] = np.where(
                pairs_B > 0, 1 - cosines_B / pairs_B, np.nan
            )
    return values_U


def overlap(item_rows_UK: Lists, other_UK: Lists, k: int) -> PerUser:
    """overlap@k = |list and other list| / the longer one's length, 0 to 1: how much stays as it is.

    Two empty lists have none (NaN).

    Source: Fagin, Kumar and Sivakumar, "Comparing top k lists", SODA 2003, section 3 (the
    intersection metric's terms).
    """
    list_Uk, other_Uk = item_rows_UK[:, :k], other_UK[:, :k]
    same_U = np.zeros(len(list_Uk), np.int64)
    for place in range(other_Uk.shape[1]):
        item_U1 = other_Uk[:, place : place + 1]
        same_U += ((list_Uk == item_U1) & (item_U1 >= 0)).any(axis=1)
    longer_U = np.maximum((list_Uk >= 0).sum(axis=1), (other_Uk >= 0).sum(axis=1))
    return np.where(longer_U > 0, same_U / np.maximum(longer_U, 1), np.nan)


def coverage(item_rows_UK: Lists, num_candidates: int, k: int) -> float:
    """coverage@k = distinct items in all lists / candidates, 0 to 1; NaN without candidates.

    Source: Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy", RecSys 2010, section 2.1.
    """
    shown = np.unique(item_rows_UK[:, :k])
    return float((shown >= 0).sum() / num_candidates) if num_candidates else float("nan")


def gini(item_rows_UK: Lists, num_candidates: int, k: int) -> float:
    """gini@k = sum_i (2 i - n - 1) x_i / (n sum x), x ascending: 0 where all n candidates are shown
    as often, (n - 1) / n where one item is all that is shown; NaN where nothing is.

    x_i is how often a candidate stands in the first k places of all lists; those never shown count.

    Source: Fleder and Hosanagar, "Blockbuster culture's next rise or fall", Management Science
    55(5), 2009, section 3.
    """
    shown = item_rows_UK[:, :k]
    counts = np.sort(np.unique(shown[shown >= 0], return_counts=True)[1])
    if len(counts) == 0 or num_candidates == 0:
        return float("nan")
    # Candidates never shown come first and add nothing.
    i = np.arange(num_candidates - len(counts) + 1, num_candidates + 1)
    total = ((2 * i - num_candidates - 1) * counts).sum()
    return float(total / (num_candidates * counts.sum()))


def _mean_over_list(value_N: NDArray[np.float64], item_rows_UK: Lists, k: int) -> PerUser:
    rows_Uk = item_rows_UK[:, :k]
    is_item_Uk = rows_Uk >= 0
    n_U = is_item_Uk.sum(axis=1)
    total_U: PerUser = np.where(is_item_Uk, value_N[rows_Uk], 0.0).sum(axis=1)
    return np.where(n_U > 0, total_U / np.maximum(n_U, 1), np.nan)
