"""The comparison: means, paired intervals and verdicts."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from reclora.comparison import (
    benjamini_hochberg,
    bootstrap_means,
    compare,
    means,
    sign_flip_p,
)
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
    assert rows.columns.tolist() == [
        "scope",
        "segment",
        "model",
        "metric",
        "k",
        "users",
        "mean",
        "low",
        "high",
    ]
    assert rows[["scope", "segment", "users", "mean"]].values.tolist() == [
        ["all", "", 3, (0.5 + 1.0 + 0.25) / 3],
        ["segment", "all", 1, 0.25],
        ["segment", "de", 2, 0.75],
    ]


def test_intervals_of_means_are_of_all_and_of_segments_where_asked_for() -> None:
    _, results = real_table()
    each, whole = means(results), means(results, segment_intervals=False)
    assert ((each["low"] < each["mean"]) & (each["mean"] < each["high"])).all()
    segments = whole["scope"] == "segment"
    assert whole.loc[segments, ["low", "high"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(whole[~segments], each[~segments])


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
        "p",
        "q",
        "effect",
        "relative",
        "wins",
        "losses",
        "detectable",
        "users_needed",
        "note",
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
    # All but what is corrected for the number of segments.
    alone, among = (row.drop(["q", "verdict", "note"]) for row in (only_jp.iloc[1], rows.iloc[2]))
    assert alone.to_dict() == among.to_dict()


@pytest.mark.parametrize("dtype", [pd.CategoricalDtype(["9", "10"]), "str", "int64"])
def test_each_segment_has_its_own_users_in_whatever_order_the_table_has_them(dtype: str) -> None:
    """Numbers as names, which their size orders otherwise than their letters do."""
    sizes = {"9": 8, "10": 12}
    gains = {"9": 0.5, "10": 0.25}
    sides = {("b", s, 0): [gains[s]] * n for s, n in sizes.items()}
    results = table({("a", s, 0): [0.0] * n for s, n in sizes.items()} | sides)
    results["segment"] = results["segment"].astype(dtype)
    rows = compare(results, "b", "a", metric="ndcg", k=10)
    found = rows[["segment", "users", "baseline_mean", "model_mean", "difference"]]
    assert found.iloc[1:].values.tolist() == [["10", 12, 0, 0.25, 0.25], ["9", 8, 0, 0.5, 0.5]]
    own = means(results).query("model == 'b'")[["segment", "users", "mean"]]
    assert own.iloc[1:].values.tolist() == [["10", 12, 0.25], ["9", 8, 0.5]]


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
    # Rounding is no deviation.
    values = [0.1 * i + 1 / 3 for i in range(30)]
    results = table({("a", "de", 0): values, ("b", "de", 0): [x + 0.1 for x in values]})
    row = compare(results, "b", "a", metric="ndcg", k=10).iloc[0]
    assert math.isnan(row["effect"])
    assert (row["detectable"], row["users_needed"]) == (0, 0)


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
    with pytest.raises(ValueError, match="there are no results to compare"):
        compare(pd.DataFrame(columns=["metric", "k", "model"]), "a", "b", metric="ndcg", k=10)
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
    rows = compare(results, "b", "a", metric="ndcg", k=10)
    each = rows[rows["scope"] == "segment"]
    covered = ((each["low"] <= gain) & (gain <= each["high"])).mean()
    assert 0.91 <= covered <= 0.98


# Resampling.


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


GOLDEN = 0x9E3779B97F4A7C15


def slow_bootstrap(values: list[list[float]], samples: int, seed: int) -> list[list[float]]:
    """The means in plain loops."""
    found = []
    for sample in range(samples):
        state, drawn = mix((mix((seed + GOLDEN) % 2**64) + sample) % 2**64), []
        while len(drawn) < len(values):
            state = (state + GOLDEN) % 2**64
            number = mix(state)
            drawn += [(half * len(values)) >> 32 for half in (number % 2**32, number >> 32)]
        chosen = [values[u] for u in drawn[: len(values)]]
        found.append([sum(column) / len(values) for column in zip(*chosen, strict=True)])
    return found


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9),
    st.integers(0, 2**63),
)
def test_the_bootstrap_is_that_of_plain_loops(values: list[list[float]], seed: int) -> None:
    found = bootstrap_means(np.array(values), 4, seed)
    np.testing.assert_allclose(found, slow_bootstrap(values, 4, seed), rtol=1e-12, atol=1e-12)


def test_the_bootstrap_draws_every_user_as_often() -> None:
    users = 12
    means_SC = bootstrap_means(np.eye(users), 20_000, 3)
    shares = means_SC.mean(axis=0)
    assert np.abs(shares - 1 / users).max() < 5 * (1 / users / users / 20_000) ** 0.5
    # Of one sample: a multinomial, whose counts vary by 1 - 1 / U.
    assert (means_SC * users).var(axis=0).mean() == pytest.approx(1 - 1 / users, rel=0.02)
    with pytest.raises(ValueError, match="at least one user"):
        bootstrap_means(np.empty((0, 1)), 10, 0)


def test_the_interval_is_scipys() -> None:
    generator = np.random.default_rng(4)
    values = generator.exponential(1, 300) - 0.9
    results = table({("b", "de", 0): values.tolist(), ("a", "de", 0): [0.0] * 300})
    row = compare(results, "b", "a", metric="ndcg", k=10).iloc[0]
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=generator
    ).confidence_interval
    width = theirs.high - theirs.low
    assert row["low"] == pytest.approx(theirs.low, abs=0.06 * width)
    assert row["high"] == pytest.approx(theirs.high, abs=0.06 * width)


@pytest.mark.parametrize("users", [4, 12, 40, 300])
def test_the_randomisation_test_is_scipys(users: int) -> None:
    generator = np.random.default_rng(users)
    differences = generator.normal(1.2 / users**0.5, 1, users).round(1)
    theirs = scipy.stats.permutation_test(
        (differences, np.zeros(users)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=generator,
    ).pvalue
    found = sign_flip_p(differences, 0)
    # Twenty exceedances give a p-value to about a fifth.
    assert found == pytest.approx(theirs, rel=1e-9 if users <= 12 else 0.5)


def test_the_edges_of_the_randomisation_test() -> None:
    assert math.isnan(sign_flip_p(np.empty(0), 0))
    assert sign_flip_p(np.zeros(5), 0) == 1.0
    assert sign_flip_p(np.array([1.0, 0.0]), 0) == 1.0
    assert sign_flip_p(np.array([0.5] * 6), 0) == 2 / 64
    assert sign_flip_p(np.array([0.5] * 40), 0) == 1 / 10_000
    # Sums that are equal but for rounding are as far out.
    assert sign_flip_p(np.array([0.1, 0.2, 0.3]), 0) == 2 / 8
    assert sign_flip_p(np.array([0.1, 0.2, -0.3]), 0) == 1.0


def test_p_values_of_nothing_are_uniform() -> None:
    generator = np.random.default_rng(11)
    p = np.array(
        [
            sign_flip_p(generator.exponential(1, 60) * generator.choice([-1, 1], 60), i)
            for i in range(600)
        ]
    )
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 3 * (level * (1 - level) / 600) ** 0.5
    assert 0.42 < np.median(p) < 0.58


# Seeds.


def seeded(shifts: list[float], users: int = 200) -> pd.DataFrame:
    """A model whose every seed is off by a number for all users, beside a base of one seed."""
    noise = np.random.default_rng(2).normal(0, 0.1, users)
    sides = {("m", "de", s): (noise + shift).tolist() for s, shift in enumerate(shifts)}
    return table({**sides, ("base", "de", 0): [0.0] * users})


def test_seeds_that_agree_change_nothing_and_seeds_that_do_not_widen_the_interval() -> None:
    widths = []
    for shifts in ([0.1], [0.1] * 3, [0.0, 0.1, 0.2]):
        row = compare(seeded(shifts), "m", "base", metric="ndcg", k=10).iloc[0]
        assert row["difference"] == pytest.approx(
            seeded([0.1]).groupby("model")["value"].mean()["m"]
        )
        widths.append(row["high"] - row["low"])
    assert widths[0] == pytest.approx(widths[1])
    # Three seeds of deviation .082: the mean of three drawn of them deviates by .047.
    assert widths[2] > 3 * widths[0]
    wide = means(seeded([0.0, 0.1, 0.2])).set_index("model").loc["m"].iloc[0]
    assert wide["high"] - wide["low"] == pytest.approx(widths[2], rel=0.05)


def test_seeds_of_both_models_are_drawn_together_where_they_are_the_same() -> None:
    """Each seed moves both models alike: the difference does not know of it."""
    shifts = (0.0, 0.3, 0.6)
    noise = np.random.default_rng(3).normal(0, 0.1, 100)
    pairs = {
        (model, "de", s): (noise * (model == "m") + shift).tolist()
        for model in ("m", "base")
        for s, shift in enumerate(shifts)
    }
    row = compare(table(pairs), "m", "base", metric="ndcg", k=10).iloc[0]
    assert row["high"] - row["low"] < 0.06
    others = {(m, g, s + 7 * (m == "m")): v for (m, g, s), v in pairs.items()}
    row = compare(table(others), "m", "base", metric="ndcg", k=10).iloc[0]
    assert row["high"] - row["low"] > 0.5


def test_a_user_without_a_value_of_one_seed_is_named() -> None:
    results = table({("m", "de", 0): [0.1, 0.2], ("m", "de", 1): [0.1], ("b", "de", 0): [0.1, 0.2]})
    with pytest.raises(ValueError, match="'u1' has no value of ndcg@10 for 'm' and seed 1"):
        compare(results, "m", "b", metric="ndcg", k=10)


def test_users_to_whom_a_metric_gives_nothing_are_left_out() -> None:
    results = table({("m", "de", 0): [0.5, math.nan, 0.7], ("b", "de", 0): [0.1, 0.2, math.nan]})
    row = compare(results, "m", "b", metric="ndcg", k=10).iloc[1]
    assert (row["users"], row["difference"]) == (1, pytest.approx(0.4))
    rows = means(results)
    assert rows["users"].tolist() == [2, 2, 2, 2]


# Many segments, and what could be told.


def test_q_values_are_scipys_and_leave_nan_out() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    q = benjamini_hochberg(p)
    assert math.isnan(q[1])
    assert q[[0, 2, 3, 4]] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()
    assert benjamini_hochberg(np.empty(0)).shape == (0,)


def test_of_the_segments_called_better_few_are_not() -> None:
    """200 segments of 60 users, 40 of them better: uncorrected, 5 % of 160 would be 8 false."""
    generator = np.random.default_rng(7)
    better, wrong = [], []
    for _ in range(5):
        gains = {f"s{i:03}": 0.15 if i < 40 else 0.0 for i in range(200)}
        sides = {("m", s, 0): generator.normal(g, 0.25, 60).tolist() for s, g in gains.items()}
        base = {("b", s, 0): [0.0] * 60 for s in gains}
        rows = compare(table({**sides, **base}), "m", "b", metric="ndcg", k=10)
        each = rows[rows["scope"] == "segment"]
        told = each.loc[each["verdict"] != "cannot tell", "segment"]
        better.append(len(told))
        wrong.append(sum(gains[s] == 0 for s in told))
    assert sum(better) > 5 * 30
    assert sum(wrong) / sum(better) < 0.08


def test_one_of_thousands_of_segments_can_be_told() -> None:
    """A p-value of 1 in 10,000 would be .3 after the correction."""
    generator = np.random.default_rng(8)
    sides = {("m", f"s{i:04}", 0): generator.normal(0, 1, 30).tolist() for i in range(3000)}
    sides["m", "s1234", 0] = generator.normal(2, 1, 30).tolist()
    base = {("b", segment, 0): [0.0] * 30 for _, segment, _ in sides}
    rows = compare(table({**sides, **base}), "m", "b", metric="ndcg", k=10)
    each = rows[rows["scope"] == "segment"]
    assert each.loc[each["verdict"] != "cannot tell", "segment"].tolist() == ["s1234"]


def test_effects_and_power_by_hand() -> None:
    d = [0.3, 0.1, 0.0, -0.1, 0.2, 0.3, 0.2, 0.1]
    results = table({("m", "de", 0): [0.5 + x for x in d], ("b", "de", 0): [0.5] * 8})
    row = compare(results, "m", "b", metric="ndcg", k=10).iloc[0]
    deviation = np.std(d, ddof=1)
    assert row["effect"] == pytest.approx(np.mean(d) / deviation)
    assert row["relative"] == pytest.approx(np.mean(d) / 0.5)
    assert (row["wins"], row["losses"]) == (6, 1)
    reach = (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * deviation
    assert row["detectable"] == pytest.approx(reach / 8**0.5)
    assert row["users_needed"] == pytest.approx((reach / np.mean(d)) ** 2)


def test_relative_has_the_sign_of_the_difference() -> None:
    """Also of a metric below zero, such as a log likelihood."""
    results = table({("m", "de", 0): [-0.5] * 9, ("b", "de", 0): [-0.7] * 9})
    row = compare(results, "m", "b", metric="ndcg", k=10).iloc[0]
    assert row["relative"] == pytest.approx(0.2 / 0.7) and row["verdict"] == "better"


def test_power_is_what_it_says() -> None:
    """A true difference of `detectable` is found four times in five."""
    generator = np.random.default_rng(5)
    users = 100
    detectable = 2.8016 / users**0.5
    sides = {("m", f"s{i}", 0): generator.normal(detectable, 1, users).tolist() for i in range(400)}
    base = {("b", f"s{i}", 0): [0.0] * users for i in range(400)}
    rows = compare(table({**sides, **base}), "m", "b", metric="ndcg", k=10)
    found = (rows[rows["scope"] == "segment"]["low"] > 0).mean()
    assert 0.73 < found < 0.87


def test_a_verdict_that_cannot_be_says_why() -> None:
    generator = np.random.default_rng(9)
    sides = {
        "one": [0.5],
        "few": [0.5, 0.4, 0.3] + [0.0] * 9,
        "noise": generator.normal(0.001, 1, 50).tolist(),
        "gain": [0.5] * 30,
        "same": [0.0] * 30,
    }
    results = table(
        {("m", s, 0): v for s, v in sides.items()}
        | {("b", s, 0): [0.0] * len(v) for s, v in sides.items()}
    )
    rows = compare(results, "m", "b", metric="ndcg", k=10).set_index("segment")
    assert rows.loc["gain", ["verdict", "note"]].tolist() == ["better", ""]
    assert rows.loc["one", "note"] == "too few users"
    assert rows.loc["few", "note"] == "only 3 of 12 users differ"
    assert rows.loc["same", "note"] == "only 0 of 30 users differ"
    assert "50 users show differences from" in rows.loc["noise", "note"]
    # Among many segments an interval that excludes zero is not enough.
    many = {f"s{i:02}": generator.normal(0.32, 1, 50).tolist() for i in range(1)} | {
        f"t{i:02}": generator.normal(0, 1, 50).tolist() for i in range(60)
    }
    results = table(
        {("m", s, 0): v for s, v in many.items()} | {("b", s, 0): [0.0] * 50 for s in many}
    )
    rows = compare(results, "m", "b", metric="ndcg", k=10)
    excluded = rows[((rows["low"] > 0) | (rows["high"] < 0)) & (rows["verdict"] == "cannot tell")]
    assert len(excluded) and excluded["note"].str.contains("but q = ").all()
