"""Learning curves: parts are nested, the whole is trained as ever, advice follows the formulas."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reclora.bank import AdapterBank
from reclora.evaluation import EvaluationConfig, RankingJudge, evaluate, hold_out
from reclora.interactions import Interactions
from reclora.learning_curves import (
    REACH,
    SHARES,
    LearningCurves,
    curves_of,
    learning_curves,
    part_name,
    rows_at,
    subsampled,
)
from reclora.training import TrainingConfig, train
from tests.small_worlds import KINDS, SIZES, make_bank, make_base, make_log

BASE = make_base()
LOG = make_log(BASE, weighted=True)
CONFIG = TrainingConfig(epochs=3, batch_rows=16, num_negatives=8)
MEASURED = EvaluationConfig(ks=(5, 10), metrics=("ndcg", "recall"))
LATER = hold_out(make_log(BASE, SIZES, seed=5), make_log(BASE, SIZES, seed=6), MEASURED)
JUDGING = LATER.only_users(lambda rows: rows % 2 == 0)
STOPPING = LATER.only_users(lambda rows: rows % 2 == 1)


def rows_of(log: Interactions, segment: str) -> list[tuple[Any, ...]]:
    part = log.only(segment)
    columns = (part.user_rows, part.item_rows, part.timestamps)
    weights = part.weights if part.weights is not None else np.zeros(len(part))
    return [*zip(*(column.tolist() for column in (*columns, weights)), strict=True)]


# Parts.


@given(st.lists(st.floats(0.01, 0.99), unique=True, max_size=4), st.integers(0, 5))
def test_parts_are_nested_and_the_whole_is_the_segment(below: list[float], seed: int) -> None:
    shares = [*sorted(below), 1.0]
    parts = subsampled(LOG, shares, seed)
    for segment, size in SIZES.items():
        found = [rows_of(parts, part_name(segment, share)) for share in shares]
        assert [len(rows) for rows in found] == [math.ceil(share * size) for share in shares]
        for smaller, larger in zip(found, found[1:], strict=False):
            assert set(smaller) <= set(larger)
        assert part_name(segment, 1) == segment and found[-1] == rows_of(LOG, segment)


def test_a_part_depends_on_its_segment_and_the_seed_alone() -> None:
    alone = subsampled(LOG.only("market 0"))
    together, other = subsampled(LOG), subsampled(LOG, seed=1)
    name = part_name("market 0", 0.25)
    assert rows_of(alone, name) == rows_of(together, name) != rows_of(other, name)
    # Of all its time, not its first or last rows.
    places = [rows_of(LOG, "market 0").index(row) for row in rows_of(together, name)]
    assert min(places) < 40 and max(places) > 110


@pytest.mark.parametrize("shares", [(), (0.0, 1.0), (0.5,), (1.0, 0.5, 1.0), (0.5, 0.5, 1), (2,)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares must ascend, be above 0 and end with 1"):
        subsampled(LOG, shares)


# Training.


@pytest.mark.parametrize("with_parent", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_all_rows_give_what_the_segment_has_without_parts(with_parent: bool, stopped: bool) -> None:
    parent = make_bank("rows", BASE).adapter("日本") if with_parent else None
    found = learning_curves(
        BASE,
        LOG,
        KINDS["rows"],
        CONFIG,
        JUDGING,
        parent=parent,
        stopping=STOPPING if stopped else None,
        shares=(0.5, 1.0),
    )
    bank = AdapterBank.for_log(BASE, LOG, KINDS["rows"], parent=parent)
    train(bank, LOG, CONFIG, judge=RankingJudge(STOPPING) if stopped else None)
    below = BASE.scorer() if parent is None else AdapterBank.of(BASE, [parent]).scorer("日本")
    own, its = (
        evaluate(JUDGING, scorer_of, model="", run="", seed=0).query("metric == 'ndcg' and k == 5")
        for scorer_of in (bank.scorer, lambda _: below)
    )
    table = found.table
    whole = table[(table["share"] == 1) & (table["scope"] == "segment")].set_index("segment")
    for segment in ("market 0", "日本", "../up"):
        here = own["segment"] == segment
        lift = own[here]["value"].mean() - its[here]["value"].mean()
        assert whole.at[segment, "lift"] == pytest.approx(lift, abs=1e-9)
        assert (
            whole.at[segment, "users"] == here.sum() and whole.at[segment, "rows"] == SIZES[segment]
        )
    everybody = table[table["scope"] == "all"].set_index("share")
    assert everybody.at[1.0, "lift"] == pytest.approx((own["value"] - its["value"]).mean())
    assert everybody["users"].tolist() == [len(own)] * 2
    assert found.advice["segment"].tolist() == list(SIZES)
    assert not torch.equal(
        bank.scorer("market 0").scores(torch.arange(3)), below.scores(torch.arange(3))
    )


def test_a_segment_that_is_not_in_the_log_is_named() -> None:
    with pytest.raises(ValueError, match="segment '日本' is held out but not in the log"):
        learning_curves(BASE, LOG.only("market 0"), KINDS["bias"], CONFIG, JUDGING)


# The fit and the advice.


def of_gains(
    lift_of: Any,
    rows: dict[str, int],
    users: dict[str, int],
    noise: float = 0.3,
    shares: tuple[float, ...] = SHARES,
) -> LearningCurves:
    """Users whose gains have the mean that `lift_of` says of so many rows."""
    rng = np.random.default_rng(0)
    parts = []
    for segment, size in rows.items():
        drawn = rng.normal(0, noise, users[segment])
        for share in shares:
            gains = lift_of(rows_at(share, size)) + drawn
            own = pd.DataFrame({"user_id": np.arange(len(gains)), "gain": gains})
            parts.append(own.assign(segment=segment, share=share))
    return curves_of(pd.concat(parts, ignore_index=True), rows)


MANY = {f"s{n}": 100 * (n + 1) for n in range(30)}


def test_the_fit_is_least_squares_weighted_by_users() -> None:
    found = of_gains(lambda n: 0.01 * n**0.3, MANY, {s: 5 + n for n, s in enumerate(MANY)})
    each = found.table[found.table["scope"] == "segment"]
    x = np.log2(each["rows"].to_numpy(np.float64))
    slope, level = np.polyfit(x, each["lift"], 1, w=np.sqrt(each["users"].to_numpy(np.float64)))
    assert (found.level, found.slope) == (pytest.approx(level), pytest.approx(slope))
    assert found.slope_low < slope < found.slope_high


def test_a_curve_that_grows_is_found_and_a_flat_one_has_no_slope() -> None:
    users = dict.fromkeys(MANY, 60)
    grows = of_gains(lambda n: 0.01 * np.log2(n), MANY, users)
    assert grows.slope_low < 0.01 < grows.slope_high and grows.slope_low > 0
    flat = of_gains(lambda n: 0.05, MANY, users)
    assert flat.slope_low < 0 < flat.slope_high
    assert flat.level + 10 * flat.slope == pytest.approx(0.05, abs=0.03)


def test_with_a_flat_curve_advice_is_the_users_needed_in_rows() -> None:
    """As `Effect.users_needed`, with the lift of all and the deviation of all."""
    rows = {f"s{n}": 200 for n in range(20)}
    found = of_gains(lambda n: 0.05, rows, dict.fromkeys(rows, 20), shares=(1.0,))
    each = found.table[found.table["scope"] == "segment"]
    assert found.slope == 0 and found.level == pytest.approx(each["lift"].mean())
    untold = found.advice[found.advice["verdict"] == "cannot tell"]
    assert len(untold) > 10
    z = sum(statistics.NormalDist().inv_cdf(p) for p in (0.975, 0.8))
    rng = np.random.default_rng(0)
    drawn = [rng.normal(0, 0.3, 20) for _ in rows]
    deviation = math.sqrt(sum(d.var(ddof=1) for d in drawn) / len(drawn))
    more = ((z * deviation / found.level) ** 2 / 20 - 1) * 200
    # The grid has 16 steps for each doubling.
    assert untold["more"].tolist() == pytest.approx([more] * len(untold), rel=0.08)
    assert (untold["more_low"] <= untold["more"]).all()
    assert (untold["more"] <= untold["more_high"]).all()
    said = set(untold["says"])
    assert len(said) == 1 and said.pop().startswith("needs about ")


def test_a_growing_curve_needs_fewer_and_follows_its_definition() -> None:
    rows, users = {f"s{n}": 64 for n in range(40)}, {f"s{n}": 8 for n in range(40)}
    found = of_gains(lambda n: 0.02 * np.log2(n) - 0.06, rows, users)
    untold = found.advice[found.advice["verdict"] == "cannot tell"].iloc[0]
    rng = np.random.default_rng(0)
    deviation = math.sqrt(np.mean([rng.normal(0, 0.3, 8).var(ddof=1) for _ in rows]))
    z = sum(statistics.NormalDist().inv_cdf(p) for p in (0.975, 0.8))
    n = 64.0
    while found.level + found.slope * math.log2(n) < z * deviation / math.sqrt(8 * n / 64):
        n += 0.5
    assert untold["more"] == pytest.approx(n - 64, rel=0.08)
    flat = of_gains(lambda n: found.level + found.slope * 6, rows, users)
    assert flat.advice["more"].min() > untold["more"]


def test_where_lift_does_not_grow_more_rows_are_not_asked_for() -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "segment": f"s{n}",
                "share": share,
                "user_id": [f"u{u}" for u in range(20)],
                "gain": rng.normal(-0.01 * share, 0.2, 20),
            }
        )
        for n in range(8)
        for share in (0.25, 0.5, 1.0)
    ]
    rows_of = {f"s{n}": 100 for n in range(8)}
    found = curves_of(pd.concat(parts, ignore_index=True), rows_of)
    assert found.slope < 0
    says = found.advice.loc[found.advice["verdict"] == "cannot tell", "says"]
    assert len(says) and set(says) == {
        "cannot say: more interactions are not seen to lift its like"
    }


def test_what_was_told_needs_nothing_and_what_cannot_be_said_says_why() -> None:
    rows = {"large": 5_000} | {f"s{n}": 40 for n in range(12)} | {"nobody": 10}
    users = {"large": 800} | {f"s{n}": 6 for n in range(12)} | {"nobody": 0}
    found = of_gains(lambda n: 0.2 if n > 500 else 0.01, rows, users).advice.set_index("segment")
    assert found.at["large", "says"] == found.at["large", "verdict"] == "better"
    assert math.isnan(found.at["large", "more"])
    assert found.at["nobody", "says"] == "cannot say: nobody judges it"
    assert found.at["nobody", "more"] == math.inf and found.at["nobody", "users"] == 0
    below = of_gains(lambda n: -0.001, MANY, dict.fromkeys(MANY, 8), noise=0.5).advice
    beyond = below[below["verdict"] == "cannot tell"]
    assert len(beyond) and beyond["more"].gt(0).all()
    said = [one for one in beyond["says"] if one.startswith("cannot say: ")]
    assert said and all(f"{REACH} times its" in one or "not seen to lift" in one for one in said)


def test_users_who_would_have_shown_it_say_so() -> None:
    """The others gain much; this one of as many users nothing."""
    rows = {f"s{n}": 300 for n in range(20)} | {"odd": 300}
    rng = np.random.default_rng(1)
    gains = pd.concat(
        [
            pd.DataFrame(
                {
                    "segment": segment,
                    "share": 1.0,
                    "user_id": range(200),
                    "gain": rng.normal(0 if segment == "odd" else 0.3, 0.3, 200),
                }
            )
            for segment in rows
        ]
    )
    odd = curves_of(gains, rows).advice.set_index("segment").loc["odd"]
    assert odd["verdict"] == "cannot tell" and odd["more"] == math.inf
    assert odd["says"].startswith("cannot say: its 200 users would mostly have shown 0.2")


def test_fewer_users_than_a_sign_test_takes_show_nothing() -> None:
    """However much they gain: three of six that are needed have twice as many rows."""
    rows = {f"s{n}": 50 for n in range(10)}
    found = of_gains(lambda n: 0.9, rows, dict.fromkeys(rows, 3), noise=0.1).advice
    assert (found["verdict"] == "cannot tell").all()
    assert found["more"].tolist() == pytest.approx([50] * 10)
    assert set(found["says"]) == {"needs about 50 more interactions to tell"}


def test_one_segment_has_no_interval_of_the_slope() -> None:
    found = of_gains(lambda n: 0.01, {"a": 100}, {"a": 10})
    assert math.isnan(found.slope_low) and math.isnan(found.advice["more_low"].item())
    assert found.advice["says"].item()


def test_gains_of_no_whole_are_refused() -> None:
    gains = pd.DataFrame({"segment": ["a"], "share": [0.5], "user_id": [1], "gain": [0.1]})
    for some in (gains, gains[:0]):
        with pytest.raises(ValueError, match="gains must be of share 1, all rows"):
            curves_of(some, {"a": 3})
    with pytest.raises(ValueError, match="segment 'a' has gains, but rows_of does not have it"):
        curves_of(gains.assign(share=1.0), {"b": 3})


def test_parts_carry_nothing_of_the_held_out_users() -> None:
    """The same users judge every part."""
    found = learning_curves(BASE, LOG, KINDS["bias"], CONFIG, JUDGING).table
    each = found[found["scope"] == "segment"]
    counts = {s.name: s.num_users for s in JUDGING.segments}
    for share in SHARES:
        here = each[each["share"] == share].set_index("segment")["users"]
        assert here.to_dict() == {s: n for s, n in counts.items() if n}
