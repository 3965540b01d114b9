"""Metrics and resampling for the benchmarks of evaluation: ours and the peers'.

Metrics: recall and NDCG at 10 and 20 of U users with lists of 20 and 1 to 30 relevant items each,
from item rows to one value per user; the peers' structures are built within the time, as ours are.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from reclora.comparison import bootstrap_means
from reclora.metrics import METRICS
from reclora.ranking import UserItems

from .engine_worlds import cpu_ms, cpu_seconds

NUM_ITEMS = 20_000
KS = (10, 20)


def lists(num_users: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Item rows of the lists (U, 20), and the (user, item) pairs that are relevant."""
    generator = np.random.default_rng(0)
    rows_UK = generator.integers(0, NUM_ITEMS, (num_users, 60))
    distinct = np.array([np.unique(row)[:50] for row in rows_UK])
    distinct = generator.permuted(distinct, axis=1)
    sizes = generator.integers(1, 31, num_users)
    # The last five places of the list are the first relevant items: some hits for everybody.
    users = np.repeat(np.arange(num_users), sizes)
    places = np.concatenate([np.arange(size) for size in sizes])
    return distinct[:, :20], users, distinct[users, 15 + places]


def our_metrics(num_users: int) -> float:
    """CPU-microseconds a user."""
    rows_UK, users, items = lists(num_users)
    shown = torch.from_numpy(np.ascontiguousarray(rows_UK))

    def measure() -> None:
        relevant = UserItems.from_pairs(torch.from_numpy(users), torch.from_numpy(items), num_users)
        hits_UK = relevant.contains(torch.arange(num_users), shown).numpy()
        num_relevant_U = relevant.sizes_U.numpy()
        for name in ("recall", "ndcg"):
            for k in KS:
                METRICS[name](hits_UK, num_relevant_U, k)

    return cpu_ms(measure) * 1e3 / num_users


def rectools_metrics(num_users: int) -> float:
    from rectools.metrics import NDCG, Recall, calc_metrics

    rows_UK, users, items = lists(num_users)
    shown = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_users), 20),
            "item_id": rows_UK.ravel(),
            "rank": np.tile(np.arange(1, 21), num_users),
        }
    )
    relevant = pd.DataFrame({"user_id": users, "item_id": items})
    metrics = {f"recall{k}": Recall(k=k) for k in KS}
    metrics |= {f"ndcg{k}": NDCG(k=k, divide_by_achievable=True) for k in KS}
    calc_metrics(metrics, shown[:2000], relevant)
    return cpu_seconds(lambda: calc_metrics(metrics, shown, relevant)) * 1e6 / num_users


def our_bootstrap(num_users: int) -> float:
    """CPU-seconds of 1,000 samples of the mean of one difference a user."""
    differences_U1 = np.random.default_rng(0).normal(size=(num_users, 1))
    return cpu_ms(lambda: bootstrap_means(differences_U1, 1000, 0)) / 1e3


def scipy_bootstrap(num_users: int) -> float:
    from scipy.stats import bootstrap

    differences_U = np.random.default_rng(0).normal(size=num_users)

    def resample() -> None:
        bootstrap(
            (differences_U,),
            np.mean,
            n_resamples=1000,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(0),
        )

    return cpu_seconds(resample)
