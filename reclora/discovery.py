"""This file is how segments are found where a log has none: users of one taste are a segment.

    x_u = [ e_u / |e_u| ,  mean of v_i / |v_i| over the rows (u, i) of the log ]

e_u and v_i are the frozen base's vectors: what the user was, and what the user does now. Neither
half is scaled: the mean over items of many tastes is short, and says as little as it should.
k-means on x_u gives the clusters; one is called by the items that its users take more than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from reclora.base import BaseModel
from reclora.interactions import IdMap, Interactions

EVERYBODY: Final = "all"
"""What one cluster alone is called: nothing is distinctive of it."""
SAMPLE: Final = 50_000
"""Users whose vectors place the centres, at the most; then each user goes to the nearest one."""
STARTS: Final = 4
"""Times that k-means begins anew; the tightest clusters stay."""
ITEM_LETTERS: Final = 24
"""So much of an item's id is in a name."""


def cluster_users(
    base: BaseModel, log: Interactions, num_clusters: int, seed: int
) -> NDArray[np.int64]:
    """The cluster of each user, by the base's vectors and what the user takes in a log.

    A user without a row in the log goes to the centre nearest by the first half of x_u. Clusters
    are numbered by their users with rows, the largest first, so that 0 is the best guess for
    anybody else. The same arguments give the same clusters, however many threads there are.

    Args:
        base: its tables must be whole.
        log: on the base's id maps; what comes after the rows that may be known must not be in it. A
            row's weight is its weight in the mean.
        num_clusters: from 1 to the number of users with rows whose x_u differ.
        seed: of the sample and of the centres at the start.

    Returns:
        Integers in 0..num_clusters-1, one for each of the base's users.

    Raises:
        ValueError: the log is on other id maps or has no row, or there are not so many users to
            tell apart.

    Source: k-means++, Arthur and Vassilvitskii, SODA 2007; lengths are normalised before, as in
    spherical k-means, Dhillon and Modha, "Concept decompositions", Machine Learning 42, 2001.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    if log.users != base.users or log.items != base.items:
        raise ValueError(
            "the log is not on the base's id maps; take log.onto(base.users, base.items)"
        )
    if num_clusters == 1:
        return np.zeros(len(base.users), np.int64)
    known_U = np.bincount(log.user_rows, minlength=len(base.users)) > 0
    if not known_U.any():
        raise ValueError("the log has no row to cluster users by; give a log with rows")
    features_UF = _features(base, log)
    placing = np.flatnonzero(known_U)
    if len(placing) > SAMPLE:
        placing = np.sort(np.random.default_rng(seed).choice(placing, SAMPLE, replace=False))
    num_different = len(np.unique(features_UF[placing], axis=0))
    if num_clusters > num_different:
        raise ValueError(
            f"num_clusters must be at most {num_different:,}, the users of the log who differ in "
            f"what they take, got {num_clusters:,}; ask for fewer"
        )
    # Threads add up in any order, and the last digits with them.
    with threadpool_limits(1):
        found = KMeans(num_clusters, n_init=STARTS, random_state=seed).fit(features_UF[placing])
        labels_U = found.predict(features_UF).astype(np.int64)
    dim = base.embedding_dim
    strange_UD, centres_CD = features_UF[~known_U, :dim], found.cluster_centers_[:, :dim]
    distances_UC = (centres_CD**2).sum(1) - 2 * strange_UD @ centres_CD.T
    labels_U[~known_U] = distances_UC.argmin(axis=1)
    sizes_C = np.bincount(labels_U[known_U], minlength=num_clusters)
    places_C = np.empty(num_clusters, np.int64)
    places_C[np.argsort(-sizes_C, kind="stable")] = np.arange(num_clusters)
    ordered: NDArray[np.int64] = places_C[labels_U]
    return ordered


def name_clusters(
    labels_U: NDArray[np.int64], log: Interactions, num_items: int = 3
) -> tuple[str, ...]:
    """Names such as `taste 1: i12, i98`: of each cluster the items that are most distinctive of it.

        delta_ci = log odds of item i in the rows of cluster c - those in all other rows
        z_ci     = delta_ci / sqrt(1 / (y_ci + a_i) + 1 / (y_i - y_ci + a_i))

    y_ci counts the rows of item i in c and y_i in the log; both odds are smoothed by a_i, the share
    of the log's rows that are of i times the number of items in it. The items of the highest z_ci
    above 0 stand in the name, those of one z in the order of the table. A name is one printable
    line, and unique by its number.

    Args:
        labels_U: `cluster_users` on the same log.
        num_items: in a name, at the most.

    Source: Monroe, Colaresi and Quinn, "Fightin' Words", Political Analysis 16, 2008, section 3.5.1
    (log odds with an informative Dirichlet prior).
    """
    num_clusters = int(labels_U.max(initial=0)) + 1
    if num_clusters == 1:
        return (EVERYBODY,)
    num, catalogue = num_clusters, len(log.items)
    cells = labels_U[log.user_rows] * catalogue + log.item_rows
    counts_CN = np.bincount(cells, minlength=num * catalogue).reshape(num, catalogue)
    is_taken_N = counts_CN.any(axis=0)
    y_CI = counts_CN[:, is_taken_N].astype(np.float64)
    prior_I = y_CI.sum(axis=0) / len(log) * is_taken_N.sum()
    own_CI, other_CI = y_CI + prior_I, y_CI.sum(axis=0) - y_CI + prior_I
    delta_CI = _log_odds(own_CI) - _log_odds(other_CI)
    z_CI = delta_CI / np.sqrt(1 / own_CI + 1 / other_CI)
    z_CI[y_CI == 0] = 0
    rows_I, names = np.flatnonzero(is_taken_N), []
    for place, z_I in enumerate(z_CI, 1):
        best = np.argsort(-z_I, kind="stable")[:num_items]
        ids = log.items.ids_of(rows_I[best[z_I[best] > 0]]).to_pylist()
        names.append(f"taste {place}: {', '.join(map(_inert, ids))}" if ids else f"taste {place}")
    return tuple(names)


def main_segments(log: Interactions) -> NDArray[np.int64]:
    """Of each user of a log's id map the segment of most of the user's rows, the first of equals;
    of a user without a row the first one.

    Returns:
        Positions in `log.segment_names`, one for each of `log.users`.
    """
    pairs, rows = np.unique(np.stack([log.user_rows, log.segment_rows]), axis=1, return_counts=True)
    users, segments = pairs
    # What is written last stays: of a user the segment of most rows, of equals the first.
    order = np.lexsort((-segments, rows, users))
    labels_U = np.zeros(len(log.users), np.int64)
    labels_U[users[order]] = segments[order]
    return labels_U


def with_segments(
    log: Interactions, labels_U: NDArray[np.int64], names: Sequence[str]
) -> Interactions:
    """The same rows, each in the segment of its user.

    Args:
        labels_U: positions in `names`, one for each user of the log's id map.
        names: unique.
    """
    return log.in_segments(names, labels_U[log.user_rows])


def labels_of(users: IdMap, labels_U: NDArray[np.int64], ids: Any) -> NDArray[np.int64]:
    """The cluster of each id: of one that is not in the map 0, the largest; of a null -1."""
    rows = users.rows_of(ids)
    labels = np.where(rows >= 0, labels_U[np.maximum(rows, 0)], 0)
    is_null = np.asarray(ids.is_null())
    return np.where(is_null, -1, labels).astype(np.int64)


def _features(base: BaseModel, log: Interactions) -> NDArray[np.float32]:
    """x_u of each user; the second half of users without rows is zero."""
    users_UD = _normalised(base.user_table.lookup(torch.arange(base.user_table.num_rows)))
    items_ND = _normalised(base.item_table.materialised())
    weights = np.ones(len(log), np.float32) if log.weights is None else log.weights
    shape = len(users_UD), len(items_ND)
    taken_UN = csr_array((weights, (log.user_rows, log.item_rows)), shape=shape)
    totals_U = np.maximum(taken_UN.sum(axis=1), np.finfo(np.float32).tiny)
    takes_UD = (taken_UN @ items_ND) / totals_U[:, None]
    return np.concatenate([users_UD, takes_UD], axis=1).astype(np.float32)


def _normalised(vectors_ND: torch.Tensor) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(vectors_ND, dim=1).numpy()
    return vectors


def _log_odds(counts_CI: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of the only item there is nothing is left.
    rest_CI = np.maximum(counts_CI.sum(axis=1, keepdims=True) - counts_CI, np.finfo(float).tiny)
    odds: NDArray[np.float64] = np.log(counts_CI) - np.log(rest_CI)
    return odds


def _inert(item: object) -> str:
    """An id on one printable line: what a terminal or a page would act on is spelled out."""
    text = repr(item)[1:-1] if isinstance(item, str) else str(item)
    return text if len(text) <= ITEM_LETTERS else f"{text[: ITEM_LETTERS - 1]}…"
