"""Shrinkage: a scaled adapter is the dense one scaled, and the estimate is the plain formulas'."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.little_data_benchmarks import SEGMENTS, World, ways
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.bank import AdapterBank
from reclora.configs import AdapterError, DeltaConfig
from reclora.evaluation import EvaluationConfig, evaluate, hold_out
from reclora.modules import adapt
from reclora.shrinkage import (
    MIN_DIFFERING,
    MIN_SEGMENTS,
    scaled,
    shrink,
    shrinkage_of,
    toward_parents,
)
from reclora.store import AdapterStore
from tests.small_worlds import KINDS, SIZES, configs_of, fill, make_bank, make_base, make_log

BASE = make_base()
SEEN = make_log(BASE, dict.fromkeys(SIZES, 12), seed=6)
HELD_OUT = hold_out(
    make_log(BASE, SIZES, seed=5), SEEN, EvaluationConfig(ks=(5,), metrics=("ndcg",))
)
ROWS = dict(SIZES)
ADDITIVE = [kind for kind in KINDS if kind not in ("magnitude", "ladder")]


def parts_of(bank: AdapterBank, segment: str) -> list[torch.Tensor]:
    """All numbers of a segment's merged model."""
    merged = bank.merged(segment)
    tables = [
        getattr(merged, name).materialised() for name in ("user_table", "item_table", "item_bias")
    ]
    assert merged.tower is not None
    return [*tables, *merged.tower.weights, *merged.tower.biases]


# Scaled adapters.


@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("with_parent", [False, True])
@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_every_number_of_the_model_moves_by_c(kind: str, with_parent: bool, c: float) -> None:
    parent = make_bank("rows", BASE).adapter("日本") if with_parent else None
    log = make_log(BASE)
    bank = fill(AdapterBank.for_log(BASE, log, configs_of(kind, log.segment_names), parent=parent))
    segment = "market 0"
    below = AdapterBank.of(BASE, [parent]).merged("日本") if parent else BASE
    got = AdapterBank.of(BASE, [scaled(bank.adapter(segment), c)])
    whole, found = parts_of(bank, segment), parts_of(got, segment)
    assert below.tower is not None
    start = [
        *(getattr(below, n).materialised() for n in ("user_table", "item_table", "item_bias")),
        *below.tower.weights,
        *below.tower.biases,
    ]
    for own, its, scaled_one in zip(whole, start, found, strict=True):
        torch.testing.assert_close(scaled_one, its + c * (own - its), atol=1e-5, rtol=1e-5)
    if c == 0:
        assert got.merged(segment).fingerprint == below.fingerprint
    assert any(not torch.equal(own, its) for own, its in zip(whole, start, strict=True))


def test_the_ends_are_the_adapter_itself_and_its_parent() -> None:
    parent = make_bank("rows", BASE).adapter("日本")
    own = replace(make_bank("ladder", BASE).adapter("market 0"), parent=parent)
    assert scaled(own, 1.0) is own
    served = scaled(own, 0.0)
    assert served.is_served and served.parent is parent and scaled(served, 0.25) is served
    alone = scaled(replace(own, parent=None), 0.0)
    assert alone.num_numbers == 0
    assert AdapterBank.of(BASE, [alone]).merged("market 0").fingerprint == BASE.fingerprint
    half = scaled(own, 0.5)
    assert half.num_numbers == own.num_numbers
    scores = [
        AdapterBank.of(BASE, [a]).scorer("market 0").scores(torch.arange(5))
        for a in (served, half, own)
    ]
    assert not torch.equal(scores[0], scores[1]) and not torch.equal(scores[1], scores[2])


def test_an_adapter_of_modules_is_scaled_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    adapted = adapt(model, DeltaConfig(("0",), "low_rank", rank=2), segments=["s"])
    own = adapted.adapter("s")
    half = scaled(own, 0.5)
    changed = [name for name, t in own.tensors.items() if half.tensors[name] is not t]
    assert [name.rpartition(".")[2] for name in changed] == ["b"]
    with pytest.raises(AdapterError, match="'s' is of modules of a model and has no parent"):
        scaled(own, 0.0)


def test_what_cannot_be_scaled_is_refused() -> None:
    own = make_bank("rows", BASE).adapter("market 0")
    for c in (-0.1, 1.5, float("nan")):
        with pytest.raises(AdapterError, match="'market 0': c must be from 0 .* to 1"):
            scaled(own, c)
    with pytest.raises(AdapterError, match="a learned magnitude"):
        scaled(make_bank("magnitude", BASE).adapter("market 0"), 0.5)
    with pytest.raises(AdapterError, match="segment 'market 0' has no c"):
        toward_parents([own], {"日本": 1.0})


def test_scaled_adapters_are_stored_beside_served_ones(tmp_path: Path) -> None:
    parent = make_bank("rows", BASE).adapter("日本")
    log = make_log(BASE)
    bank = fill(AdapterBank.for_log(BASE, log, KINDS["map"], parent=parent))
    factors = dict(zip(SIZES, (1.0, 0.5, 0.0, 0.25, 0.0), strict=True))
    shrunk = toward_parents(bank.adapters(), factors)
    own = [a for a in shrunk if not a.is_served]
    store = AdapterStore(tmp_path)
    served = [a.segment for a in shrunk if a.is_served]
    store.publish(own, serves_parent=served, parent=parent, reason="shrunk")
    stored = {a.segment: a for a in store.load_all(base_fingerprint=BASE.fingerprint)}
    assert set(stored) == set(SIZES)
    for adapter in shrunk:
        again = stored[adapter.segment]
        assert again.config == adapter.config and again.tensors.keys() == adapter.tensors.keys()
        assert all(torch.equal(t, adapter.tensors[name]) for name, t in again.tensors.items())


# The estimate.


def table_of(parts: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(s, f"u{n}", v) for s, values in parts.items() for n, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["segment", "user_id", "value"])


def of_gains(parts: dict[str, list[float]], rows: int = 50, confidence: float = 0.9):
    """With the parent at zero, and one c."""
    nothing = {s: [0.0] * len(values) for s, values in parts.items()}
    values = {0.0: table_of(nothing), 1.0: table_of(parts)}
    return shrinkage_of(values, dict.fromkeys(parts, rows), confidence)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 2**31), st.booleans())
@settings(deadline=None)
def test_the_estimate_equals_plain_loops(users: list[int], seed: int, differ: bool) -> None:
    rng = np.random.default_rng(seed)
    parts = {
        f"s{n}": rng.normal(0.3 + 2 * differ * rng.normal(), 1, count).tolist()
        for n, count in enumerate(users)
    }
    found = of_gains(parts).table.set_index("segment")
    known = {s: values for s, values in parts.items() if values}
    total = sum(map(len, known.values()))
    assert found["users"].to_dict() == {s: len(values) for s, values in parts.items()}
    if len(known) < MIN_SEGMENTS:
        for name, values in known.items():
            assert found.at[name, "weight"] == 1
            assert found.at[name, "shrunk_gain"] == pytest.approx(statistics.fmean(values))
            assert np.isnan(found.at[name, "chance"]) == (len(values) < MIN_DIFFERING)
        return
    means = {s: statistics.fmean(values) for s, values in known.items()}
    squares = sum((x - means[s]) ** 2 for s, values in known.items() for x in values)
    if total > len(known):
        sigma2 = squares / (total - len(known))
    else:
        sigma2 = statistics.variance([x for values in known.values() for x in values])
    v = {s: sigma2 / len(values) for s, values in known.items()}
    w = {s: 1 / x for s, x in v.items()}
    mean = sum(w[s] * means[s] for s in known) / sum(w.values())
    q = sum(w[s] * (means[s] - mean) ** 2 for s in known)
    below = sum(w.values()) - sum(x * x for x in w.values()) / sum(w.values())
    tau2 = max(0.0, (q - (len(known) - 1)) / below)
    wider = {s: 1 / (x + tau2) for s, x in v.items()}
    mu = sum(wider[s] * means[s] for s in known) / sum(wider.values())
    for name in parts:
        b = tau2 / (tau2 + v[name]) if name in v else 0.0
        gain = mu + b * (means.get(name, mu) - mu)
        error = ((b * v[name] if name in v else tau2) + (1 - b) ** 2 / sum(wider.values())) ** 0.5
        chance = statistics.NormalDist().cdf(gain / error)
        row = found.loc[name]
        assert row["weight"] == pytest.approx(b, abs=1e-9)
        assert row["shrunk_gain"] == pytest.approx(gain, abs=1e-9)
        assert row["shrunk_error"] == pytest.approx(error, rel=1e-6)
        if total < MIN_DIFFERING:
            assert np.isnan(row["chance"]) and row["c"] == 0
            continue
        assert row["chance"] == pytest.approx(chance, abs=1e-6)
        assert row["c"] == (chance >= 0.9)


def test_the_estimate_is_nearer_to_the_truth_and_its_chance_is_calibrated() -> None:
    """Over 4,000 segments of the model's own law."""
    rng = np.random.default_rng(0)
    true_S = rng.normal(0.02, 0.05, 4_000)
    parts = {
        f"s{n}": rng.normal(theta, 0.3, rng.integers(1, 9)).tolist()
        for n, theta in enumerate(true_S.tolist())
    }
    found = of_gains(parts, confidence=0.8)
    table = found.table
    assert found.sizes["prior_mean"].item() == pytest.approx(0.02, abs=0.01)
    assert found.sizes["prior_sd"].item() == pytest.approx(0.05, abs=0.02)
    assert found.sizes["served"].item() == (table["c"] > 0).sum()
    raw = (table["gain"] - true_S) ** 2
    assert ((table["shrunk_gain"] - true_S) ** 2).mean() < raw.mean() / 5
    for low, high in ((0.4, 0.6), (0.6, 0.75), (0.75, 0.95)):
        inside = table["chance"].between(low, high)
        share = (true_S[inside] > 0).mean()
        assert inside.sum() > 200 and low - 0.05 <= share <= high + 0.05
    served = table["c"] > 0
    assert served.sum() > 400 and (true_S[served] > 0).mean() > 0.78
    # Believing each segment's own users puts many below their parents.
    assert (true_S[table["gain"] > 0] > 0).mean() < 0.72


def test_few_users_pass_no_oftener_than_they_should() -> None:
    """Without any gain, and with nobody to lend: one in ten at a chance of .9."""
    rng = np.random.default_rng(5)
    for users in (6, 20):
        passed = sum(
            of_gains({"a": rng.normal(0, 0.2, users).tolist()}).factors["a"] for _ in range(150)
        )
        assert 4 <= passed <= 28


def test_a_handful_that_agrees_by_chance_is_not_believed() -> None:
    """Alone it would be: its three users differ by nothing."""
    rng = np.random.default_rng(1)
    parts = {f"s{n}": rng.normal(0, 0.3, 5).tolist() for n in range(60)}
    parts["lucky"] = [0.2, 0.2, 0.2]
    table = of_gains(parts).table.set_index("segment")
    assert table.at["lucky", "gain"] == pytest.approx(0.2) and table.at["lucky", "c"] == 0
    assert table.at["lucky", "shrunk_gain"] < 0.1


def test_segments_alike_and_better_serve_also_those_without_users() -> None:
    rng = np.random.default_rng(2)
    parts = {f"s{n}": rng.normal(0.2, 0.1, 3).tolist() for n in range(40)} | {"nobody": []}
    table = of_gains(parts).table.set_index("segment")
    assert table.at["nobody", "users"] == 0 and table.at["nobody", "c"] == 1
    worse = of_gains({s: [-x for x in values] for s, values in parts.items()})
    assert set(worse.factors.values()) == {0.0}


def test_a_large_segment_is_judged_by_its_own_users_and_apart_from_small_ones() -> None:
    rng = np.random.default_rng(3)
    large = rng.normal(0.05, 0.2, 500).tolist()
    parts = {f"s{n}": rng.normal(-0.1, 0.2, 4).tolist() for n in range(30)} | {"large": large}
    nothing = {s: [0.0] * len(values) for s, values in parts.items()}
    rows = dict.fromkeys(parts, 40) | {"large": 40_000}
    found = shrinkage_of({0.0: table_of(nothing), 1.0: table_of(parts)}, rows)
    table = found.table.set_index("segment")
    assert table.at["large", "c"] == 1 and table.at["large", "weight"] == 1
    assert table.at["large", "class"] != table.at["s0", "class"]
    assert not table.loc["s0":"s29", "c"].any()  # type: ignore[misc]


def test_the_step_of_which_most_is_to_be_expected_is_taken() -> None:
    """By those who take it: half of the segments lose, the more the farther they go."""
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.05, (40, 10))
    wins = {0.0: 0.0, 0.25: 0.1, 0.5: 0.2, 0.75: 0.3, 1.0: 0.25}
    values = {
        c: table_of(
            {
                f"s{n}": ((win if n % 2 else -2 * win) + (c > 0) * noise[n]).tolist()
                for n in range(40)
            }
        )
        for c, win in wins.items()
    }
    found = shrinkage_of(values, {f"s{n}": 30 for n in range(40)})
    assert found.factors == {f"s{n}": 0.75 if n % 2 else 0.0 for n in range(40)}
    sizes = found.sizes.set_index("c")
    assert sizes["chosen"].tolist() == [False, False, True, False]
    assert sizes["served"].tolist() == [20] * 4 and (sizes["prior_mean"] < 0).all()
    assert sizes.at[0.75, "expected"] == pytest.approx(0.15, abs=0.02)


def test_no_user_at_all_and_no_difference_leave_the_parent() -> None:
    assert of_gains({"a": [], "b": []}).factors == {"a": 0.0, "b": 0.0}
    assert set(of_gains({f"s{n}": [0.0] * 6 for n in range(8)}).factors.values()) == {0.0}
    assert of_gains({"one": [0.7]}).factors == {"one": 0.0}
    same = of_gains({"a": [0.1] * 9}).table
    assert same["chance"].tolist() == [1.0] and same["c"].tolist() == [1.0]


def test_values_that_say_nothing_are_refused() -> None:
    one = table_of({"a": [0.0, 0.1]})
    for values in ({}, {0.0: one}, {0.5: one, 1.0: one}, {0.0: one, 1.5: one}):
        with pytest.raises(ValueError, match="values must be of 0 and of at least one c up to 1"):
            shrinkage_of(values, {"a": 2})
    with pytest.raises(ValueError, match="confidence must be above 0 and below 1, got 1"):
        shrinkage_of({0.0: one, 1.0: one}, {"a": 2}, 1)
    with pytest.raises(ValueError, match=r"c = 1.0 was judged by other users than c = 0"):
        shrinkage_of({0.0: one[:1], 1.0: one}, {"a": 2})


# Both together.


def test_shrinking_ranks_with_the_parent_and_every_step_of_whatever_parents() -> None:
    parent = make_bank("rows", BASE).adapter("日本")
    log = make_log(BASE)
    on_parent = fill(AdapterBank.for_log(BASE, log, KINDS["bias"], parent=parent))
    on_base = make_bank("map", BASE)
    adapters = [
        (on_parent if n % 2 else on_base).adapter(name) for n, name in enumerate(log.segment_names)
    ]
    found = shrink(adapters, BASE, HELD_OUT, ROWS, confidence=0.5)
    assert found.table["segment"].tolist() == list(SIZES)
    assert found.table["rows"].tolist() == list(SIZES.values())
    for n, name in enumerate(SIZES):
        below = AdapterBank.of(BASE, [parent]).scorer("日本") if n % 2 else BASE.scorer()
        held_out = replace(HELD_OUT, segments=tuple(s for s in HELD_OUT.segments if s.name == name))
        own = {}
        row = found.table.set_index("segment").loc[name]
        chosen = found.sizes[found.sizes["chosen"]].set_index("class")["c"]
        c = chosen[row["class"]]
        assert row["c"] in (0, c)
        bank = AdapterBank.of(BASE, [scaled(adapters[n], c)])
        for model, scorer in (("own", bank.scorer(name)), ("parent", below)):
            own[model] = evaluate(
                held_out, lambda _, scorer=scorer: scorer, model=model, run="", seed=0
            )["value"].mean()
        assert row["gain"] == pytest.approx(own["own"] - own["parent"], abs=1e-9, nan_ok=True)
    shrunk = toward_parents(adapters, found.factors)
    assert [a.segment for a in shrunk] == list(SIZES)


def test_where_training_came_to_nothing_nothing_is_learned_of_others() -> None:
    """Its gain is zero for certain, which says nothing of what a trained one is worth."""
    log = make_log(BASE)
    trained = make_bank("bias", BASE)
    untrained = AdapterBank.for_log(BASE, log, KINDS["bias"])
    name = max(SIZES, key=lambda s: SIZES[s])
    adapters = [
        (untrained if segment == name else trained).adapter(segment)
        for segment in log.segment_names
    ]
    rows = shrink(adapters, BASE, HELD_OUT, ROWS).table.set_index("segment")
    assert rows.at[name, "users"] == 0 and np.isnan(rows.at[name, "gain"])
    others = replace(HELD_OUT, segments=tuple(s for s in HELD_OUT.segments if s.name != name))
    alone = shrink(adapters, BASE, others, ROWS).table.set_index("segment")
    pd.testing.assert_frame_equal(rows, alone)
    idle = shrink(untrained.adapters(), BASE, HELD_OUT, ROWS)
    assert set(idle.factors.values()) == {0.0} and not idle.table["users"].any()


def test_an_adapter_that_is_missing_is_named() -> None:
    bank = make_bank("rows", BASE)
    with pytest.raises(AdapterError, match="segment '日本' has no adapter, or no rows"):
        shrink([bank.adapter("market 0")], BASE, HELD_OUT, ROWS)
    with pytest.raises(AdapterError, match="segment 'one row' has no adapter, or no rows"):
        shrink(bank.adapters(), BASE, HELD_OUT, {s: n for s, n in ROWS.items() if s != "one row"})


@pytest.mark.slow
def test_of_a_thousand_tiny_segments_none_ends_below_its_parent() -> None:
    """Half have nothing to learn; judged by six users each, held against 34 others each."""
    world = World.of(SEGMENTS)
    by_way, _ = ways(world)
    told = {name: world.compared(adapters) for name, adapters in by_way.items()}
    worse = {name: int((table["verdict"] == "worse").sum()) for name, table in told.items()}
    assert worse["shrunk"] == 0 and min(worse["own"], worse["own where its judges like it"]) > 10
    assert told["shrunk"]["low"].iat[0] > 0
    assert told["shrunk"]["difference"].iat[0] > told["own"]["difference"].iat[0]
    assert (told["shrunk"]["verdict"].iloc[1:] == "better").sum() > 50
    # The gate of a run by the same estimate, and as it tells all segments as one.
    gate, together = told["the gate, shrunk"], told["the gate, together"]
    assert worse["the gate, shrunk"] == 0 and worse["the gate, together"] > 100
    assert gate["low"].iat[0] > together["high"].iat[0]
