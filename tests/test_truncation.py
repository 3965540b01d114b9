"""Ranks from one training: a cut is the dense one, the curve is what is ranked, bytes are kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from reclora.adapters import Adapter
from reclora.arithmetic import recompress
from reclora.bank import AdapterBank
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.evaluation import EvaluationConfig, HeldOut, evaluate, hold_out
from reclora.ladder import smallest_within_error
from reclora.modules import adapt
from reclora.store import AdapterStore
from reclora.truncation import RankCurve, rank_curve, truncate, within_budget
from tests import reference
from tests.small_worlds import KINDS, MIXED, SIZES, fill, make_bank, make_base, make_log

BASE = make_base()
LOG = make_log(BASE)
SEEN = make_log(BASE, dict.fromkeys(SIZES, 12), seed=6)
NEXT = make_log(BASE, SIZES, seed=5)
HELD_OUT = hold_out(NEXT, SEEN, EvaluationConfig(ks=(5, 10), metrics=("ndcg", "recall")))
LADDER = AdapterConfig("scale + map + rows", "map", rank=4, alpha=2.0, rank_stabilised=True)


def bank_of(*configs: AdapterConfig, parent: Adapter | None = None) -> AdapterBank:
    """A bank of random numbers over `LOG`; configs are repeated until each segment has one."""
    each = [configs[code % len(configs)] for code in range(len(SIZES))]
    return fill(AdapterBank.for_log(BASE, LOG, each, parent=parent))


def values_at(curve: RankCurve, rank: int) -> dict[tuple[str, object], float]:
    part = curve.values[curve.values["rank"] == rank]
    return dict(zip(zip(part["segment"], part["user_id"], strict=True), part["value"], strict=True))


def evaluated(bank: AdapterBank, held_out: HeldOut = HELD_OUT) -> dict[tuple[str, object], float]:
    table = evaluate(held_out, bank.scorer, model="m", run="r", seed=0)
    table = table[(table["metric"] == "ndcg") & (table["k"] == 5)]
    return dict(
        zip(zip(table["segment"], table["user_id"], strict=True), table["value"], strict=True)
    )


# Against the matrices themselves.


def dense(left: torch.Tensor, right: torch.Tensor, rank: int) -> NDArray[np.float64]:
    """The whole product, cut by its singular value decomposition."""
    u, s, vh = np.linalg.svd(left.double().numpy() @ right.double().numpy(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def dense_scores(adapter: Adapter, rank: int) -> list[list[float]]:
    """Scores of all users and items by whole tables and weights, in plain loops."""
    config, t = adapter.config, adapter.tensors
    assert isinstance(config, AdapterConfig) and BASE.tower is not None
    tables = []
    for name, side in (("user_table", "users"), ("item_table", "items")):
        table = getattr(BASE, name).materialised().double().numpy()
        if f"{name}.scale.c" in t:
            table = table * (1 + t[f"{name}.scale.c"].double().numpy())
        if f"{name}.map.b" in t:
            change = dense(t[f"{name}.map.a"].T, t[f"{name}.map.b"], rank)
            table = table + config.scaling * table @ change
        if f"{name}.rows.b" in t:
            rows = t[f"{side}.rows"].numpy()
            table[rows] += config.scaling * dense(t[f"{name}.rows.a"], t[f"{name}.rows.b"], rank)
        tables.append(table)
    bias = BASE.item_bias.materialised()[:, 0].double().numpy()
    if "item_bias.bias.d" in t:
        bias[t["items.rows"].numpy()] += t["item_bias.bias.d"][:, 0].double().numpy()
    layers = []
    for i, (w, b) in enumerate(zip(BASE.tower.weights, BASE.tower.biases, strict=True)):
        whole = w.double().numpy()
        if f"tower.{i}.weight.low_rank.b" in t:
            left, right = (t[f"tower.{i}.weight.low_rank.{factor}"] for factor in "ba")
            whole = whole + config.scaling * dense(left, right, rank)
        layers.append((whole.tolist(), b.tolist()))
    users, items = (table.tolist() for table in tables)
    return [
        [reference.score(u, v, b, layers) for v, b in zip(items, bias, strict=True)] for u in users
    ]


def triples(log: Any) -> list[tuple[str, int, int]]:
    codes = np.repeat(np.arange(len(log.segment_names)), np.diff(log.offsets))
    names = [log.segment_names[code] for code in codes]
    return list(zip(names, log.user_rows.tolist(), log.item_rows.tolist(), strict=True))


@pytest.mark.parametrize("config", [KINDS["rows"], LADDER], ids=["rows", "ladder"])
def test_the_curve_equals_dense_matrices_and_plain_loops(config: AdapterConfig) -> None:
    bank = bank_of(config)
    ranks = range(config.rank + 1)
    curve = rank_curve(bank.adapters(), BASE, HELD_OUT, ranks)
    for rank in ranks:
        expected = {}
        for segment in ("market 0", "../up"):
            scores = dense_scores(bank.adapter(segment), rank)
            heldout = [row for row in triples(NEXT) if row[0] == segment]
            found = reference.evaluate(heldout, triples(SEEN), scores, ["ndcg"], [5])
            expected |= {
                (s, BASE.users.ids[user].as_py()): value for (s, user, _, _), value in found.items()
            }
        got = {
            key: v for key, v in values_at(curve, rank).items() if key[0] in ("market 0", "../up")
        }
        assert got == pytest.approx(expected, abs=1e-9)
        assert len(got) > 40


# Cuts.

kinds = st.tuples(
    st.sampled_from(("rows", "map", "map + rows", "scale + rows", "scale", "full", "none")),
    st.sampled_from(("rows", "map", "none")),
    st.sampled_from(("bias", "none")),
    st.sampled_from(("low_rank", "full", "none")),
)


@given(kinds, st.integers(1, 5), st.booleans(), st.integers(0, 7))
def test_a_cut_is_recompressed_and_what_is_not_smaller_is_not_touched(
    kinds: Any, trained: int, stabilised: bool, rank: int
) -> None:
    config = AdapterConfig(*kinds, trained, 3.0, stabilised)
    adapter = bank_of(config).adapter("日本")
    (cut,) = truncate([adapter], rank)
    has_product = any({"rows", "map", "low_rank"} & {*kind.split(" + ")} for kind in kinds)
    if rank >= trained or not has_product:
        assert cut is adapter
    elif rank:
        same = recompress(adapter, rank)
        assert cut.config == same.config and cut.tensors.keys() == same.tensors.keys()
        assert all(torch.equal(t, same.tensors[name]) for name, t in cut.tensors.items())
        assert all(t.is_contiguous() for t in cut.tensors.values())
    else:
        assert not any(".rows." in n or ".map." in n or "low_rank" in n for n in cut.tensors)
    # A bank takes it, and gives it back bit for bit.
    again = AdapterBank.of(BASE, [cut]).adapter("日本")
    assert again.config == cut.config and again.tensors.keys() == cut.tensors.keys()
    assert all(torch.equal(t, cut.tensors[name]) for name, t in again.tensors.items())


def test_rank_0_is_what_is_no_product_on_the_parent() -> None:
    parent = bank_of(KINDS["rows"]).adapter("market 0")
    bank = bank_of(KINDS["rows"], parent=parent)
    whole, below = bank.merged("日本"), AdapterBank.of(BASE, [parent]).merged("market 0")
    (cut,) = truncate([bank.adapter("日本")], 0)
    got = AdapterBank.of(BASE, [cut]).merged("日本")
    assert torch.equal(got.item_bias.materialised(), whole.item_bias.materialised())
    assert not torch.equal(got.item_bias.materialised(), below.item_bias.materialised())
    for name in ("user_table", "item_table"):
        assert torch.equal(getattr(got, name).materialised(), getattr(below, name).materialised())
    assert got.tower is not None and below.tower is not None
    assert all(map(torch.equal, got.tower.weights, below.tower.weights))
    # Users' rows are needed by nothing any more, items' by the bias.
    assert len(cut.tensors["users.rows"]) == 0 and len(cut.tensors["items.rows"])
    alone = replace(KINDS["rows"], item_bias="none")
    (nothing,) = truncate([bank_of(alone, parent=parent).adapter("日本")], 0)
    served = AdapterBank.of(BASE, [nothing]).merged("日本")
    assert served.fingerprint == below.fingerprint and nothing.num_numbers == 0


def test_each_segment_is_cut_to_its_own_rank_and_stored(tmp_path: Path) -> None:
    bank = make_bank("rows", BASE)
    ranks = dict(zip(SIZES, (3, 0, 1, 2, 0), strict=True))
    cuts = truncate(bank.adapters(), ranks)
    store = AdapterStore(tmp_path)
    store.publish(cuts, reason="cut")
    stored = {a.segment: a for a in store.load_all(base_fingerprint=BASE.fingerprint)}
    curve = rank_curve(bank.adapters(), BASE, HELD_OUT)
    for cut in cuts:
        loaded = stored[cut.segment]
        assert loaded.config == cut.config and loaded.tensors.keys() == cut.tensors.keys()
        assert all(torch.equal(t, cut.tensors[name]) for name, t in loaded.tensors.items())
        takes = sum(t.nbytes for t in loaded.tensors.values())
        assert curve.bytes_SK.at[cut.segment, ranks[cut.segment]] == takes
    live = evaluated(AdapterBank.of(BASE, list(stored.values())))
    for segment, rank in ranks.items():
        expected = {key: v for key, v in values_at(curve, rank).items() if key[0] == segment}
        assert {key: v for key, v in live.items() if key[0] == segment} == expected


# The curve.


@pytest.mark.parametrize("parent", [False, True])
def test_at_its_own_rank_an_adapter_is_as_it_was_trained(parent: bool) -> None:
    below = bank_of(KINDS["rows"]).adapter("market 0") if parent else None
    for bank in (bank_of(KINDS["rows"], parent=below), bank_of(LADDER, parent=below)):
        curve = rank_curve(bank.adapters(), BASE, HELD_OUT)
        assert values_at(curve, bank.configs[0].rank) == evaluated(bank)
        assert all(values_at(curve, r).keys() == evaluated(bank).keys() for r in curve.ranks)


def test_segments_of_other_kinds_and_ranks_stand_in_one_curve() -> None:
    mixed = {**MIXED, "日本": KINDS["map"]}
    bank = bank_of(*(mixed[name] for name in SIZES))
    curve = rank_curve(bank.adapters(), BASE, HELD_OUT)
    assert curve.ranks == [0, 1, 2, 4, 5] and curve.segments == list(SIZES)
    whole = evaluated(bank)
    for segment, config in zip(SIZES, bank.configs, strict=True):
        own = bank.adapter(segment)
        takes = sum(t.nbytes for t in own.tensors.values())
        for rank in curve.ranks:
            if rank >= config.rank or config.tower == "full":
                at = {key: v for key, v in values_at(curve, rank).items() if key[0] == segment}
                assert at == {key: v for key, v in whole.items() if key[0] == segment}
                assert curve.bytes_SK.at[segment, rank] == takes
    assert (np.diff(curve.bytes_SK.to_numpy(), axis=1) >= 0).all()


def test_ranks_are_those_asked_for_or_powers_of_two() -> None:
    adapters = bank_of(AdapterConfig(rank=6)).adapters()
    assert rank_curve(adapters, BASE, HELD_OUT).ranks == [0, 1, 2, 4, 6]
    asked = rank_curve(adapters, BASE, HELD_OUT, (5, 1, 5))
    assert asked.ranks == [1, 5] and set(asked.values["rank"]) == {1, 5}
    only_bias = bank_of(KINDS["bias"]).adapters()
    assert rank_curve(only_bias, BASE, HELD_OUT).ranks == [0]


def test_identifiers_that_only_the_cut_directions_know_are_still_judged() -> None:
    """The held-out log is on the grown maps, the cut adapters bring no identifier any more."""
    grown = BASE.grown(BASE.users.extended([1_000_000]), BASE.items.extended(["new"]))
    rows = [torch.tensor([0, 5, 40])], [torch.tensor([1, 2, 30])]
    config = replace(KINDS["rows"], item_bias="none")
    adapters = fill(AdapterBank(grown, ["s"], *rows, config)).adapters()
    (cut,) = truncate(adapters, 0)
    assert len(cut.tensors["users.new_ids"]) == len(cut.tensors["items.new_id_bytes"]) == 0
    log, seen = make_log(grown, {"s": 200}, seed=3), make_log(grown, {"s": 20}, seed=4)
    held_out = hold_out(log, seen, EvaluationConfig(ks=(5,), metrics=("ndcg",)))
    curve = rank_curve(adapters, BASE, held_out, (0, 3))
    frozen = grown.scorer()
    table = evaluate(held_out, lambda _: frozen, model="m", run="r", seed=0)
    assert values_at(curve, 0) == dict(
        zip(zip(table["segment"], table["user_id"], strict=True), table["value"], strict=True)
    )
    assert ("s", 1_000_000) in values_at(curve, 0)


class Decompositions(TorchDispatchMode):
    """Counts singular value decompositions."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "svd" in str(func)
        return func(*args, **(kwargs or {}))


def test_every_product_is_decomposed_once_however_many_ranks() -> None:
    adapters = bank_of(KINDS["rows"]).adapters()
    with Decompositions() as counted:
        rank_curve(adapters, BASE, HELD_OUT)
    assert counted.count == len(adapters) * 4  # two tables and two weights


# The choice.


def curve_of(values: dict[str, dict[int, list[float]]], sizes: dict[str, list[int]]) -> RankCurve:
    rows = [
        (segment, rank, f"u{user}", value)
        for segment, by_rank in values.items()
        for rank, own in by_rank.items()
        for user, value in enumerate(own)
    ]
    ranks = list(next(iter(values.values())))
    table = pd.DataFrame(rows, columns=["segment", "rank", "user_id", "value"])
    return RankCurve(table, pd.DataFrame(sizes, index=ranks).T)


def test_the_smallest_rank_that_validation_cannot_tell_from_the_best() -> None:
    rng = np.random.default_rng(0)
    level, noise = rng.uniform(size=400), rng.normal(0, 0.2, 400)
    curve = curve_of(
        {
            "flat": {0: list(level), 1: list(level + noise), 4: list(level - noise)},
            "steep": {0: list(level), 1: list(level + 0.2), 4: list(level + 0.3)},
            "nobody": {0: [], 1: [], 4: []},
        },
        {"flat": [10, 20, 50], "steep": [10, 20, 50], "nobody": [1, 2, 5]},
    )
    assert curve.smallest_ranks() == {"flat": 0, "steep": 4, "nobody": 0}
    parts = {str(r): part for r, part in curve.values.groupby("rank")}
    assert curve.smallest_rank() == int(smallest_within_error(parts)) == 4
    table = curve.table().set_index(["scope", "segment", "rank"])
    assert table["users"].to_dict()["segment", "nobody", 4] == 0
    assert table.at[("all", "", 1), "bytes"] == 42 and table.at[("all", "", 1), "users"] == 800
    assert table.at[("segment", "steep", 1), "behind"] == pytest.approx(0.1)
    assert table.at[("segment", "steep", 0), "mean"] == pytest.approx(level.mean())
    assert table["chosen"].sum() == 4


def test_bytes_go_where_they_gain_most() -> None:
    """A large segment's first step gains .5 a byte, the small ones' .4 and .1 a byte."""
    curve = curve_of(
        {
            "large": {0: [0.0, 0.0], 1: [0.1, 0.4], 2: [0.1, 0.4]},
            "small": {0: [0.0], 1: [0.4], 2: [0.5]},
            "harmed": {0: [0.9], 1: [0.1], 2: [0.2]},
            "nobody": {0: [], 1: [], 2: []},
        },
        {"large": [5, 6, 9], "small": [1, 2, 3], "harmed": [2, 3, 4], "nobody": [1, 2, 3]},
    )
    wanted = {9: (0, 0), 10: (1, 0), 11: (1, 1), 12: (1, 2), 1000: (1, 2)}
    for num_bytes, (large, small) in wanted.items():
        chosen = curve.ranks_within(num_bytes)
        assert chosen == {"large": large, "small": small, "harmed": 0, "nobody": 0}
    with pytest.raises(ValueError, match=r"at least the 9 bytes that 4 segments .* got 8: allow"):
        curve.ranks_within(8)


def test_the_same_values_in_another_order_are_no_gain() -> None:
    values = [0.1, 0.2, 0.3, 0.7]
    orders = {at: list(order) for at, order in enumerate(itertools.permutations(values))}
    assert len({sum(order) for order in orders.values()}) > 1, "rounding differs"
    curve = curve_of({"s": orders}, {"s": list(range(1, 1 + len(orders)))})
    assert curve.ranks_within(1000) == {"s": 0}


choices = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.tuples(
            st.lists(st.integers(0, 6), min_size=k, max_size=k),
            st.lists(st.integers(-4, 9), min_size=k, max_size=k),
        ),
        min_size=1,
        max_size=4,
    )
)


def as_arrays(parts: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bytes from what each choice takes more than the one before, and gains."""
    return np.cumsum([p[0] for p in parts], axis=1), np.array([p[1] for p in parts], np.float64)


def spent(bytes_SK: NDArray[Any], places_S: NDArray[np.int64]) -> Any:
    return bytes_SK[np.arange(len(bytes_SK)), places_S].sum()


def best(bytes_SK: NDArray[np.int64], gains_SK: NDArray[np.float64], num_bytes: int) -> float:
    """The most that any choice gains, all of them tried."""
    tried = itertools.product(range(bytes_SK.shape[1]), repeat=len(bytes_SK))
    return max(
        float(spent(gains_SK, places))
        for places in map(np.array, tried)
        if spent(bytes_SK, places) <= num_bytes
    )


@given(choices, st.integers(0, 40))
def test_a_budget_is_kept_and_more_of_it_gains_no_less(parts: Any, extra: int) -> None:
    bytes_SK, gains_SK = as_arrays(parts)
    budget = int(bytes_SK[:, 0].sum()) + extra
    gains = []
    for num_bytes in range(budget, budget + 12):
        places_S = within_budget(bytes_SK, gains_SK, num_bytes)
        assert spent(bytes_SK, places_S) <= num_bytes
        gains.append(spent(gains_SK, places_S))
        # Nothing is paid for what gains nothing.
        assert (gains_SK[np.arange(len(parts)), places_S] >= gains_SK[:, 0]).all()
    assert gains == sorted(gains)
    everything = within_budget(bytes_SK, gains_SK, 10**6)
    assert spent(gains_SK, everything) == gains_SK.max(axis=1).sum()
    with pytest.raises(ValueError, match="a budget must be at least"):
        within_budget(bytes_SK, gains_SK, int(bytes_SK[:, 0].sum()) - 1)


@given(choices, st.integers(0, 40))
def test_a_budget_is_short_of_the_best_by_less_than_a_step(parts: Any, extra: int) -> None:
    """The best of all choices, tried one after the other, is no more than one step better."""
    bytes_SK, gains_SK = as_arrays(parts)
    budget = int(bytes_SK[:, 0].sum()) + extra
    got = spent(gains_SK, within_budget(bytes_SK, gains_SK, budget))
    largest_step = (gains_SK.max(axis=1) - gains_SK[:, 0]).max()
    assert got <= best(bytes_SK, gains_SK, budget) <= got + largest_step


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 70),
)
def test_with_concave_gains_and_equal_steps_it_is_the_best(
    steps: list[list[int]], price: int, extra: int
) -> None:
    falling = np.sort(np.array(steps, np.float64), axis=1)[:, ::-1]
    gains_SK = np.concatenate([np.zeros((len(steps), 1)), falling.cumsum(axis=1)], axis=1)
    bytes_SK = np.arange(4)[None] * price + np.arange(len(steps))[:, None]
    budget = int(bytes_SK[:, 0].sum()) + extra
    places_S = within_budget(bytes_SK, gains_SK, budget)
    assert spent(gains_SK, places_S) == best(bytes_SK, gains_SK, budget)


def test_ties_go_to_the_earlier_segment() -> None:
    bytes_SK, gains_SK = np.array([[0, 2]] * 3), np.array([[0.0, 1.0]] * 3)
    assert within_budget(bytes_SK, gains_SK, 4).tolist() == [1, 1, 0]


def test_where_nobody_can_be_asked_the_smallest_rank_is_taken() -> None:
    everything = hold_out(NEXT, NEXT, EvaluationConfig(ks=(5,), metrics=("ndcg",)))
    curve = rank_curve(bank_of(KINDS["rows"]).adapters(), BASE, everything)
    assert len(curve.values) == 0 and curve.smallest_rank() == 0
    assert curve.smallest_ranks() == curve.ranks_within(10**9) == dict.fromkeys(SIZES, 0)
    assert set(curve.table()["users"]) == {0}


# What is refused.


def test_what_cannot_be_cut_is_refused() -> None:
    basis = bank_of(AdapterConfig("basis", "rows", rank=3)).adapters()
    with pytest.raises(AdapterError, match="segment 'market 0' has the kind `basis`, .* beside"):
        truncate(basis, 2)
    assert truncate(basis, 3)[0] is basis[0]
    with pytest.raises(AdapterError, match="`basis`"):
        rank_curve(basis, BASE, HELD_OUT)
    alone = bank_of(KINDS["basis"])
    assert values_at(rank_curve(alone.adapters(), BASE, HELD_OUT), 0) == evaluated(alone)
    magnitude = bank_of(KINDS["magnitude"]).adapters()
    with pytest.raises(AdapterError, match="a learned magnitude"):
        rank_curve(magnitude, BASE, HELD_OUT)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    of_modules = adapt(model, DeltaConfig(("0",), "low_rank", rank=2), segments=["s"]).adapter("s")
    for call in (
        lambda: truncate([of_modules], 1),
        lambda: rank_curve([of_modules], BASE, HELD_OUT),
    ):
        with pytest.raises(AdapterError, match="'s' is of modules of a model: cut it by"):
            call()


def test_ranks_that_were_not_trained_are_refused() -> None:
    adapters = bank_of(KINDS["rows"]).adapters()
    for ranks in ((0, 4), (-1,), ()):
        with pytest.raises(ValueError, match="ranks must be from 0 to 3, the largest"):
            rank_curve(adapters, BASE, HELD_OUT, ranks)
    with pytest.raises(AdapterError, match="'market 0' needs a rank of 0 or more, got -1"):
        truncate(adapters, -1)
    with pytest.raises(AdapterError, match="segment '日本' needs a rank of 0 or more, got None"):
        truncate(adapters, {"market 0": 1})
    with pytest.raises(AdapterError, match="at least one adapter"):
        rank_curve([], BASE, HELD_OUT)
    with pytest.raises(AdapterError, match="no segment '日本'"):
        rank_curve(adapters[:1], BASE, HELD_OUT)


def test_an_adapter_that_is_served_by_its_parent_stays_so() -> None:
    parent = bank_of(KINDS["rows"]).adapter("market 0")
    own = bank_of(KINDS["rows"], parent=parent).adapter("market 0")
    served = Adapter("日本", (), BASE.fingerprint, {}, parent)
    assert truncate([own, served], 1)[1] is served
    held_out = replace(
        HELD_OUT, segments=tuple(s for s in HELD_OUT.segments if s.name in ("market 0", "日本"))
    )
    curve = rank_curve([own, served], BASE, held_out, (0, 1, 3))
    assert curve.bytes_SK.loc["日本"].tolist() == [0, 0, 0]
    assert curve.ranks_within(10**9)["日本"] == curve.smallest_ranks()["日本"] == 0
