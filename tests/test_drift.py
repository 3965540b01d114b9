"""Drift: windows are what they are called, old ones know nothing newer, and fading lift is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.drift import (
    BASE,
    Drift,
    aged,
    drift_of,
    lift_by_age,
    of_age,
    part_name,
    windows_of,
)
from reclora.evaluation import EvaluationConfig, HeldOut, RankingJudge, evaluate, hold_out
from reclora.interactions import IdMap, Interactions
from reclora.recency import DAY
from reclora.training import TrainingConfig, train
from tests.small_worlds import KINDS, SIZES, make_base, make_log

SMALL = make_base()
CONFIG = TrainingConfig(epochs=3, batch_rows=16, num_negatives=8)
MEASURED = EvaluationConfig(ks=(5, 10), metrics=("ndcg", "recall"))


def in_days(log: Interactions, days: float) -> Interactions:
    """The log with its moments stretched over so many days."""
    span = int(log.timestamps.max() - log.timestamps.min())
    return replace(log, timestamps=(log.timestamps * (days * DAY / span)).astype(np.int64))


LOG = in_days(make_log(SMALL, weighted=True), 40)
JUDGING = hold_out(make_log(SMALL, SIZES, seed=5), make_log(SMALL, SIZES, seed=6), MEASURED)


def rows_of(log: Interactions, segment: str) -> list[tuple[Any, ...]]:
    part = log.only(segment)
    columns = (part.timestamps, part.user_rows, part.item_rows)
    weights = part.weights if part.weights is not None else np.zeros(len(part))
    return [*zip(*(column.tolist() for column in (*columns, weights)), strict=True)]


# Windows.


@given(
    st.lists(st.integers(1, 30), unique=True, max_size=4),
    st.none() | st.floats(0.5, 9.5),
    st.booleans(),
)
def test_windows_are_what_a_plain_loop_finds(
    older: list[int], days: float | None, has_weights: bool
) -> None:
    ages = [0.0, *sorted(map(float, older))]
    log = LOG if has_weights else replace(LOG, weights=None)
    first, end = min(log.timestamps.tolist()), max(log.timestamps.tolist())
    length = end - first - ages[-1] * DAY if days is None else round(days * DAY)
    found = aged(log, ages, days)
    assert found.segment_names == tuple(part_name(s, a) for s in SIZES for a in ages)
    for segment in SIZES:
        for age in ages:
            last = end - age * DAY
            assert rows_of(found, part_name(segment, age)) == [
                row for row in rows_of(log, segment) if last - length <= row[0] <= last
            ]
    for age, (begin, last) in windows_of(log, ages, days).items():
        assert (last, last - begin) == (end - age * DAY, length)


def test_fresh_rows_of_all_days_are_the_log() -> None:
    found = aged(LOG, (0,))
    for name in ("offsets", "user_rows", "item_rows", "timestamps", "weights"):
        assert np.array_equal(getattr(found, name), getattr(LOG, name)), name
    assert found.segment_names == LOG.segment_names


@pytest.mark.parametrize(
    ("ages", "days", "message"),
    [
        ((), None, "ages are days that ascend from 0, the fresh one, got \\[\\]"),
        ((1, 2), None, "ages are days that ascend from 0"),
        ((0, 2, 2), None, "ages are days that ascend from 0"),
        ((0, float("nan")), None, "ages are days that ascend from 0"),
        ((0, float("inf")), None, "ages are days that ascend from 0"),
        ((0, 40), None, "an age of 40 days .* of the log's 40 days it does not leave one: lower"),
        ((0, 30), 11, "it does not leave one of 11 days: lower ages or days"),
        ((0, 30), 0, "it does not leave one of 0 days"),
    ],
)
def test_ages_that_cannot_be_are_refused(
    ages: tuple[float, ...], days: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        windows_of(LOG, ages, days)


def test_rows_of_one_moment_have_no_age() -> None:
    still = replace(LOG, timestamps=np.full(len(LOG), 7))
    with pytest.raises(ValueError, match="all 236 rows of the log have one: give it timestamps"):
        aged(still, (0, 1))
    with pytest.raises(ValueError, match="all 0 rows"):
        aged(LOG.select(np.zeros(len(LOG), bool)), (0, 1))


# Training.


@pytest.mark.parametrize("stopped", [False, True])
def test_each_age_is_its_window_trained_alone(stopped: bool) -> None:
    """A segment trains as if it were alone, and the fresh one draws as the segment does."""
    stopping = {a: JUDGING.only_users(lambda u, a=a: u % 2 == int(a > 0)) for a in (0, 4)}
    found = lift_by_age(
        SMALL,
        LOG,
        KINDS["rows"],
        CONFIG,
        JUDGING,
        ages=(0, 4),
        days=30,
        stopping=stopping if stopped else None,
    )
    table = found.table.set_index("age")
    end = LOG.timestamps.max()
    below = SMALL.scorer()
    its = evaluate(JUDGING, lambda _: below, model="", run="", seed=0)
    its = its.query("metric == 'ndcg' and k == 5")["value"].mean()
    for age in (0, 4):
        window = LOG.select(
            (LOG.timestamps <= end - age * DAY) & (LOG.timestamps >= end - (age + 30) * DAY)
        )
        names = [part_name(segment, age) for segment in SIZES]
        window = window.in_segments(names, window.segment_rows)
        users = replace(
            stopping[age],
            segments=tuple(
                replace(s, name=n) for s, n in zip(stopping[age].segments, names, strict=True)
            ),
        )
        bank = AdapterBank.for_log(SMALL, window, KINDS["rows"])
        train(bank, window, CONFIG, judge=RankingJudge(users) if stopped else None)

        def scorer_of(segment: str, bank: AdapterBank = bank, age: int = age) -> Any:
            return bank.scorer(part_name(segment, age))

        own = evaluate(JUDGING, scorer_of, model="", run="", seed=0)
        own = own.query("metric == 'ndcg' and k == 5")["value"]
        assert table.at[age, "lift"] == pytest.approx(own.mean() - its, abs=1e-9)
        assert table.at[age, "rows"] == len(window)
        assert table.at[age, "segments"] == np.count_nonzero(np.diff(window.offsets))
        assert table.at[age, "users"] == len(own) == JUDGING.num_users
    assert table.at[4, "change"] == pytest.approx(table.at[4, "lift"] - table.at[0, "lift"])


def test_an_old_adapter_knows_nothing_newer_than_its_window() -> None:
    """Whatever the rows after it are, and whatever users took then, its numbers stay."""
    end = LOG.timestamps.max()
    is_newer = LOG.timestamps > end - 10 * DAY
    other = replace(LOG, item_rows=np.where(is_newer, LOG.item_rows[::-1], LOG.item_rows))
    tables = [
        lift_by_age(SMALL, log, KINDS["bias"], CONFIG, JUDGING, ages=(0, 10), taken=taken).table
        for log, taken in ((LOG, LOG), (LOG, other), (other, other))
    ]
    fresh, old = ([table["lift"].tolist()[at] for table in tables] for at in (0, 1))
    assert len(set(old)) == 1 and len(set(fresh)) > 1


def test_each_segment_keeps_its_own_kinds() -> None:
    """One without any delta has no lift at any age."""
    nothing = replace(KINDS["bias"], item_bias="none")
    configs = [KINDS["bias"] if segment == "market 0" else nothing for segment in SIZES]
    mixed, alone = (
        lift_by_age(SMALL, LOG, config, CONFIG, judging, ages=(0, 4), days=30).table
        for config, judging in ((configs, JUDGING), (KINDS["bias"], only("market 0")))
    )
    assert alone["users"].iloc[0] < mixed["users"].iloc[0] and alone["lift"].abs().min() > 0
    sums = [table["lift"] * table["users"] for table in (mixed, alone)]
    assert sums[0].tolist() == pytest.approx(sums[1].tolist())


def only(segment: str) -> HeldOut:
    return replace(JUDGING, segments=tuple(s for s in JUDGING.segments if s.name == segment))


def test_a_segment_without_old_rows_is_served_by_the_base() -> None:
    begins = LOG.timestamps[LOG.segment_rows == list(SIZES).index("日本")]
    late = LOG.select((LOG.segment_rows == 0) | (LOG.timestamps > begins.max() - 5 * DAY))
    late = late.select(late.segment_rows <= 1)
    table = lift_by_age(
        SMALL, late, KINDS["bias"], CONFIG, only("日本"), ages=(0, 10), days=20
    ).table
    assert table["segments"].tolist() == [2, 1]
    assert table["lift"].iloc[0] != 0 and table["lift"].iloc[1] == 0
    assert table["lift_verdict"].iloc[1] == "cannot tell"


def test_users_of_other_segments_or_of_too_few_ages_are_refused() -> None:
    part = LOG.only("market 0")
    with pytest.raises(ValueError, match="segment '日本' is held out but not in the log"):
        lift_by_age(SMALL, part, KINDS["bias"], CONFIG, JUDGING, ages=(0, 4))
    with pytest.raises(ValueError, match=r"none for 4 days: it has \[0\]"):
        lift_by_age(SMALL, LOG, KINDS["bias"], CONFIG, JUDGING, ages=(0, 4), stopping={0: JUDGING})


# A world whose tastes turn.

ITEMS, USERS, DAYS = 60, 1500, 80


def turning(degrees_a_day: float, seed: int = 0) -> tuple[BaseModel, Interactions, HeldOut]:
    """Two segments, each with a taste for items that turns in a plane; the last ten days judge.

    The base knows no taste at all.
    """
    rng = np.random.default_rng(seed)
    base = BaseModel.of(
        IdMap(np.arange(USERS)),
        IdMap(np.arange(ITEMS)),
        torch.randn(USERS, 4, generator=torch.Generator().manual_seed(0)) / 9,
        torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(1)) / 9,
        torch.zeros(ITEMS),
        None,
    )
    n = 12_000
    day = np.sort(rng.uniform(0, DAYS, n))
    user = rng.integers(USERS, size=n)
    plane_S2N = rng.normal(0, 1.2, (2, 2, ITEMS))
    angle = np.radians(degrees_a_day * day)
    tastes = plane_S2N[user % 2]
    turned = np.cos(angle)[:, None] * tastes[:, 0] + np.sin(angle)[:, None] * tastes[:, 1]
    item = (turned + rng.gumbel(size=(n, ITEMS))).argmax(axis=1)
    log = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=("even", "odd"),
        segments=user % 2,
        user_rows=user,
        item_rows=item,
        timestamps=(day * DAY).astype(np.int64),
    )
    is_known = log.timestamps <= (DAYS - 10) * DAY
    known = log.select(is_known)
    return base, known, hold_out(log.select(~is_known), known, MEASURED)


def drift_in(degrees_a_day: float) -> Drift:
    base, known, judging = turning(degrees_a_day)
    training = TrainingConfig(epochs=6, batch_rows=64, num_negatives=32, bias_lr=0.1)
    return lift_by_age(base, known, KINDS["bias"], training, judging, ages=(0, 2, 14, 28), days=20)


def test_where_tastes_turn_lift_falls_with_age() -> None:
    found = drift_in(2)
    table = found.table
    assert table["lift"].is_monotonic_decreasing and table["lift_verdict"].iloc[0] == "better"
    assert table["verdict"].tolist() == ["", "cannot tell", "worse", "worse"]
    assert (table["change_high"].iloc[2:] < 0).all()
    assert found.says.startswith("Retrain every 2 days: adapters 14 days older than fresh ones")
    assert f"{table['change'].iloc[2]:+.4f} [" in found.says
    assert found.says.endswith("; of those 2 days older none can be told.")


def test_where_tastes_stay_no_age_is_told_worse() -> None:
    found = drift_in(0)
    table = found.table
    assert set(table["lift_verdict"]) == {"better"} and "worse" not in set(table["verdict"])
    users = table["users"].iloc[0]
    assert found.says.startswith("No age up to 28 days is told worse than fresh adapters")
    assert f"retraining every 28 days loses nothing that {users:,} users can show" in found.says


# From results.


def results_of(
    lifts: dict[float, float], users: int = 400, noise: float = 0.1, seeds: int = 1
) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for model, lift in {BASE: 0.0, **{of_age(a): lift for a, lift in lifts.items()}}.items():
        for seed in range(seeds if model != BASE else 1):
            own = pd.DataFrame({"user_id": np.arange(users), "segment": np.arange(users) % 3})
            value = lift + rng.normal(0, noise, users)
            parts.append(own.assign(model=model, seed=seed, metric="ndcg", k=10, value=value))
    return pd.concat(parts, ignore_index=True)


def found_of(lifts: dict[float, float], **named: Any) -> Drift:
    return drift_of(results_of(lifts, **named), {age: np.array([5, 0, 7]) for age in lifts})


@pytest.mark.parametrize(
    ("lifts", "says"),
    [
        ({0: 0.2, 7: 0.2, 30: 0.1}, "Retrain every 7 days: adapters 30 days older"),
        # The first that is told, whatever comes after it.
        ({0: 0.2, 7: 0.2, 30: 0.1, 365: 0.2}, "Retrain every 7 days: adapters 30 days older"),
        ({0: 0.2, 7: 0.1, 30: 0.1}, "Adapters 7 days older than fresh ones are told worse by 400"),
        ({0: 0.2, 7: 0.2, 30: 0.3}, "No age up to 30 days is told worse than fresh adapters"),
        ({0: 0.0, 7: 0.0, 30: -0.3}, "Cannot tell how often to retrain: fresh adapters are not"),
    ],
)
def test_the_cadence_is_the_age_before_the_first_that_is_told_worse(
    lifts: dict[float, float], says: str
) -> None:
    found = found_of(lifts)
    assert found.says.startswith(says)
    assert found.says.endswith(
        ". Retrain more often than that." if lifts[0] - lifts[7] > 0.05 else "."
    )


def test_the_table_is_the_means_of_the_same_users() -> None:
    results = results_of({0: 0.2, 7: 0.15, 30: 0.1}, seeds=2)
    table = found_of({0: 0.2, 7: 0.15, 30: 0.1}, seeds=2).table
    means = results.groupby("model")["value"].mean()
    models = ["fresh", "7 days older", "30 days older"]
    assert table["age"].tolist() == [0, 7, 30]
    assert table["lift"].tolist() == pytest.approx((means[models] - means["base"]).tolist())
    assert table["change"].tolist() == pytest.approx((means[models] - means["fresh"]).tolist())
    assert set(table["users"]) == {400} and set(table["rows"]) == {12}
    assert set(table["segments"]) == {2}
    for name in ("lift", "change"):
        rows = table.iloc[int(name == "change") :]
        assert (rows[f"{name}_low"] < rows[name]).all() and (
            rows[name] < rows[f"{name}_high"]
        ).all()
    assert table.loc[0, ["change", "verdict"]].tolist() == [0, ""]
    assert np.isnan(table.loc[0, ["change_low", "change_high", "q"]].to_numpy(float)).all()


def test_verdicts_are_corrected_for_the_number_of_ages() -> None:
    """What alone is told a little worse is not among twelve that are as the fresh one."""
    lifts = {0.0: 0.2, 1.0: 0.184} | {float(age): 0.2 for age in range(2, 14)}
    alone, among = (found_of(some).table for some in ({0.0: 0.2, 1.0: 0.184}, lifts))
    assert alone["verdict"].tolist() == ["", "worse"]
    assert among["change"].iloc[1] == alone["change"].iloc[1]
    assert among["q"].iloc[1] > alone["q"].iloc[1] and set(among["verdict"]) == {"", "cannot tell"}


def test_results_that_show_no_drift_are_refused() -> None:
    results, rows = results_of({0: 0.1, 7: 0.1}), np.array([3])
    with pytest.raises(ValueError, match=r"the fresh adapters and older ones, got the ages \[0\]"):
        drift_of(results, {0: rows})
    both = pd.concat([results, results.assign(k=5)])
    with pytest.raises(ValueError, match="a drift is of one metric and k"):
        drift_of(both, {0: rows, 7: rows})
    with pytest.raises(ValueError, match="has a value of"):
        drift_of(results[:-3], {0: rows, 7: rows})


def test_names_are_of_days() -> None:
    assert [of_age(age) for age in (0, 1, 7, 0.5)] == [
        "fresh",
        "1 day older",
        "7 days older",
        "0.5 days older",
    ]
    assert part_name("a", 0) == "a" and part_name("a", 7) == "a\0007 days older"
