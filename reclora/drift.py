"""This file is how adapters age: the same segments, trained on windows that end earlier.

    window(a) = the rows of [end - a - days, end - a]        end: the log's last moment
    lift(a)   = mean over users of ( value of the adapter of window(a) - value of the base )
    change(a) = lift(a) - lift(0)                            a: age in days; 0 is fresh

All windows are of one length in time and all adapters are judged by the same later users, so of two
of them nothing but the age differs, and what comes with it: where fewer rows came in earlier days,
an older window holds fewer, and a part of its loss may be theirs. The change is what waiting costs,
and so how often to retrain.

lift_by_age   a log and a recipe -> Drift: trains, ranks, measures
drift_of      the same from results that were measured elsewhere
aged          a log -> the window of every age of each segment, each a segment of its own
windows_of    a log -> the first and last moment of every window
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.comparison import compare
from reclora.configs import AdapterConfig
from reclora.evaluation import HeldOut, RankingJudge, ScorerOf, evaluate, headline_of
from reclora.interactions import Interactions
from reclora.recency import DAY
from reclora.training import TrainingConfig, train

BASE = "base"
"""What results call the frozen base; adapters of an age they call as `of_age` does."""


@dataclass(frozen=True)
class Drift:
    """How the lift of adapters changes with their age."""

    table: pd.DataFrame
    """One row an age: age, rows and segments (of its window), users, lift (over the base),
    lift_low, lift_high, lift_verdict, change (to the fresh one), change_low, change_high, q,
    verdict. Verdicts are corrected for the number of ages; a fresh one has no change to tell."""
    says: str
    """The cadence of retraining that follows, in words."""


def lift_by_age(
    base: BaseModel,
    log: Interactions,
    config: AdapterConfig | Sequence[AdapterConfig],
    training: TrainingConfig,
    judging: HeldOut,
    *,
    ages: Sequence[float],
    days: float | None = None,
    stopping: Mapping[float, HeldOut] | None = None,
    taken: Interactions | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> Drift:
    """Train every segment on the window of each age, in one pass, and measure each on the same
    users.

        drift = lift_by_age(base, train_log, config, training, test, ages=(0, 7, 30))
        print(drift.says)

    A segment without rows in a window is served by the base at that age, with a lift of zero: an
    adapter as old as that it could not have had. Adapters stand on the base alone. A parent that
    was trained on newer rows would bring these into the old ones.

    Args:
        log: without fading (`reclora.recency`): an old window fades from its own end, not the
            log's.
        config: of all segments, or of each.
        judging: users later than the log, of segments of it; its headline metric is the lift's.
        ages, days: see `windows_of`.
        stopping: age -> the users who choose the epochs of that age. What was known when an adapter
            was trained is what came by the end of its window and shortly after: let newer users
            choose, and they keep back the old adapters that aged. Without them every part trains
            all epochs.
        taken: as `train` has it; of its rows no part is told those after the end of its window.

    Raises:
        ValueError: as `windows_of`, `train` and `drift_of`; a segment is held out that the log does
            not have; there are no stopping users of an age.
    """
    windows = windows_of(log, ages, days)
    parts = _parts(log, windows)
    configs = config
    if not isinstance(config, AdapterConfig):
        configs = [own for own in config for _ in windows]
    bank = AdapterBank.for_log(base, parts, configs, seed)
    judge = None if stopping is None else RankingJudge(_of_parts(stopping, log, ages))
    before = None
    if taken is not None:
        always = np.iinfo(np.int64).min
        before = _parts(taken, {age: (always, last) for age, (_, last) in windows.items()})
    train(bank, parts, training, judge=judge, seed=seed, taken=before)
    headline = headline_of(judging)
    headline.check_segments(log)
    frozen = base.scorer()

    def scorer_of(age: float) -> ScorerOf:
        return lambda segment: bank.scorer(part_name(segment, age))

    models: dict[str, ScorerOf] = {BASE: lambda _: frozen}
    models |= {of_age(age): scorer_of(age) for age in ages}
    results = [evaluate(headline, of, model=m, run="", seed=seed) for m, of in models.items()]
    sizes = np.diff(parts.offsets).reshape(log.num_segments, len(ages))
    rows_of = {age: sizes[:, at] for at, age in enumerate(ages)}
    return drift_of(pd.concat(results, ignore_index=True), rows_of, confidence)


def windows_of(
    log: Interactions, ages: Sequence[float], days: float | None = None
) -> dict[float, tuple[int, int]]:
    """Age -> the first and the last moment of its window, both in it, in microseconds since 1970.

    Args:
        ages: in days; they ascend from 0.
        days: how long each window is; if not given, as long as all ages have one: what is left of
            the log's span before the oldest one ends.

    Raises:
        ValueError: ages do not ascend from 0; the log has one moment or none; the oldest age leaves
            no window, or none of so many days.
    """
    if not ages or ages[0] != 0 or any(not a < b for a, b in pairwise((*ages, np.inf))):
        raise ValueError(f"ages are days that ascend from 0, the fresh one, got {[*ages]}")
    first, end = (int(log.timestamps.min()), int(log.timestamps.max())) if len(log) else (0, 0)
    if first == end:
        raise ValueError(
            f"ages need rows of different moments, and all {len(log):,} rows of the log have one: "
            "give it timestamps"
        )
    oldest = end - round(ages[-1] * DAY)
    longest = oldest - first
    length = longest if days is None else round(days * DAY)
    if not 0 < length <= longest:
        asked = "one" if days is None else f"one of {days:g} days"
        raise ValueError(
            f"an age of {ages[-1]:g} days must leave a window before it, and of the log's "
            f"{(end - first) / DAY:.4g} days it does not leave {asked}: lower ages"
            + ("" if days is None else " or days")
        )
    ends = {age: end - round(age * DAY) for age in ages}
    return {age: (last - length, last) for age, last in ends.items()}


def aged(log: Interactions, ages: Sequence[float], days: float | None = None) -> Interactions:
    """The window of every age of each segment, each a segment of its own (`part_name`).

    It holds up to as many times the log's rows as there are ages; attributes are left out. With the
    age 0 alone and no `days` it is the log itself.

    Args:
        ages, days: see `windows_of`.

    Raises:
        ValueError: as `windows_of`.
    """
    return _parts(log, windows_of(log, ages, days))


def part_name(segment: str, age: float) -> str:
    """What the window of an age of a segment is called; the fresh one is the segment itself."""
    return segment if age == 0 else f"{segment}\0{of_age(age)}"


def of_age(age: float) -> str:
    """What results call the adapters of an age: `fresh`, `7 days older`."""
    return "fresh" if age == 0 else f"{age:.15g} day{'s' if age != 1 else ''} older"


def drift_of(
    results: pd.DataFrame,
    rows_of: Mapping[float, NDArray[np.int64]],
    confidence: float = 0.95,
) -> Drift:
    """The lift of every age, its change to the fresh one, and the cadence that follows.

        cadence = the age before the first that is told worse than the fresh one

    Of many ages some would look worse by chance, so verdicts are corrected for their number as
    among segments (Benjamini-Hochberg). That they share the fresh adapters makes them depend
    positively, for which its bound is shown of one-sided tests. Nothing is made of the order of
    ages: a season may bring an old window back.

    Args:
        results: of `evaluate`, of the models "base" and `of_age` of each age, over the same users;
            one metric and k, one seed or more.
        rows_of: age -> the rows of each segment in its window; ages as in `windows_of`, at least
            two.
        confidence: of intervals and verdicts; 0 < c < 1.

    Raises:
        ValueError: there is one age alone, there are several metrics or k, or as `compare`.

    Source: Benjamini and Yekutieli, "The control of the false discovery rate in multiple testing
    under dependency", Annals of Statistics 29(4), 2001, theorem 1.2 (positive dependence).
    """
    ages = list(rows_of)
    if len(ages) < 2:
        raise ValueError(f"a drift needs the fresh adapters and older ones, got the ages {ages}")
    measures = results[["metric", "k"]].drop_duplicates().values.tolist()
    if len(measures) != 1:
        raise ValueError(f"a drift is of one metric and k, got {measures}: select the rows")
    ((metric, k),) = measures
    fresh, *older = map(of_age, ages)
    lifts = _compared(results, [fresh, *older], BASE, confidence)
    changes = _compared(results, older, fresh, confidence).reindex([fresh, *older])
    table = pd.DataFrame(
        {
            "age": np.array(ages, np.float64),
            "rows": [int(rows.sum()) for rows in rows_of.values()],
            "segments": [int(np.count_nonzero(rows)) for rows in rows_of.values()],
            "users": lifts["users"].to_numpy(),
            "lift": lifts["difference"].to_numpy(),
            "lift_low": lifts["low"].to_numpy(),
            "lift_high": lifts["high"].to_numpy(),
            "lift_verdict": lifts["verdict"].to_numpy(),
            "change": changes["difference"].fillna(0.0).to_numpy(),
            "change_low": changes["low"].to_numpy(),
            "change_high": changes["high"].to_numpy(),
            "q": changes["q"].to_numpy(),
            "verdict": changes["verdict"].fillna("").to_numpy(),
        }
    )
    return Drift(table, _cadence(table, f"{metric}@{k}", float(changes["detectable"].max())))


def _cadence(table: pd.DataFrame, measure: str, detectable: float) -> str:
    """How often to retrain, and why."""
    if table["lift_verdict"].iloc[0] != "better":
        return (
            "Cannot tell how often to retrain: fresh adapters are not told better than the base, "
            "so there is no lift that could fade."
        )
    users = f"{table['users'].iloc[0]:,} users"
    at = np.flatnonzero(table["verdict"] == "worse")
    if not len(at):
        days = f"{table['age'].iloc[-1]:g} days"
        return (
            f"No age up to {days} is told worse than fresh adapters: retraining every {days} loses "
            f"nothing that {users} can show (they show {detectable:.4f} {measure} four times in "
            "five)."
        )
    first, before = table.iloc[at[0]], float(table["age"].iloc[at[0] - 1])
    often = f"Retrain every {before:g} days" if before else "Retrain more often than that"
    loss = (
        f"adapters {first['age']:g} days older than fresh ones are told worse by {users}, "
        f"{first['change']:+.4f} [{first['change_low']:+.4f}, {first['change_high']:+.4f}] "
        f"{measure} of a lift of {table['lift'].iloc[0]:.4f}"
    )
    if not before:
        return f"{loss[0].upper()}{loss[1:]}. {often}."
    return f"{often}: {loss}; of those {before:g} days older none can be told."


def _compared(
    results: pd.DataFrame, models: Sequence[str], baseline: str, confidence: float
) -> pd.DataFrame:
    """Each model over the baseline, by the model's name. To `compare` an age is a segment, so that
    it corrects for the number of ages.
    """
    segments, names = results["segment"].astype(str), results["model"].astype(str)
    # Who is in two segments is two, as everywhere.
    unit = segments + "\x1f" + results["user_id"].astype(str)
    plain = results.assign(model=names, user_id=unit)
    below = plain[names == baseline].assign(model="baseline")
    sides = [
        side.assign(segment=model)
        for model in models
        for side in (plain[names == model].assign(model="model"), below)
    ]
    metric, k = results["metric"].iloc[0], int(results["k"].iloc[0])
    told = compare(
        pd.concat(sides, ignore_index=True),
        "model",
        "baseline",
        metric=metric,
        k=k,
        confidence=confidence,
    )
    return told[told["scope"] == "segment"].set_index("segment").reindex(list(models))


def _parts(log: Interactions, windows: Mapping[float, tuple[int, int]]) -> Interactions:
    """The rows of every window of each segment; those of a segment ascend in time."""
    places, names = list[NDArray[np.int64]](), list[str]()
    for segment, begin, end in zip(
        log.segment_names, log.offsets[:-1].tolist(), log.offsets[1:].tolist(), strict=True
    ):
        times = log.timestamps[begin:end]
        for age, (first, last) in windows.items():
            low, high = np.searchsorted(times, first), np.searchsorted(times, last, side="right")
            places.append(np.arange(begin + low, begin + high))
            names.append(part_name(segment, age))
    rows = np.concatenate([np.zeros(0, np.int64), *places])
    return Interactions(
        log.users,
        log.items,
        tuple(names),
        np.cumsum([0, *map(len, places)]),
        log.user_rows[rows],
        log.item_rows[rows],
        log.timestamps[rows],
        None if log.weights is None else log.weights[rows],
    )


def _of_parts(
    stopping: Mapping[float, HeldOut], log: Interactions, ages: Sequence[float]
) -> HeldOut:
    """What the parts are stopped by: each by the users of its age."""
    missing = [age for age in ages if age not in stopping]
    if missing:
        raise ValueError(
            f"stopping must have users for each age, got none for {missing[0]:g} days: it has "
            f"{sorted(stopping)}"
        )
    for held_out in stopping.values():
        held_out.check_segments(log)
    parts = (
        replace(segment, name=part_name(segment.name, age))
        for age in ages
        for segment in stopping[age].segments
    )
    return replace(stopping[ages[0]], segments=tuple(parts))
