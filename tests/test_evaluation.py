"""The results table equals plain loops; nothing seen is recommended; odd settings are refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.comparison import means
from reclora.configs import AdapterConfig
from reclora.evaluation import EvaluationConfig, RankingJudge, evaluate, hold_out
from reclora.interactions import IdMap, Interactions
from reclora.ranking import Scorer
from tests import reference
from tests.small_worlds import fill
from tests.test_ranking import Matrix

SEGMENTS = ("de", "jp", "us")
NUM_USERS, NUM_ITEMS = 4, 7


def as_interactions(
    log: reference.Log, num_users: int = NUM_USERS, num_items: int = NUM_ITEMS
) -> Interactions:
    return Interactions.from_arrays(
        users=IdMap([f"u{i}" for i in range(num_users)]),
        items=IdMap([10 * i for i in range(num_items)]),
        segment_names=SEGMENTS,
        segments=np.array([SEGMENTS.index(segment) for segment, _, _ in log], dtype=np.int64),
        user_rows=np.array([user for _, user, _ in log], dtype=np.int64),
        item_rows=np.array([item for _, _, item in log], dtype=np.int64),
        timestamps=np.arange(len(log)),
    )


def everywhere(scores_UN: Tensor) -> Callable[[str], Scorer]:
    return lambda segment: Matrix(scores_UN)


LOGS = st.lists(
    st.tuples(
        st.sampled_from(SEGMENTS),
        st.integers(0, NUM_USERS - 1),
        st.integers(0, NUM_ITEMS - 1),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(LOGS, LOGS, st.integers(0, 10**6), st.sampled_from(["catalogue", "segment"]))
def test_the_table_equals_the_reference(
    heldout: reference.Log, seen: reference.Log, seed: int, candidates: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores_UN = torch.randint(0, 4, (NUM_USERS, NUM_ITEMS), generator=generator).float()
    config = EvaluationConfig((2, 9), ("recall", "capped_recall", "ndcg"), candidates)
    prepared = hold_out(as_interactions(heldout), as_interactions(seen), config)
    results = evaluate(prepared, everywhere(scores_UN), model="m", run="r", seed=0)
    expected = reference.evaluate(
        heldout, seen, scores_UN.tolist(), config.metrics, config.ks, candidates == "segment"
    )
    values = {(r.segment, int(r.user_id[1:]), r.metric, r.k): r.value for r in results.itertuples()}
    assert len(values) == len(results)
    assert values == pytest.approx(expected, rel=1e-12)
    counts = prepared.counts().set_index("segment")
    for segment in SEGMENTS:
        users = {u for s, u, _ in heldout if s == segment}
        kept = {u for s, u, _, _ in expected if s == segment}
        assert counts.loc[segment, "users"] == len(kept)
        assert counts.loc[segment, "users_without_relevant"] == len(users - kept)


def test_the_table_has_one_form() -> None:
    log = as_interactions([("us", 0, 1), ("us", 1, 2), ("de", 1, 3)])
    empty = as_interactions([])
    calls = []
    results = evaluate(
        hold_out(log, empty, EvaluationConfig(ks=(1,), metrics=("ndcg", "recall"))),
        everywhere(torch.eye(NUM_USERS, NUM_ITEMS)),
        model="base",
        run="r1",
        seed=7,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert results.dtypes.astype(str).to_dict() == {
        "run": "category",
        "model": "category",
        "segment": "category",
        "seed": "int64",
        "user_id": "str",
        "metric": "category",
        "k": "int64",
        "value": "float64",
    }
    assert results["segment"].tolist() == ["de"] * 2 + ["us"] * 4
    assert results["user_id"].tolist() == ["u1", "u1", "u0", "u1", "u0", "u1"]
    assert results["metric"].tolist() == ["ndcg", "recall", "ndcg", "ndcg", "recall", "recall"]
    assert set(results["run"]) == {"r1"} and set(results["seed"]) == {7}
    assert calls == [(3, 3)]


def test_a_log_with_nothing_relevant_gives_an_empty_table() -> None:
    log = as_interactions([("us", 0, 1)])
    prepared = hold_out(log, log, EvaluationConfig())
    full = hold_out(log, as_interactions([]), EvaluationConfig())
    scorer_of = everywhere(torch.zeros(NUM_USERS, NUM_ITEMS))
    results = evaluate(prepared, scorer_of, model="m", run="r", seed=0)
    expected = evaluate(full, scorer_of, model="m", run="r", seed=0)
    assert results.empty
    assert results.dtypes.to_dict() == expected.dtypes.to_dict()
    assert prepared.counts()["users_without_relevant"].tolist() == [0, 0, 1]


def test_the_six_users_whose_metrics_the_field_cannot_agree_on() -> None:
    """Ours is the convention of RePlay, ir-measures, ranx and RecTools: .5200 and .5387."""
    relevant = [{1}, {0, 1, 2, 3, 4}, {4, 5}, {1, 2}, set(), {3}]
    lists = [[1, 0, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], []]
    scores_UN = torch.full((6, NUM_ITEMS), -math.inf)
    for user, ranked in enumerate(lists):
        for place, item in enumerate(ranked):
            scores_UN[user, item] = -float(place)
    log = as_interactions([("us", u, i) for u in range(6) for i in relevant[u]], num_users=6)
    empty = as_interactions([], num_users=6)
    prepared = hold_out(log, empty, EvaluationConfig(ks=(3,)))
    results = evaluate(prepared, everywhere(scores_UN), model="m", run="r", seed=0)
    mean = means(results).set_index(["scope", "metric"])["mean"]
    assert round(mean["all", "recall"], 4) == 0.5200
    assert round(mean["all", "ndcg"], 4) == 0.5387


def test_seen_in_any_segment_is_never_recommended_nor_relevant() -> None:
    seen = as_interactions([("de", 0, 0), ("us", 0, 1)])
    heldout = as_interactions([("us", 0, 0), ("us", 0, 2)])
    scores_UN = torch.tensor([[9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0]] * NUM_USERS)
    prepared = hold_out(heldout, seen, EvaluationConfig(ks=(1,)))
    results = evaluate(prepared, everywhere(scores_UN), model="m", run="r", seed=0)
    assert results["value"].tolist() == [1.0, 1.0]


def test_a_relevant_item_outside_the_candidates_counts_as_missed() -> None:
    seen = as_interactions([("us", 1, 0), ("de", 1, 2)])
    heldout = as_interactions([("us", 0, 0), ("us", 0, 2)])
    scores_UN = torch.zeros(NUM_USERS, NUM_ITEMS)
    for candidates, expected in (("catalogue", 1.0), ("segment", 0.5)):
        config = EvaluationConfig(ks=(NUM_ITEMS,), metrics=("recall",), candidates=candidates)
        prepared = hold_out(heldout, seen, config)
        results = evaluate(prepared, everywhere(scores_UN), model="m", run="r", seed=0)
        assert results["value"].tolist() == [expected]


def test_each_segment_is_ranked_by_its_own_scorer() -> None:
    log = as_interactions([("de", 0, 1), ("us", 0, 2)])
    prepared = hold_out(log, as_interactions([]), EvaluationConfig(ks=(1,), metrics=("recall",)))
    rows = {"de": 1, "us": 2}  # no "jp": nobody is held out there, so it is not asked for
    results = evaluate(
        prepared,
        lambda s: Matrix(torch.eye(NUM_ITEMS)[rows[s]].expand(NUM_USERS, -1)),
        model="m",
        run="r",
        seed=0,
    )
    assert results["value"].tolist() == [1.0, 1.0]


def test_a_diverged_model_is_named_by_segment() -> None:
    log = as_interactions([("de", 0, 1), ("jp", 2, 1)])
    prepared = hold_out(log, as_interactions([]), EvaluationConfig())
    good, bad = torch.zeros(NUM_USERS, NUM_ITEMS), torch.zeros(NUM_USERS, NUM_ITEMS)
    bad[2, 3] = math.nan
    with pytest.raises(ValueError, match="'jp'.*user row 2 and item row 3 is nan"):
        evaluate(
            prepared,
            lambda s: Matrix(bad if s == "jp" else good),
            model="m",
            run="r",
            seed=0,
        )


def test_another_catalogue_or_id_map_is_refused() -> None:
    log = as_interactions([("de", 0, 1)])
    with pytest.raises(ValueError, match="on the same id maps"):
        hold_out(log, as_interactions([], num_users=5), EvaluationConfig())
    with pytest.raises(ValueError, match="on the same id maps"):
        hold_out(log, as_interactions([], num_items=8), EvaluationConfig())
    prepared = hold_out(log, as_interactions([]), EvaluationConfig())
    with pytest.raises(ValueError, match="'de': 'm' must score the 7 items.*got a scorer of 8"):
        evaluate(prepared, everywhere(torch.zeros(NUM_USERS, 8)), model="m", run="r", seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ks": ()}, "ks must be different whole numbers from 1"),
        ({"ks": (10, 10)}, "ks must be different"),
        ({"ks": (0,)}, "from 1, got"),
        ({"ks": 10}, r"^ks must be a tuple of whole numbers, such as \(10, 20\), got 10$"),
        ({"ks": ("10",)}, r"ks must be a tuple of whole numbers, .* got \('10',\)$"),
        ({"ks": (10.5,)}, r"ks must be a tuple of whole numbers, .* got \(10\.5,\)$"),
        (
            {"metrics": "ndcg"},
            r'^metrics must be a tuple of names, such as \("ndcg", .* got \'ndcg\'',
        ),
        ({"metrics": (3,)}, r"metrics must be a tuple of names, .* got \(3,\)$"),
        ({"metrics": ()}, "metrics must be different names"),
        ({"metrics": ("ndgc",)}, "unknown name in metrics 'ndgc'; did you mean 'ndcg'"),
        ({"metrics": ("nDCG",)}, r"unknown name in metrics 'nDCG'; did you mean 'ndcg'\?$"),
        ({"metrics": ("zzz",)}, "unknown name in metrics 'zzz'; expected one of .*'ndcg'"),
        ({"metrics": ("recall", "recall")}, "metrics must be different names"),
        ({"candidates": "catalog"}, "unknown candidates 'catalog'; did you mean 'catalogue'"),
    ],
)
def test_a_wrong_setting_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**arguments)  # type: ignore[arg-type]


# The judge of training.


@settings(max_examples=25, deadline=None)
@given(LOGS, LOGS, st.permutations(range(len(SEGMENTS))), st.integers(1, 3))
def test_the_judge_gives_the_mean_of_the_headline(
    heldout: reference.Log, seen: reference.Log, order: list[int], count: int
) -> None:
    """In the order asked for; NaN for a segment in which nobody has anything relevant."""
    held, before = as_interactions(heldout), as_interactions(seen)
    base = BaseModel.random(held.users, held.items, 3, (), 0)
    bank = fill(AdapterBank.for_log(base, before.joined(held), AdapterConfig(rank=2)))
    prepared = hold_out(held, before, EvaluationConfig((3, 1), ("recall", "ndcg")))
    asked = np.array(order[:count])
    found = RankingJudge(prepared)(bank, asked)
    table = evaluate(prepared, bank.scorer, model="", run="", seed=0)
    headline = table[(table["metric"] == "recall") & (table["k"] == 3)]
    for code, value in zip(asked, found, strict=True):
        values = headline.loc[headline["segment"] == SEGMENTS[code], "value"]
        assert value == pytest.approx(values.mean(), nan_ok=True)
    assert len(found) == count and found.dtype == np.float64


def test_the_judge_of_no_segment_says_nothing() -> None:
    log = as_interactions([("de", 0, 1)])
    base = BaseModel.random(log.users, log.items, 3, (), 0)
    bank = AdapterBank.for_log(base, log, AdapterConfig(rank=2))
    judge = RankingJudge(hold_out(log, as_interactions([]), EvaluationConfig()))
    assert judge(bank, np.array([], dtype=np.int64)).shape == (0,)


def test_some_users_are_measured_as_among_all() -> None:
    generator = np.random.default_rng(5)
    log = [(SEGMENTS[u % 3], u, int(i)) for u in range(30) for i in generator.choice(20, 5, False)]
    seen = [(s, u, (i + 7) % 20) for s, u, i in log]
    config = EvaluationConfig(ks=(5,), metrics=("ndcg",))
    whole = hold_out(as_interactions(log, 30, 20), as_interactions(seen, 30, 20), config)
    scorer_of = everywhere(torch.rand(30, 20, generator=torch.Generator().manual_seed(0)))
    half = whole.only_users(lambda rows: rows % 2 == 1)
    of_all, of_half = (
        evaluate(held_out, scorer_of, model="m", run="r", seed=0) for held_out in (whole, half)
    )
    odd = of_all["user_id"].str.slice(1).astype(int) % 2 == 1
    assert 0 < half.num_users == odd.sum() < whole.num_users
    assert of_half["user_id"].tolist() == of_all.loc[odd, "user_id"].tolist()
    assert of_half["value"].tolist() == of_all.loc[odd, "value"].tolist()
