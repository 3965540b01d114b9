"""This file is how lift grows with data: every segment is trained on parts of its rows as well.

The parts of a segment are nested and train beside it, in one pass, as segments of their own; all
are held against the same users. From all of them together

    lift(n) = level + slope log2(n)                                     n: rows of the segment

and from the users that a row brings, what it takes to tell such a lift:

    detectable(n) = (z_{1 - a / 2} + z_{.8}) sd / sqrt(U n / rows)
    needed        = the smallest n >= rows with lift(n) >= detectable(n), and users enough to decide
                    a sign test (six at .95)

learning_curves   a log and a recipe -> LearningCurves: trains, ranks, measures
curves_of         the same from gains that were measured elsewhere
subsampled        a log -> the log with each segment's parts beside it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.comparison import bootstrap_means, compare
from reclora.comparison.verdicts import POWER
from reclora.configs import AdapterConfig
from reclora.counted import mix, segment_seed
from reclora.evaluation import HeldOut, RankingJudge, evaluate, headline_of
from reclora.interactions import Interactions
from reclora.training import TrainingConfig, train

SHARES = (0.125, 0.25, 0.5, 1.0)
REACH = 64
"""The curve is believed up to so many times the rows that the segment has."""
_SAMPLES = 1000
_GRID = np.geomspace(1, REACH, 1 + 16 * 6)
"""How many times its rows a segment is imagined to have; 16 steps for each doubling."""


@dataclass(frozen=True)
class LearningCurves:
    """How lift grows with rows, and what it takes to tell it of each segment."""

    table: pd.DataFrame
    """scope ("all", whose segment is empty, or "segment"), segment, share, rows, users, lift (mean
    paired gain over the parent), low, high, verdict (corrected for the segments of that share)."""
    level: float
    """The lift of a segment of one row by the fit to all points, each weighted by its users."""
    slope: float
    """What twice the rows add to it."""
    slope_low: float
    slope_high: float
    """The interval of the slope over segments drawn with replacement; NaN for fewer than two."""
    advice: pd.DataFrame
    """segment, rows, users, lift, verdict, more (interactions until it can be told), more_low and
    more_high (from the tenth to the ninetieth of a hundred samples of segments), says (in words).
    NaN where it was told, infinite where nothing can be said."""


def learning_curves(
    base: BaseModel,
    log: Interactions,
    config: AdapterConfig,
    training: TrainingConfig,
    judging: HeldOut,
    *,
    parent: Adapter | None = None,
    stopping: HeldOut | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    confidence: float = 0.95,
) -> LearningCurves:
    """Train every segment on each share of its rows, and measure each on the same users.

        curves = learning_curves(base, train_log, config, training, judging, parent=pooled)
        print(curves.advice[["segment", "says"]])

    What is trained on all rows is what `train` makes of the segment, but for rounding. It takes the
    time of sum(shares) trainings.

    Args:
        judging: validation, of segments of the log; its headline metric is the lift's.
        parent: what all segments stand on; if not given, the base.
        stopping: other users of the same segments, who choose each part's epoch. Without them every
            part trains all epochs, small ones overfit, and lift may fall before it rises.
        shares: above 0, the last of them 1.

    Raises:
        ValueError: as `subsampled`, `train` and `curves_of`; a segment is held out that the log
            does not have.
    """
    parts = subsampled(log, shares, seed)
    bank = AdapterBank.for_log(base, parts, config, seed, parent)
    judge = None if stopping is None else RankingJudge(_of_parts(stopping, log, shares))
    # What a user took is no negative in a part either that is not told of it.
    whole = _parts(log, [(share, 1.0) for share in shares], seed)
    train(bank, parts, training, judge=judge, seed=seed, taken=whole)
    headline = headline_of(judging)
    below = (
        AdapterBank.of(bank.base, [parent]).scorer(parent.segment)
        if parent is not None
        else base.scorer()
    )
    own = evaluate(_of_parts(headline, log, shares), bank.scorer, model="", run="", seed=0)
    alone = evaluate(headline, lambda _: below, model="", run="", seed=0)
    value_of = alone.assign(segment=alone["segment"].astype(str)).set_index(["segment", "user_id"])
    names = {part_name(s, share): (s, share) for s in log.segment_names for share in shares}
    own[["segment", "share"]] = [names[part] for part in own["segment"].astype(str)]
    pairs = pd.MultiIndex.from_frame(own[["segment", "user_id"]])
    own["gain"] = own["value"].to_numpy() - value_of["value"].reindex(pairs).to_numpy()
    rows_of = dict(zip(log.segment_names, np.diff(log.offsets).tolist(), strict=True))
    return curves_of(own[["segment", "share", "user_id", "gain"]], rows_of, confidence, seed)


def subsampled(log: Interactions, shares: Sequence[float] = SHARES, seed: int = 0) -> Interactions:
    """The log with parts of each segment beside it, each a segment of its own (`part_name`).

    The rows of a segment are put into an order by counting (`reclora.counted`), and a share has the
    first ceil(share n) of them: a smaller one is part of a larger one, and none depends on what
    other segments there are.

    Raises:
        ValueError: a share is not above 0 and at most 1, they do not ascend, or the last is not 1.
    """
    if not shares or shares[0] <= 0 or shares[-1] != 1 or list(shares) != sorted(set(shares)):
        raise ValueError(f"shares must ascend, be above 0 and end with 1, got {list(shares)}")
    return _parts(log, [(share, share) for share in shares], seed)


def _parts(log: Interactions, shares: Sequence[tuple[float, float]], seed: int) -> Interactions:
    """For each (share that it is called by, share of the rows that it has) a part of each segment.

    Its rows are in the order of `subsampled`.
    """
    positions, codes, names = [], [], list[str]()
    for segment, first, end in zip(
        log.segment_names, log.offsets[:-1].tolist(), log.offsets[1:].tolist(), strict=True
    ):
        counters = np.arange(end - first, dtype=np.uint64) + np.uint64(segment_seed(seed, segment))
        order = first + np.argsort(mix(counters), kind="stable")
        for called, share in shares:
            chosen = order[: rows_at(share, end - first)]
            positions.append(chosen)
            codes.append(np.full(len(chosen), len(names)))
            names.append(part_name(segment, called))
    rows = np.concatenate(positions) if positions else np.zeros(0, np.int64)
    return Interactions.from_arrays(
        users=log.users,
        items=log.items,
        segment_names=names,
        segments=np.concatenate(codes) if codes else rows,
        user_rows=log.user_rows[rows],
        item_rows=log.item_rows[rows],
        timestamps=log.timestamps[rows],
        weights=None if log.weights is None else log.weights[rows],
    )


def part_name(segment: str, share: float) -> str:
    """What the part of a segment is called; the whole is the segment itself."""
    return segment if share == 1 else f"{segment}\0{float(share)} of its rows"


def rows_at(share: float, rows: int) -> int:
    """ceil(share rows)."""
    return int(np.ceil(share * rows))


def curves_of(
    gains: pd.DataFrame, rows_of: Mapping[str, int], confidence: float = 0.95, seed: int = 0
) -> LearningCurves:
    """The curve of every segment, the one that fits all, and what it takes to tell each segment.

        slope = sum w (x - x_mean) (y - y_mean) / sum w (x - x_mean)^2
        level = y_mean - slope x_mean          over all (segment, share)
        x = log2(rows), y = lift, w = users

    A segment is taken for one like the others: its own lift, which could not be told, is not what
    is to be expected of it. The users' deviation sd is that of all segments' users around their
    segment's mean, and users come as they came, so many a row. As in `Effect.users_needed`, the
    segment is told alone: among many it takes more. Nothing can be said of a segment that nobody
    judges; where its users would mostly have shown such a lift already; nor where the curve does
    not reach what can be detected within `REACH` times its rows.

    Args:
        gains: segment, share, user_id, gain over the parent: the same users for every share, of
            which 1 must be one.
        rows_of: segment -> all its rows.
        confidence: of intervals and verdicts; 0 < c < 1.

    Raises:
        ValueError: there are no gains of share 1, or some of a segment without rows.

    Source: Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2 (what
    can be detected); Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3
    (segments drawn with replacement, as the points of one share their users).
    """
    shares = sorted(gains["share"].unique().tolist())
    if not shares or shares[-1] != 1:
        raise ValueError(
            f"gains must be of share 1, all rows, and of others, got those of {shares}"
        )
    judged = set(gains["segment"])
    if unknown := sorted(judged - set(rows_of)):
        raise ValueError(f"segment {unknown[0]!r} has gains, but rows_of does not have it")
    table = pd.concat(
        [
            _compared(gains[gains["share"] == share], share, rows_of, confidence, seed)
            for share in shares
        ],
        ignore_index=True,
    )
    each = table[table["scope"] == "segment"]
    sums_S5 = np.array([_sums(points) for _, points in each.groupby("segment")])
    level, slope = _fitted(sums_S5.sum(axis=0))
    samples_B2 = np.full((1, 2), np.nan)
    if len(judged) > 1:
        drawn_B5 = bootstrap_means(sums_S5, _SAMPLES, seed)
        samples_B2 = np.array([_fitted(sums) for sums in drawn_B5])
    low, high = np.quantile(samples_B2[:, 1], [(1 - confidence) / 2, (1 + confidence) / 2])
    whole = each[each["share"] == 1].set_index("segment").reindex(list(rows_of))
    reach = _Reach.of(gains[gains["share"] == 1], confidence)
    advice = pd.DataFrame(
        [
            _advice(segment, rows_of[segment], row, (level, slope), samples_B2, reach)
            for segment, row in zip(rows_of, whole.to_dict("records"), strict=True)
        ]
    )
    return LearningCurves(table, level, slope, float(low), float(high), advice)


def _of_parts(held_out: HeldOut, log: Interactions, shares: Sequence[float]) -> HeldOut:
    """What the parts of each segment are held against: the users of the segment."""
    held_out.check_segments(log)
    parts = (
        replace(segment, name=part_name(segment.name, share))
        for segment in held_out.segments
        for share in shares
    )
    return replace(held_out, segments=tuple(parts))


def _compared(
    gains: pd.DataFrame, share: float, rows_of: Mapping[str, int], confidence: float, seed: int
) -> pd.DataFrame:
    """The rows of the table of one share."""
    results = gains[["segment", "user_id"]].assign(
        model="own", seed=0, metric="gain", k=1, value=gains["gain"]
    )
    both = pd.concat([results, results.assign(model="parent", value=0.0)], ignore_index=True)
    told = compare(
        both, "own", "parent", metric="gain", k=1, confidence=confidence, seed=seed
    ).rename(columns={"difference": "lift"})
    whole = told["segment"].map({s: rows_at(share, rows) for s, rows in rows_of.items()})
    told["rows"] = whole.fillna(whole.sum()).astype(np.int64)
    told["share"] = share
    columns = ["scope", "segment", "share", "rows", "users", "lift", "low", "high", "verdict"]
    return told[columns]


def _sums(points: pd.DataFrame) -> list[float]:
    """Of a segment's points: the sums of w, w x, w y, w x^2 and w x y, that a fit is made of."""
    w, y = points["users"].to_numpy(np.float64), points["lift"].to_numpy(np.float64)
    x = np.log2(np.maximum(points["rows"].to_numpy(np.float64), 1))
    return [float((w * of).sum()) for of in (np.ones_like(x), x, y, x * x, x * y)]


def _fitted(sums: NDArray[np.float64]) -> tuple[float, float]:
    """level and slope; where all have equally many rows there is no slope."""
    w, wx, wy, wxx, wxy = sums.tolist()
    spread = wxx - wx * wx / w
    slope = (wxy - wx * wy / w) / spread if spread > 1e-9 * w else 0.0
    return (wy - slope * wx) / w, slope


@dataclass(frozen=True)
class _Reach:
    """What users can show."""

    of_one: float
    """The lift that one user would show with the chance `POWER`; of U users by sqrt(U) less."""
    users: int
    """With fewer nothing is told, see `Effect.can_be_told`."""

    @classmethod
    def of(cls, gains: pd.DataFrame, confidence: float) -> _Reach:
        from scipy.special import ndtri

        residuals = gains["gain"] - gains.groupby("segment")["gain"].transform("mean")
        freedom = len(gains) - gains["segment"].nunique()
        deviation = float((residuals**2).sum() / freedom) ** 0.5 if freedom > 0 else np.nan
        z = float(ndtri((1 + confidence) / 2) + ndtri(POWER))
        return cls(z * deviation, int(np.ceil(1 - np.log2(1 - confidence))))

    def shows(
        self, lift_BG: NDArray[np.float64], users_G: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether a lift would be shown by so many users."""
        is_shown: NDArray[np.bool_] = (lift_BG >= self.of_one / np.sqrt(users_G)) & (
            users_G >= self.users
        )
        return is_shown


def _advice(
    segment: str,
    rows: int,
    row: Mapping[Any, Any],
    fit: tuple[float, float],
    samples_B2: NDArray[np.float64],
    reach: _Reach,
) -> dict[str, object]:
    """What it takes to tell a segment; formulas at the top of the file."""
    is_judged = isinstance(row["verdict"], str)
    users = int(row["users"]) if is_judged else 0
    facts = {"segment": segment, "rows": rows, "users": users, "lift": row["lift"]}
    facts |= {"verdict": row["verdict"] if is_judged else "cannot tell"}
    if facts["verdict"] != "cannot tell":
        told = dict.fromkeys(("more", "more_low", "more_high"), np.nan)
        return facts | told | {"says": facts["verdict"]}
    more, low, high = np.inf, np.nan, np.nan
    if not users:
        says = "cannot say: nobody judges it"
    else:
        more = float(_more(np.array([fit]), rows, users, reach)[0])
        if np.isfinite(samples_B2).all():
            more_B = _more(samples_B2, rows, users, reach)
            low, high = np.quantile(more_B, [0.1, 0.9], method="nearest")
        says = f"needs about {_rounded(more)} more interactions to tell"
    if users and more == 0:
        lift = fit[0] + fit[1] * np.log2(max(rows, 1))
        says = f"cannot say: its {users:,} users would mostly have shown {lift:.4f}, as of its like"
        more = np.inf
    elif users and not np.isfinite(more):
        says = f"cannot say: {REACH} times its {rows:,} interactions would not show such a lift"
        if fit[1] <= 0:
            says = "cannot say: more interactions are not seen to lift its like"
    return facts | {"more": more, "more_low": low, "more_high": high, "says": says}


def _more(
    fits_B2: NDArray[np.float64], rows: int, users: int, reach: _Reach
) -> NDArray[np.float64]:
    """Rows beyond those there are, for each fit; infinite where `REACH` times as many are few."""
    n_G = max(rows, 1) * _GRID
    lift_BG = fits_B2[:, :1] + fits_B2[:, 1:] * np.log2(n_G)
    shows_BG = reach.shows(lift_BG, users * _GRID)
    more_B = n_G[shows_BG.argmax(axis=1)] - n_G[0]
    found: NDArray[np.float64] = np.where(shows_BG.any(axis=1), more_B, np.inf)
    return found


def _rounded(number: float) -> str:
    """To two digits: more would be a promise."""
    return f"{int(float(f'{number:.1e}')):,}" if np.isfinite(number) else "infinitely many"
