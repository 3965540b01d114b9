"""Clusters of users: planted tastes are found, names say what is distinctive, and are inert."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from reclora.base import BaseModel
from reclora.discovery import (
    EVERYBODY,
    cluster_users,
    labels_of,
    main_segments,
    name_clusters,
    with_segments,
)
from reclora.interactions import IdMap, Interactions
from tests.small_runs import HOSTILE
from tests.small_worlds import make_base, make_log

USERS, ITEMS, DIM, TASTES = 90, 60, 8, 3


def tastes(base_knows: bool, log_knows: bool) -> tuple[BaseModel, Interactions, NDArray[np.int64]]:
    """A base and a log of three tastes, of 45, 30 and 15 users; the last five have no row."""
    rng = np.random.default_rng(4)
    of_user = np.repeat(np.arange(TASTES), (45, 30, 15))[rng.permutation(USERS)]
    of_item = np.arange(ITEMS) % TASTES
    centres = rng.standard_normal((TASTES, DIM))
    users, items = rng.standard_normal((USERS, DIM)), centres[of_item]
    if base_knows:
        users = 3 * centres[of_user] + users / 2
    base = BaseModel.of(
        IdMap(np.arange(USERS) * 3),
        IdMap([f"i{number:02}" for number in range(ITEMS)]),
        torch.tensor(users, dtype=torch.float32),
        torch.tensor(items + rng.standard_normal(items.shape) / 2, dtype=torch.float32),
    )
    user_rows = np.repeat(np.arange(USERS - 5), 20)
    item_rows = rng.integers(ITEMS, size=len(user_rows))
    if log_knows:
        item_rows = item_rows // TASTES * TASTES + of_user[user_rows]
    log = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=("all",),
        segments=np.zeros(len(user_rows), np.int64),
        user_rows=user_rows,
        item_rows=item_rows,
        timestamps=np.arange(len(user_rows)),
    )
    return base, log, of_user


@pytest.mark.parametrize(("base_knows", "log_knows"), [(True, False), (False, True), (True, True)])
def test_hidden_tastes_are_found(base_knows: bool, log_knows: bool) -> None:
    base, log, of_user = tastes(base_knows, log_knows)
    labels_U = cluster_users(base, log, TASTES, seed=0)
    assert adjusted_rand_score(of_user[:-5], labels_U[:-5]) > 0.8
    sizes = np.bincount(labels_U[:-5])
    assert sizes.tolist() == sorted(sizes, reverse=True)
    if base_knows:
        # Who has no row goes where the base says; who has one like them is there.
        alike = [labels_U[np.flatnonzero(of_user[:-5] == taste)[0]] for taste in of_user[-5:]]
        assert labels_U[-5:].tolist() == alike


def test_the_same_clusters_whenever_they_are_asked_for() -> None:
    base, log, _ = tastes(False, False)
    with threadpool_limits(2):
        first = cluster_users(base, log, 6, seed=3)
    assert np.array_equal(first, cluster_users(base, log, 6, seed=3))
    assert not np.array_equal(first, cluster_users(base, log, 6, seed=4))
    assert cluster_users(base, log, 1, seed=3).tolist() == [0] * USERS


def test_a_sample_of_many_users_places_the_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    base, log, of_user = tastes(True, True)
    monkeypatch.setattr("reclora.discovery.SAMPLE", 30)
    labels_U = cluster_users(base, log, TASTES, seed=0)
    assert adjusted_rand_score(of_user, labels_U) > 0.8
    with pytest.raises(ValueError, match="at most 30"):
        cluster_users(base, log, 31, seed=0)


def test_rows_without_weight_say_nothing() -> None:
    base, log, of_user = tastes(False, True)
    rng = np.random.default_rng(0)
    noise = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=("all",),
        segments=np.zeros(4 * len(log), np.int64),
        user_rows=np.tile(log.user_rows, 4),
        item_rows=np.concatenate([log.item_rows, rng.integers(ITEMS, size=3 * len(log))]),
        timestamps=np.arange(4 * len(log)),
        weights=np.repeat([1.0, 0.0], [len(log), 3 * len(log)]),
    )
    assert np.array_equal(cluster_users(base, noise, 3, 0), cluster_users(base, log, 3, 0))


def test_too_many_clusters_and_other_maps_are_refused() -> None:
    base, log, _ = tastes(True, True)
    with pytest.raises(ValueError, match="at most 85, the users of the log .* got 86; ask for few"):
        cluster_users(base, log, USERS - 4, seed=0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cluster_users(base, log, 0, seed=0)
    with pytest.raises(ValueError, match="no row to cluster users by"):
        cluster_users(base, log.select(np.zeros(len(log), bool)), 2, seed=0)
    with pytest.raises(ValueError, match="take log.onto"):
        cluster_users(make_base(), log, 2, seed=0)


def test_names_are_the_most_distinctive_items() -> None:
    """Held against the formula in plain loops."""
    base, log, of_user = tastes(True, True)
    names = name_clusters(of_user, log)
    cluster = of_user[log.user_rows]
    rows = [Counter(log.item_rows[cluster == c].tolist()) for c in range(TASTES)]
    whole = Counter(log.item_rows.tolist())

    def z(c: int, i: int) -> float:
        prior = {j: n / len(log) * len(whole) for j, n in whole.items()}
        own = {j: rows[c][j] + prior[j] for j in whole}
        other = {j: whole[j] - rows[c][j] + prior[j] for j in whole}
        odds = [side[i] / (sum(side.values()) - side[i]) for side in (own, other)]
        return (math.log(odds[0]) - math.log(odds[1])) / (1 / own[i] + 1 / other[i]) ** 0.5

    for c, name in enumerate(names):
        best = sorted(rows[c], key=lambda i: (-z(c, i), i))[:3]
        assert name == f"taste {c + 1}: " + ", ".join(f"i{i:02}" for i in best)
    assert name_clusters(np.zeros(USERS, np.int64), log) == (EVERYBODY,)
    # Of a cluster without a row, or of the only item, nothing is distinctive.
    alone = np.where(np.arange(USERS) < USERS - 5, 0, 1)
    assert name_clusters(alone, log)[1] == "taste 2"
    one = log.select(log.item_rows == log.item_rows[0])
    assert len({*name_clusters(of_user, one)}) == TASTES


def test_hostile_ids_make_inert_names() -> None:
    base, log, of_user = tastes(True, True)
    letters = [*HOSTILE, "a\nb", "\x1b[2J", "\u202egnp.exe", "x" * 500, "", "'\"`\\", "[red]"]
    ids = IdMap([*letters, *(f"i{number}" for number in range(ITEMS - len(letters)))])
    hostile = replace(log, items=ids)
    names = name_clusters(of_user, hostile, num_items=ITEMS)
    assert len({*names}) == TASTES
    assert all(name.isprintable() and name.startswith("taste ") for name in names)
    assert max(map(len, names)) < ITEMS * 30
    numbers = IdMap(np.arange(ITEMS) - 7)
    assert "-7" in "".join(name_clusters(of_user, replace(log, items=numbers), num_items=ITEMS))


def test_the_segment_of_most_of_a_users_rows() -> None:
    base = make_base()
    log = make_log(base)
    found = main_segments(log)
    for user in range(len(base.users)):
        counts = Counter(log.segment_rows[log.user_rows == user].tolist())
        most = max(counts.values(), default=0)
        assert found[user] == min((s for s, n in counts.items() if n == most), default=0)


def test_rows_move_to_the_segment_of_their_user() -> None:
    base = make_base()
    log = make_log(base, weighted=True)
    labels_U = np.arange(len(base.users)) % 3
    moved = with_segments(log, labels_U, ("a", "b", "c"))
    assert moved.segment_names == ("a", "b", "c") and len(moved) == len(log)
    assert np.array_equal(moved.segment_rows, labels_U[moved.user_rows])
    assert log.weights is not None and moved.weights is not None
    rows = [
        sorted(zip(its.user_rows, its.item_rows, its.timestamps, its.weights, strict=True))
        for its in (log, moved)
        if its.weights is not None
    ]
    assert rows[0] == rows[1]


def test_ids_that_nobody_knows_are_of_the_largest_and_no_id_of_none() -> None:
    users = IdMap(["a", "b"])
    ids = pa.chunked_array([["b", None], ["nobody", "a"]])
    assert labels_of(users, np.array([2, 1]), ids).tolist() == [1, -1, 0, 2]
    with pytest.raises(TypeError, match="large_string ids, got int64"):
        labels_of(users, np.array([2, 1]), pa.array([1]))
