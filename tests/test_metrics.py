"""The metrics equal the plain formulas, at every edge."""

import math

import implicit.evaluation
import ir_measures
import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import ranx
import rectools.metrics
import scipy.sparse
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares

from reclora.metrics import (
    CONVENTIONS,
    DEFINITIONS,
    METRICS,
    auc,
    calibration_bins,
    calibration_error,
    capped_recall,
    coverage,
    diversity,
    gini,
    log_loss,
    ndcg,
    novelty,
    overlap,
    popularity,
    recall,
)
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
    assert DEFINITIONS.keys() >= METRICS.keys()
    for name, definition in DEFINITIONS.items():
        assert definition.startswith((f"{name}@k = ", f"{name} = "))


# Against other systems.


def random_users(seed: int, count: int = 200) -> list[tuple[list[int], set[int]]]:
    """Lists of K = 6 of 40 items, short ones and ones without a hit among them."""
    generator = np.random.default_rng(seed)
    users = []
    for _ in range(count):
        ranked = generator.permutation(40)[: generator.integers(1, K + 1)].tolist()
        relevant = generator.choice(40, generator.integers(1, 16), replace=False).tolist()
        users.append((ranked, set(relevant)))
    return users


def ours(name: str, users: list[tuple[list[int], set[int]]], k: int) -> np.ndarray:
    return METRICS[name](*as_arrays(users), k)


def has_list(users: list[tuple[list[int], set[int]]]) -> np.ndarray:
    return np.array([bool(ranked) for ranked, _ in users])


def ir_measures_input(
    users: list[tuple[list[int], set[int]]],
) -> tuple[list[ir_measures.Qrel], list[ir_measures.ScoredDoc]]:
    qrels = [ir_measures.Qrel(str(u), str(i), 1) for u, (_, rel) in enumerate(users) for i in rel]
    run = [
        ir_measures.ScoredDoc(str(u), str(i), -float(place))
        for u, (ranked, _) in enumerate(users)
        for place, i in enumerate(ranked)
    ]
    return qrels, run


@pytest.mark.parametrize("k", [1, 3, 6])
def test_ir_measures_agrees(k: int) -> None:
    users = random_users(k)
    qrels, run = ir_measures_input(users)
    theirs = {
        "ndcg": ir_measures.nDCG @ k,
        "recall": ir_measures.R @ k,
        "precision": ir_measures.P @ k,
        "map": ir_measures.AP @ k,
        "hit_rate": ir_measures.Success @ k,
        "mrr": ir_measures.RR @ k,
    }
    found: dict[tuple[str, int], float] = {
        (str(m.measure), int(m.query_id)): m.value
        for m in ir_measures.iter_calc(list(theirs.values()), qrels, run)
    }
    for name, measure in theirs.items():
        expected = [found[str(measure), u] for u in range(len(users))]
        np.testing.assert_allclose(ours(name, users, k), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaTypeSafetyWarning")
@pytest.mark.parametrize("k", [1, 3, 6])
def test_ranx_agrees(k: int) -> None:
    users = random_users(10 + k)
    qrels = ranx.Qrels({f"{u:03}": {str(i): 1 for i in rel} for u, (_, rel) in enumerate(users)})
    run = ranx.Run(
        {
            f"{u:03}": {str(i): 1.0 - place / 10 for place, i in enumerate(ranked)}
            for u, (ranked, _) in enumerate(users)
        }
    )
    theirs = {
        "ndcg": f"ndcg@{k}",
        "recall": f"recall@{k}",
        "precision": f"precision@{k}",
        "map": f"map@{k}",
        "hit_rate": f"hit_rate@{k}",
        "mrr": f"mrr@{k}",
    }
    for name, measure in theirs.items():
        expected = ranx.evaluate(qrels, run, measure, return_mean=False)
        np.testing.assert_allclose(ours(name, users, k), expected, rtol=1e-6)


def rectools_frames(
    users: list[tuple[list[int], set[int]]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    shown = [
        (u, i, place)
        for u, (ranked, _) in enumerate(users)
        for place, i in enumerate(ranked, start=1)
    ]
    relevant = [(u, i) for u, (_, rel) in enumerate(users) for i in rel]
    return (
        pd.DataFrame(shown, columns=["user_id", "item_id", "rank"]),
        pd.DataFrame(relevant, columns=["user_id", "item_id"]),
    )


@pytest.mark.parametrize("k", [1, 3, 6])
def test_rectools_agrees(k: int) -> None:
    users = random_users(20 + k)
    shown, relevant = rectools_frames(users)
    theirs = {
        "ndcg": rectools.metrics.NDCG(k=k, divide_by_achievable=True),
        "recall": rectools.metrics.Recall(k=k),
        "precision": rectools.metrics.Precision(k=k),
        "map": rectools.metrics.MAP(k=k),
        "hit_rate": rectools.metrics.HitRate(k=k),
        "mrr": rectools.metrics.MRR(k=k),
    }
    for name, metric in theirs.items():
        expected = metric.calc_per_user(shown, relevant).sort_index()
        np.testing.assert_allclose(ours(name, users, k), expected, rtol=1e-9, err_msg=name)


def test_scikit_learn_agrees_on_whole_lists() -> None:
    """Its ndcg_score takes scores of all items; without ties and cut, the lists are the same."""
    generator = np.random.default_rng(3)
    scores = generator.permuted(np.tile(np.arange(12.0), (50, 1)), axis=1)
    relevant = generator.random((50, 12)) < 0.3
    relevant[:, 0] |= ~relevant.any(axis=1)
    order = np.argsort(-scores, axis=1)
    hits_UK = np.take_along_axis(relevant, order, 1)
    for k in (1, 5, 12):
        values = ndcg(hits_UK, relevant.sum(axis=1), k)
        theirs = sklearn.metrics.ndcg_score(relevant, scores, k=k, ignore_ties=True)
        assert values.mean() == pytest.approx(theirs)


# What lists are like.


def as_rows(lists: list[list[int]]) -> np.ndarray:
    rows = [[*ranked, *[-1] * (K - len(ranked))] for ranked in lists]
    return np.array(rows, np.int64).reshape(-1, K)


SHORT = st.lists(st.lists(st.integers(0, 7), unique=True, max_size=K), max_size=5)


@given(SHORT, SHORT, st.integers(1, K), st.integers(0, 2**32 - 1))
def test_lists_equal_the_reference(
    lists: list[list[int]], others: list[list[int]], k: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    owners = generator.integers(0, 9, 8)
    features = generator.normal(size=(8, 3)).astype(np.float32)
    features[generator.random(8) < 0.3] = 0
    rows_UK = as_rows(lists)
    for metric, name in ((novelty, "novelty"), (popularity, "popularity")):
        expected = [getattr(reference, name)(r, owners.tolist(), 9, k) for r in lists]
        np.testing.assert_allclose(metric(rows_UK, owners, 9, k), expected, rtol=1e-12)
    expected = [reference.diversity(r, features.tolist(), k) for r in lists]
    np.testing.assert_allclose(diversity(rows_UK, features, k), expected, rtol=1e-5, atol=1e-6)
    pairs = list(zip(lists, others, strict=False))
    expected = [reference.overlap(one, other, k) for one, other in pairs]
    found = overlap(as_rows([one for one, _ in pairs]), as_rows([other for _, other in pairs]), k)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert coverage(rows_UK, 8, k) == pytest.approx(reference.coverage(lists, 8, k))
    assert gini(rows_UK, 8, k) == pytest.approx(reference.gini(lists, 8, k), nan_ok=True)


def test_lists_at_their_extremes() -> None:
    same, all_items = np.zeros((10, 1), np.int64), np.arange(10).reshape(10, 1)
    assert gini(same, 10, 1) == pytest.approx(0.9)
    assert gini(all_items, 10, 1) == pytest.approx(0)
    assert coverage(all_items, 10, 1) == 1
    assert math.isnan(coverage(same, 0, 1)) and math.isnan(gini(np.full((3, 1), -1), 10, 1))
    twins = np.ones((2, 4), np.float32)
    assert diversity(np.array([[0, 1]]), twins, 2) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_diversity_is_of_directions_whatever_their_lengths(size: float) -> None:
    features = np.array([[3, 4], [3, 4], [-4, 3]], np.float32) * np.float32(size)
    lists = np.array([[0, 1], [0, 2]])
    np.testing.assert_allclose(diversity(lists, features, 2), [0, 1], atol=1e-6)


def test_a_short_list_has_nothing_of_the_last_item() -> None:
    features = np.ones((4, 2), np.float32)
    features[3] = np.nan
    assert diversity(np.array([[0, 1, -1]]), features, 3) == pytest.approx(0, abs=1e-6)


def test_diversity_in_blocks_is_that_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows_UK = generator.permuted(np.tile(np.arange(20), (50, 1)), axis=1)[:, :K]
    features = generator.normal(size=(20, 5)).astype(np.float32)
    whole = diversity(rows_UK, features, 4)
    monkeypatch.setattr("reclora.metrics.lists._FLOATS_AT_ONCE", 7 * 20)
    np.testing.assert_array_equal(diversity(rows_UK, features, 4), whole)


@pytest.mark.parametrize("k", [2, 6])
def test_rectools_agrees_on_lists(k: int) -> None:
    users = random_users(30)
    shown, _ = rectools_frames(users)
    generator = np.random.default_rng(1)
    seen = pd.DataFrame(
        {"user_id": generator.integers(0, 50, 400), "item_id": generator.integers(0, 40, 400)}
    ).drop_duplicates()
    seen = pd.concat([seen, pd.DataFrame({"user_id": 99, "item_id": range(40)})])
    owners = np.bincount(seen["item_id"], minlength=40)
    rows_UK = as_rows([ranked for ranked, _ in users])
    num_users = seen["user_id"].nunique()
    miuf = rectools.metrics.MeanInvUserFreq(k=k).calc_per_user(shown, seen)
    np.testing.assert_allclose(novelty(rows_UK, owners, num_users, k), miuf.sort_index())
    arp = rectools.metrics.AvgRecPopularity(k=k).calc_per_user(shown, seen)
    np.testing.assert_allclose(
        popularity(rows_UK, owners, num_users, k) * num_users, arp.sort_index()
    )
    # Its distance is Hamming's: of sets of equal size, 2 * size * (1 - cosine).
    features = generator.permuted(np.repeat([[1, 1, 1, 0, 0, 0, 0]], 40, axis=0), axis=1)
    distances = rectools.metrics.PairwiseHammingDistanceCalculator(pd.DataFrame(features))
    ild = rectools.metrics.IntraListDiversity(k=k, distance_calculator=distances)
    # A list of one item has diversity 0 there, none here.
    found = np.nan_to_num(diversity(rows_UK, features.astype(np.float32), k))
    theirs = ild.calc_per_user(shown).sort_index()
    np.testing.assert_allclose(2 * 3 * found, theirs, atol=1e-5)
    covered = rectools.metrics.CatalogCoverage(k=k, normalize=True).calc(shown, range(40))
    assert coverage(rows_UK, 40, k) == pytest.approx(covered)


# Labels.


LABELLED = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 1 / 15, 0.2, 0.5, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=40,
)


@given(LABELLED)
def test_labels_equal_the_reference(rows: list[tuple[int, float]]) -> None:
    labels, p = ([row[i] for row in rows] for i in (0, 1))
    assert auc(labels, p) == pytest.approx(reference.auc(labels, p), nan_ok=True)
    assert log_loss(labels, p) == pytest.approx(reference.log_loss(labels, p), rel=1e-9)
    expected = reference.calibration_error(labels, p)
    assert calibration_error(labels, p) == pytest.approx(expected, abs=1e-12)
    assert calibration_bins(labels, p)["rows"].sum() == len(rows)


def test_bins_hold_their_upper_bounds_and_nothing_above() -> None:
    upper = np.arange(1, 16) / 15
    np.testing.assert_array_equal(calibration_bins([1] * 15, upper)["bin"], range(15))
    above = np.nextafter(upper[:-1], 1)
    np.testing.assert_array_equal(calibration_bins([1] * 14, above)["bin"], range(1, 15))
    assert calibration_bins([1], [0.0])["bin"].tolist() == [0]


def test_calibration_equals_the_reference_and_knows_a_calibrated_model() -> None:
    generator = np.random.default_rng(0)
    p = generator.random(40_000)
    labels = (generator.random(40_000) < p).astype(int)
    expected = reference.calibration_error(labels.tolist(), p.tolist())
    assert calibration_error(labels, p) == pytest.approx(expected)
    assert calibration_error(labels, p) < 0.012 < 0.1 < calibration_error(labels, p**2)
    assert calibration_error([1, 0], [1.0, 0.0]) == 0


def test_scikit_learn_agrees_on_labels() -> None:
    generator = np.random.default_rng(2)
    labels, p = generator.integers(0, 2, 500), generator.random(500).round(2)
    assert auc(labels, p) == pytest.approx(sklearn.metrics.roc_auc_score(labels, p))
    assert log_loss(labels, p) == pytest.approx(sklearn.metrics.log_loss(labels, p))


def test_labels_at_their_edges() -> None:
    assert math.isnan(auc([1, 1], [0.1, 0.2])) and math.isnan(auc([], []))
    assert math.isnan(log_loss([], [])) and math.isnan(calibration_error([], []))
    assert log_loss([1], [0.0]) == pytest.approx(52 * math.log(2))
    for labels, scores, message in (
        ([0, 2], [0.1, 0.2], "a label must be 0 or 1, got 2.0 in row 1"),
        ([0, 1], [0.1, math.nan], "a score must be a number, got nan in row 1"),
        ([0, 1], [0.1, 1.2], "a probability must be within 0 to 1, got 1.2 in row 1"),
        ([0, 1], [0.1], r"one length, got shapes \(2,\) and \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            log_loss(labels, scores)
    assert auc([0, 1], [-3.0, 7.0]) == 1  # scores in any unit


# Conventions.

TOY = [
    ([1, 0, 2], {1}),
    ([0, 1, 2], {0, 1, 2, 3, 4}),
    ([0, 1, 2], {4, 5}),
    ([0, 1, 2], {1, 2}),
    ([], {3}),
]
"""The six users of whom no two systems report the same, less the one with nothing relevant."""


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("comparable", 0.5200, 0.5387),
        ("rectools", 0.5200, 0.4000),
        ("lenskit", 0.6000, 0.5631),
        ("mult-vae", 0.6000, 0.5387),
        ("pytrec_eval", 0.6500, 0.6734),
        ("recommenders", 0.6500, 0.5387),
        ("implicit", 0.6667, 0.5387),
    ],
)
def test_conventions_give_the_numbers_of_the_systems(
    name: str, first: float, second: float
) -> None:
    found = CONVENTIONS[name].of(*as_arrays(TOY), has_list(TOY), 3)
    assert [round(value, 4) for value in found.values()] == [first, second]
    assert list(found) == ["precision" if name == "implicit" else "recall", "ndcg"]


def test_ir_measures_itself_reports_the_comparable_convention() -> None:
    users = [*random_users(60, 60), ([], {1, 2})]
    found = CONVENTIONS["comparable"].of(*as_arrays(users), has_list(users), 5)
    measures = {"recall": ir_measures.R @ 5, "ndcg": ir_measures.nDCG @ 5}
    theirs = ir_measures.calc_aggregate(list(measures.values()), *ir_measures_input(users))
    for name, measure in measures.items():
        assert found[name] == pytest.approx(theirs[measure])


def test_conventions_have_no_numbers_where_there_are_no_users() -> None:
    nobody = np.zeros((0, 3), bool), np.zeros(0, np.int64), np.zeros(0, bool)
    for convention in CONVENTIONS.values():
        assert np.isnan(list(convention.of(*nobody, 3).values())).all()
    without = np.zeros((1, 3), bool), np.ones(1, np.int64), np.zeros(1, bool)
    assert np.isnan(list(CONVENTIONS["pytrec_eval"].of(*without, 3).values())).all()


@pytest.mark.parametrize("k", [1, 3, 6])
def test_rectools_itself_reports_its_convention(k: int) -> None:
    users = [*random_users(40 + k, 60), ([], {1, 2})]
    shown, relevant = rectools_frames(users)
    found = CONVENTIONS["rectools"].of(*as_arrays(users), has_list(users), k)
    assert found["ndcg"] == pytest.approx(rectools.metrics.NDCG(k=k).calc(shown, relevant))
    assert found["recall"] == pytest.approx(rectools.metrics.Recall(k=k).calc(shown, relevant))


@pytest.mark.filterwarnings("ignore:OpenBLAS is configured")
@pytest.mark.parametrize("k", [1, 3, 6])
def test_implicit_itself_reports_its_convention(k: int) -> None:
    """A model of factors that are the scores themselves: each user's list is its order."""
    generator = np.random.default_rng(k)
    scores = generator.permuted(np.tile(np.arange(12.0), (40, 1)), axis=1).astype(np.float32)
    relevant = generator.random((40, 12)) < 0.3
    relevant[:, 0] |= ~relevant.any(axis=1)
    model = AlternatingLeastSquares(factors=12, num_threads=1)
    model.user_factors, model.item_factors = scores, np.eye(12, dtype=np.float32)
    nothing = scipy.sparse.csr_matrix((40, 12), dtype=np.float32)
    test = scipy.sparse.csr_matrix(relevant.astype(np.float32))
    theirs = implicit.evaluation.ranking_metrics_at_k(
        model, nothing, test, K=k, show_progress=False, num_threads=1
    )
    hits_UK = np.take_along_axis(relevant, np.argsort(-scores, axis=1), 1)
    found = CONVENTIONS["implicit"].of(hits_UK, relevant.sum(axis=1), np.ones(40, bool), k)
    assert found["precision"] == pytest.approx(theirs["precision"])
    assert found["ndcg"] == pytest.approx(theirs["ndcg"])


def test_pytrec_eval_itself_reports_its_convention() -> None:
    users = [*random_users(50, 60), ([], {1, 2})]
    qrels = {str(u): {str(i): 1 for i in rel} for u, (_, rel) in enumerate(users)}
    run = {
        str(u): {str(i): -float(p) for p, i in enumerate(r)} for u, (r, _) in enumerate(users) if r
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recall.5", "ndcg_cut.5"}).evaluate(run)
    found = CONVENTIONS["pytrec_eval"].of(*as_arrays(users), has_list(users), 5)
    for name, measure in (("recall", "recall_5"), ("ndcg", "ndcg_cut_5")):
        assert found[name] == pytest.approx(np.mean([v[measure] for v in theirs.values()]))
