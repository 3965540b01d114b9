"""The paired comparison of two models: same users, difference by difference."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.comparison.resampling import FLIPS, sign_flip_p
from reclora.comparison.values import UNIT, Values, values_of
from reclora.comparison.verdicts import ROUNDING, Effect, benjamini_hochberg, note, verdict
from reclora.evaluation import check_name


def compare(
    results: pd.DataFrame,
    model: str,
    baseline: str,
    *,
    metric: str,
    k: int,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The difference of two models over the same users: better, worse, or cannot tell.

        d_u       = value of the model for u - value of the baseline for u, seeds averaged first
        low, high = percentiles of mean(d) over users drawn with replacement and, for each model,
                    over seeds drawn with replacement (1,000 samples)
        p         = P(|mean of d with signs drawn at random| >= |mean of d|)
        q         = p, corrected for the number of segments (Benjamini-Hochberg); of all: p

    Where both models have the same seeds, a seed names one training of both (a pooled adapter and
    what stands on it), and their seeds are drawn together. The p-value is of these trained models:
    it says nothing of other seeds; only the interval does, and too narrowly where seeds are few.
    Simulated with seeds that deviate three times as much as the mean over users, intervals at
    .95 missed a true zero for 28 % of 2 seeds, 15 % of 3, 10 % of 5 and 6 % of 10; one seed says
    nothing of others.

    p is at least 1e-4. Where so few of many segments differ that even this is too much after the
    correction, more patterns are drawn for those that have it.

    Verdict: "better" or "worse" where the interval excludes zero, q is at most 1 - confidence, and
    a sign test over the users with d_u != 0 could decide if all agreed (six are needed at .95);
    else "cannot tell". Resampling a handful of users excludes zero far too often: simulated on
    skewed values, intervals at .95 missed a true zero for 13 % of samples of 8 users, 8 % of 20, 5
    to 8 % of 200. Fewer than two users have no interval (NaN).

    Args:
        results: rows of `evaluate` of both models, over the same users.
        metric, k: what is compared.
        confidence: within 0 to 1.
        seed: each row draws from it anew, so no row depends on which others there are.

    Returns:
        model, baseline, metric, k, scope, segment, users, baseline_mean, model_mean, difference,
        low, high, verdict, p, q, effect, relative, wins, losses, detectable, users_needed, note.
        First one row of scope "all", whose segment is empty and whose unit is (segment, user); then
        one of scope "segment" for each segment, by name. `effect` to `users_needed`: see
        `reclora.comparison.verdicts.Effect`; `relative` is difference / |baseline_mean|; `note`
        says why nothing can be told.

    Raises:
        ValueError: the model, baseline, metric or k is not in the table; a user has a value of one
            of the two models only, or two values for one seed.

    Source: Sakai, "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006 (paired); see
    `interval`, `sign_flip_p` and `benjamini_hochberg` for the rest.
    """
    chosen = _only(results, metric, k)
    differences, means = _pair(chosen, model, baseline)
    rows = []
    groups = zip(differences.groups(), means.groups(), strict=True)
    for (scope, segment, part), (_, _, own) in groups:
        d_U = _without_dust(part.units_U)
        low, high = part.interval(confidence, seed)
        rows.append((scope, segment, own.columns_UC, Effect.of(d_U, confidence), low, high, d_U))
    p = np.array([sign_flip_p(row[-1], seed) for row in rows])
    q = _corrected(p, [row[-1] for row in rows], confidence, seed)
    table = []
    for (scope, segment, sides, effect, low, high, _), p_value, q_value in zip(
        rows, p, q, strict=True
    ):
        model_mean, baseline_mean = sides.mean(axis=0) if len(sides) else (np.nan, np.nan)
        found = verdict(effect, low, high, q_value, confidence)
        facts = asdict(effect)
        table.append(
            {
                "model": model,
                "baseline": baseline,
                "metric": metric,
                "k": k,
                "scope": scope,
                "segment": segment,
                "users": facts.pop("users"),
                "baseline_mean": baseline_mean,
                "model_mean": model_mean,
                "difference": facts.pop("difference"),
                "low": low,
                "high": high,
                "verdict": found,
                "p": p_value,
                "q": q_value,
                "effect": facts.pop("effect"),
                "relative": effect.difference / abs(baseline_mean) if baseline_mean else np.nan,
                **facts,
                "note": note(found, effect, low, high, q_value, confidence),
            }
        )
    return pd.DataFrame(table)


def _corrected(
    p: NDArray[np.float64],
    differences: list[NDArray[np.float64]],
    confidence: float,
    seed: int,
) -> NDArray[np.float64]:
    """q of the row of all and of each segment's; p-values that are too coarse for the number of
    segments are made finer in place.
    """
    q = np.concatenate([p[:1], benjamini_hochberg(p[1:])])
    least, level = 1 / (1 + FLIPS), 1 - confidence
    coarse = [i for i in range(1, len(p)) if p[i] <= least and q[i] > level]
    if coarse:
        for i in coarse:
            p[i] = sign_flip_p(differences[i], seed, flips=int(np.ceil(2 * len(p) / level)))
        q = np.concatenate([p[:1], benjamini_hochberg(p[1:])])
    return q


def _only(results: pd.DataFrame, metric: str, k: int) -> pd.DataFrame:
    if results.empty:
        raise ValueError("there are no results to compare: the table is empty")
    check_name("metric", metric, results["metric"].unique())
    of_metric = results[results["metric"] == metric]
    if k not in (ks := sorted(of_metric["k"].unique().tolist())):
        raise ValueError(f"results hold {metric} at k = {ks}, not at {k}")
    return of_metric[of_metric["k"] == k]


def _pair(results: pd.DataFrame, model: str, baseline: str) -> tuple[Values, Values]:
    """The differences; and the means over seeds, of the model and of the baseline.

    Users to whom a metric gives no value (NaN) in either model are left out.
    """
    units, sides = [], []
    for name in (model, baseline):
        check_name("model", name, results["model"].unique())
        its_units, values = values_of(results, name)
        units.append(its_units)
        sides.append(values)
    _check_same(units, (model, baseline))
    own, other = (side.to_numpy() for side in sides)
    known = ~(np.isnan(own).any(axis=1) | np.isnan(other).any(axis=1))
    own, other = own[known], other[known]
    segments_U = units[0]["segment"].astype(str).to_numpy(dtype=np.str_)[known]
    means_U2 = np.stack([own.mean(axis=1), other.mean(axis=1)], axis=1)
    means = Values(segments_U, means_U2, (slice(0, 1), slice(1, 2)))
    seeds = [list(side.columns) for side in sides]
    if seeds[0] == seeds[1]:
        return Values(segments_U, _without_dust(own - other), (slice(0, len(seeds[0])),)), means
    # What is taken from both sides changes no difference, but lets equal sides cancel out.
    columns_UC = _without_dust(np.concatenate([own, other], axis=1) - means_U2[:, 1:])
    split = len(seeds[0])
    both = slice(0, split), slice(split, columns_UC.shape[1])
    return Values(segments_U, columns_UC, both, (1, -1)), means


def _without_dust(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three equal values may average to their neighbour; that is no difference."""
    return np.where(np.abs(differences) < ROUNDING, 0.0, differences)


def _check_same(units: list[pd.DataFrame], names: tuple[str, str]) -> None:
    """Refuse units that only one of two models has (ValueError)."""
    left, right = units
    if left.equals(right):
        return
    merged = left.merge(right, on=UNIT, how="outer", indicator=True)
    for side, has, lacks in (("left_only", *names), ("right_only", *names[::-1])):
        alone = merged[merged["_merge"] == side]
        if len(alone):
            first = alone.iloc[0]
            raise ValueError(
                f"segment {first['segment']!r}: user {first['user_id']!r} has a value of {has!r} "
                f"but none of {lacks!r}, as have {len(alone)} users in all; "
                "evaluate both models on one HeldOut"
            )
