"""The comparison: means, paired intervals and verdicts."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from reclora.comparison import compare, means
from reclora.evaluation import EvaluationConfig, HeldOut, evaluate, hold_out
from tests.test_evaluation import SEGMENTS, as_interactions, everywhere


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


def test_seeds_that_average_to_the_same_value_are_no_gain() -> None:
    """(x + x + x) / 3 may differ from x in its last bit, for every user alike."""
    values = [0.1 * i + 1 / 3 for i in range(1, 30)]
    seeds = {("model", "de", seed): values for seed in range(3)}
    row = compare(table({**seeds, ("base", "de", 0): values}), "model", "base", metric="ndcg", k=10)
    assert row.loc[0, ["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert row.loc[0, "verdict"] == "cannot tell"


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
