"""The results table equals plain loops; the comparison tells what it can and admits the rest."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.evaluation import EvaluationConfig, HeldOut, compare, evaluate, hold_out, means
from reclora.interactions import IdMap, Interactions
from reclora.ranking import Scorer
from tests import reference
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
    assert calls == [(1, 3), (3, 3)]


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
        ({"metrics": ()}, "metrics must be different names"),
        ({"metrics": ("ndgc",)}, "unknown metric 'ndgc'; did you mean 'ndcg'"),
        ({"metrics": ("recall", "recall")}, "metrics must be different names"),
        ({"candidates": "catalog"}, "unknown candidates 'catalog'; did you mean 'catalogue'"),
    ],
)
def test_a_wrong_setting_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**arguments)  # type: ignore[arg-type]


# Means and comparison, on tables written by hand.


def table(values: dict[tuple[str, str, int], list[float]], run: str = "r") -> pd.DataFrame:
    """Results of ndcg@10 from (model, segment, seed) -> one value per user u0, u1, ..."""
    return pd.DataFrame(
        [
            (run, model, segment, seed, f"u{i}", "ndcg", 10, value)
            for (model, segment, seed), column in values.items()
            for i, value in enumerate(column)
        ],
        columns=["run", "model", "segment", "seed", "user_id", "metric", "k", "value"],
    )


def test_means_average_seeds_per_user_first_and_pool_segments_by_user() -> None:
    results = table(
        {
            ("a", "de", 0): [0.0, 1.0],
            ("a", "de", 1): [1.0, 1.0],
            ("a", "all", 0): [0.25],  # a segment may be called like a scope
            ("a", "all", 1): [0.25],
        }
    )
    rows = means(results)
    assert rows.columns.tolist() == ["scope", "segment", "model", "metric", "k", "users", "mean"]
    assert rows[["scope", "segment", "users", "mean"]].values.tolist() == [
        ["all", "", 3, (0.5 + 1.0 + 0.25) / 3],
        ["segment", "de", 2, 0.75],
        ["segment", "all", 1, 0.25],
    ]


def real_table() -> tuple[HeldOut, pd.DataFrame]:
    """Two models and two seeds of real rankings, concatenated as a pipeline does."""
    generator = np.random.default_rng(0)
    log = [
        (SEGMENTS[u % 3], u, int(i))
        for u in range(60)
        for i in generator.choice(30, size=4, replace=False)
    ]
    heldout = hold_out(
        as_interactions(log, 60, 30), as_interactions([], 60, 30), EvaluationConfig(ks=(5, 10))
    )
    parts = []
    for model in ("base", "adapters"):
        for seed in (0, 1):
            torch.manual_seed(seed)
            scores_UN = torch.rand(60, 30)
            if model == "adapters":
                for _, user, item in log:
                    scores_UN[user, item] += 0.4
            parts.append(evaluate(heldout, everywhere(scores_UN), model=model, run="r", seed=seed))
    return heldout, pd.concat(parts, ignore_index=True)


def test_compare_agrees_with_means_and_finds_a_real_gain() -> None:
    _, results = real_table()
    rows = compare(results, "adapters", "base", metric="ndcg", k=10)
    assert rows.columns.tolist() == [
        "model",
        "baseline",
        "metric",
        "k",
        "scope",
        "segment",
        "users",
        "baseline_mean",
        "model_mean",
        "difference",
        "low",
        "high",
        "verdict",
    ]
    assert rows["scope"].tolist() == ["all", "segment", "segment", "segment"]
    assert rows["segment"].tolist() == ["", "de", "jp", "us"]
    assert rows["users"].tolist() == [60, 20, 20, 20]
    mean = means(results).set_index(["scope", "segment", "model", "metric", "k"])["mean"]
    for row in rows.itertuples():
        assert row.baseline_mean == pytest.approx(mean[row.scope, row.segment, "base", "ndcg", 10])
        assert row.model_mean == pytest.approx(mean[row.scope, row.segment, "adapters", "ndcg", 10])
        assert row.difference == pytest.approx(row.model_mean - row.baseline_mean)
        assert 0 < row.low < row.difference < row.high
    assert set(rows["verdict"]) == {"better"}
    assert set(compare(results, "base", "adapters", metric="ndcg", k=10)["verdict"]) == {"worse"}


def test_compare_does_not_depend_on_row_order_or_on_other_segments() -> None:
    _, results = real_table()
    rows = compare(results, "adapters", "base", metric="recall", k=5)
    shuffled = results.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(compare(shuffled, "adapters", "base", metric="recall", k=5), rows)
    only_jp = compare(results[results["segment"] == "jp"], "adapters", "base", metric="recall", k=5)
    assert only_jp.iloc[1].to_dict() == rows.iloc[2].to_dict()


def test_a_table_reads_back_from_parquet_for_the_same_comparison(tmp_path: Path) -> None:
    _, results = real_table()
    results.to_parquet(tmp_path / "results.parquet")
    stored = pd.read_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(
        compare(stored, "adapters", "base", metric="ndcg", k=5),
        compare(results, "adapters", "base", metric="ndcg", k=5),
    )


def test_a_model_against_itself_is_a_zero_width_cannot_tell() -> None:
    results = table({("a", "de", 0): [0.1, 0.3, 0.7] * 10, ("b", "de", 0): [0.1, 0.3, 0.7] * 10})
    rows = compare(results, "b", "a", metric="ndcg", k=10)
    assert rows[["difference", "low", "high"]].values.tolist() == [[0.0, 0.0, 0.0]] * 2
    assert rows["verdict"].tolist() == ["cannot tell"] * 2


def test_a_constant_gain_has_a_zero_width_interval() -> None:
    results = table({("a", "de", 0): [0.0] * 30, ("b", "de", 0): [0.5] * 30})
    row = compare(results, "b", "a", metric="ndcg", k=10).iloc[0]
    assert (row["low"], row["high"], row["verdict"]) == (0.5, 0.5, "better")


def test_one_user_has_no_interval_and_few_have_no_verdict() -> None:
    one = compare(
        table({("a", "de", 0): [0.0], ("b", "de", 0): [1.0]}), "b", "a", metric="ndcg", k=10
    )
    assert math.isnan(one.loc[1, "low"]) and math.isnan(one.loc[1, "high"])
    assert one.loc[1, "verdict"] == "cannot tell"
    verdicts = []
    for users in (2, 5, 6):
        # Twenty further users do not differ: they say nothing about the sign.
        results = table(
            {("a", "de", 0): [0.0] * (users + 20), ("b", "de", 0): [1.0] * users + [0.0] * 20}
        )
        row = compare(results, "b", "a", metric="ndcg", k=10).iloc[1]
        assert row["low"] <= row["difference"] <= row["high"]
        verdicts.append(row["verdict"])
    assert verdicts == ["cannot tell", "cannot tell", "better"]


def test_a_user_on_one_side_only_is_an_error_that_names_it() -> None:
    results = table({("a", "de", 0): [0.1, 0.2], ("b", "de", 0): [0.1, 0.2, 0.3]})
    for model, baseline in (("a", "b"), ("b", "a")):
        with pytest.raises(ValueError, match="'de': user 'u2' has a value of 'b' but none of 'a'"):
            compare(results, model, baseline, metric="ndcg", k=10)


def test_two_runs_of_one_model_are_an_error() -> None:
    one = table({("a", "de", 0): [0.1, 0.2], ("b", "de", 0): [0.3, 0.4]})
    results = pd.concat([one, one.assign(run="r2")])
    for ask in (means, lambda r: compare(r, "b", "a", metric="ndcg", k=10)):
        with pytest.raises(ValueError, match="user 'u0' has two values of ndcg@10 for"):
            ask(results)


def test_what_the_table_lacks_is_named() -> None:
    results = table({("adapters", "de", 0): [0.1, 0.2], ("base", "de", 0): [0.1, 0.2]})
    with pytest.raises(ValueError, match="unknown model 'adapter'; did you mean 'adapters'"):
        compare(results, "adapter", "base", metric="ndcg", k=10)
    with pytest.raises(ValueError, match="unknown metric 'recall'"):
        compare(results, "adapters", "base", metric="recall", k=10)
    with pytest.raises(ValueError, match=r"ndcg at k = \[10\], not at 20"):
        compare(results, "adapters", "base", metric="ndcg", k=20)


def test_ninety_five_percent_intervals_cover_ninety_five_percent() -> None:
    """300 worlds of 150 users, most of whom do not differ, as real lists do; each a segment."""
    generator = np.random.default_rng(1)
    worlds, users, gain = 300, 150, 0.05
    differ = generator.random((worlds, users)) < 0.4
    noise = generator.exponential(0.3, (worlds, users)) * generator.choice([-1, 1], (worlds, users))
    differences = np.where(differ, noise + gain / 0.4, 0.0)  # their true mean is `gain`
    results = table(
        {("b", f"w{w}", 0): differences[w].tolist() for w in range(worlds)}
        | {("a", f"w{w}", 0): [0.0] * users for w in range(worlds)}
    )
    rows = compare(results, "b", "a", metric="ndcg", k=10, samples=400)
    each = rows[rows["scope"] == "segment"]
    covered = ((each["low"] <= gain) & (gain <= each["high"])).mean()
    assert 0.91 <= covered <= 0.98
