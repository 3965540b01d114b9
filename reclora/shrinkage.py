"""This file is how far a segment with little data stands from its parent: strength from data.

Every delta of a segment may be scaled by c (0: the parent, 1: as it was trained). What that is
worth is judged by the segment's few users and by all segments of like size:

    gain_su = theta_s + e_su      theta_s ~ N(mu, tau^2)      e_su ~ N(0, sigma^2)
    E[theta_s | gains] = mu + B_s (mean gain_s - mu)          B_s = U_s / (U_s + sigma^2 / tau^2)

gain_su is user u's paired gain over the parent with that c. So what segments of a size have in
common counts as much as sigma^2 / tau^2 users of the segment: many where they differ little, few
where they differ much. A few users who happen to like their adapter are believed as far as its like
bear them out. Then

    whether    a segment has its own where P(theta_s > 0 | gains) is high enough, else c = 0
    how far    all of a size that have their own take one c, from which most is to be expected

shrink           adapters and held-out users -> Shrinkage: segment -> c, and why
shrinkage_of     the same from values that were measured elsewhere
toward_parents   adapters and their c -> the adapters to be stored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from reclora.adapters import Adapter
from reclora.arithmetic.parts import PRODUCTS, Delta, check_finite, check_no_magnitude, deltas_of
from reclora.base import BaseModel
from reclora.configs import NOTHING, AdapterConfig, AdapterError
from reclora.evaluation import HeldOut, evaluate, headline_of
from reclora.hierarchy import scorers
from reclora.ladder import size_classes

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The c that are tried; none of them but .75 rounds a number."""
MIN_SEGMENTS = 4
"""Segments with users to judge by, from which on they lend each other strength: with fewer a mean
is no worse than the shrunk ones (Efron and Morris, 1973), so that a few small ones are taken for of
one size with larger ones."""

MIN_DIFFERING = 6
"""Users whose gain is not zero, with fewer of whom nothing is said: if all of them agreed, chance
alone would have them agree more often than once in twenty (as `reclora.comparison.compare`)."""


@dataclass(frozen=True)
class Shrinkage:
    """How far each segment stands from its parent, and why."""

    table: pd.DataFrame
    """segment, class (of size), rows (trained on), users (to judge by), gain (their mean, with the
    c of its size) and error (sigma / sqrt(users)), weight (B), shrunk_gain and shrunk_error (of
    theta given all gains), chance (of theta > 0), c. NaN where nothing is known."""
    sizes: pd.DataFrame
    """class, segments, rows (at most), users, c, prior_mean and prior_sd (mu and tau), served (how
    many would have their own), expected (gain of all, on average), chosen: each c of each size."""

    @property
    def factors(self) -> dict[str, float]:
        """Segment -> its c."""
        return dict(zip(self.table["segment"], self.table["c"].tolist(), strict=True))


def shrink(
    adapters: Sequence[Adapter],
    base: BaseModel,
    held_out: HeldOut,
    rows_of: Mapping[str, int],
    confidence: float = 0.9,
) -> Shrinkage:
    """Judge how far each segment's adapter should stand from its parent, without training again.

        shrinkage = shrink(bank.adapters(), bank.base, judging, rows_of)
        store.publish(toward_parents(bank.adapters(), shrinkage.factors), reason="shrunk")

    It ranks for the held-out users once for each of `FACTORS`.

    Args:
        adapters: of whatever parents, trained to the end.
        base: what they were trained on, with all identifiers that they bring (`bank.base`).
        held_out: validation, of segments of the adapters; users who stopped the training must not
            be among them, since they like what they chose. The headline metric is measured.
        rows_of: the rows that each segment trained on.
        confidence: the chance of being above its parent that a segment must have; 0 < c < 1.

    Raises:
        AdapterError: a held-out segment has no adapter, or one no rows; an adapter has a learned
            magnitude, NaN or infinity, or is of modules of another model; or as `AdapterBank.of`.
        ValueError: as `shrinkage_of` and `evaluate`.
    """
    known = {adapter.segment for adapter in adapters} & set(rows_of)
    for segment in [*(s.name for s in held_out.segments), *(a.segment for a in adapters)]:
        if segment not in known:
            raise AdapterError(
                f"segment {segment!r} has no adapter, or no rows that it trained on: give both of "
                "each that is held out"
            )
    # Training came to nothing there: no gain that is zero, of which others could learn.
    idle = {adapter.segment for adapter in adapters if _changes_nothing(adapter)}
    judges = tuple(s for s in held_out.segments if s.name not in idle)
    headline = replace(headline_of(held_out), segments=judges)
    columns, values = ["segment", "user_id", "value"], dict[float, pd.DataFrame]()
    for c in FACTORS:
        if not judges:
            values[c] = pd.DataFrame({name: [] for name in columns})
            continue
        scorer_of = scorers(base, [scaled(adapter, c) for adapter in adapters])
        results = evaluate(headline, scorer_of, model="", run="", seed=0)
        values[c] = results[results["model"] == ""][columns]
    return shrinkage_of(values, {a.segment: rows_of[a.segment] for a in adapters}, confidence)


def shrinkage_of(
    values: Mapping[float, pd.DataFrame], rows_of: Mapping[str, int], confidence: float = 0.9
) -> Shrinkage:
    """How far each segment should stand from its parent, from what each c is worth to its users.

    For each size of segment, k of which have users, U in all, and for each c above 0:

        sigma^2 = sum over s, u of (gain_su - gain_s)^2 / (U - k)
        v_s     = sigma^2 / U_s           w_s = 1 / v_s           mean = sum w g / sum w
        tau^2   = max(0, (sum w (g - mean)^2 - (k - 1)) / (sum w - sum w^2 / sum w))
        mu      = sum g_s / (v_s + tau^2) / sum 1 / (v_s + tau^2)
        B_s     = tau^2 / (tau^2 + v_s)
        shrunk_gain_s    = mu + B_s (g_s - mu)
        shrunk_error_s^2 = B_s v_s + (1 - B_s)^2 / sum 1 / (v_s + tau^2)
        chance_s         = Phi(shrunk_gain_s / shrunk_error_s)
        expected(c)      = mean over s of shrunk_gain_s where chance_s >= confidence, else 0

    The c with the largest expected(c) is taken, at a tie the smallest. Where k is below
    `MIN_SEGMENTS`, B_s = 1: the segment's own users alone, and Student's t with U - k degrees of
    freedom in the place of Phi. Nothing is said, and the parent serves, where fewer than
    `MIN_DIFFERING` users of the size (with B_s = 1: of the segment) gain or lose. A segment without
    users has what is known of its size (B_s = 0), or nothing, and then its parent. Because sigma is
    that of the size and not of the segment, three users who agree by chance are no certainty. The
    error counts that mu is estimated, not that tau and sigma are, and that the c is the best of
    several.

    Args:
        values: c -> segment, user_id, value; of 0, the parent, and at least one above it: the same
            users for each.
        rows_of: segment -> the rows that it trained on; of every segment that is asked about.
        confidence: the chance of being above its parent that a segment must have; 0 < c < 1. The
            lower it is the more is to be expected of all, and the more segments end below.

    Raises:
        ValueError: confidence is outside its range, there are no values of 0 or of nothing else, a
            c is outside 0 to 1, or one was judged by other users.

    Source: Efron and Morris, "Data analysis using Stein's estimator and its generalizations", JASA
    70, 1975 (the estimate); DerSimonian and Laird, "Meta-analysis in clinical trials", Controlled
    Clinical Trials 7, 1986 (tau); Morris, "Parametric empirical Bayes inference", JASA 78, 1983
    (the error of mu). B_s is the credibility of Bühlmann, "Experience rating and credibility",
    ASTIN Bulletin 4, 1967.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence}")
    gains = _gains(values)
    segments, users = list(rows_of), next(iter(gains.values())).groupby("segment").size()
    users_S = users.reindex(segments, fill_value=0).to_numpy(dtype=np.int64)
    rows_S = np.array([*rows_of.values()], dtype=np.int64)
    classes_S = size_classes(rows_S, users_S, MIN_SEGMENTS)
    tables, sizes = [], []
    for number in np.unique(classes_S):
        members = [s for s, c in zip(segments, classes_S, strict=True) if c == number]
        table, compared = _of_size(gains, members, confidence)
        rows = [rows_of[segment] for segment in members]
        table.insert(1, "class", number)
        table.insert(2, "rows", rows)
        compared = {"class": number, "segments": len(members), "rows": max(rows)} | compared
        tables.append(table)
        sizes.append(pd.DataFrame(compared))
    whole = pd.concat(tables).set_index("segment").loc[segments].reset_index()
    return Shrinkage(whole, pd.concat(sizes, ignore_index=True))


def toward_parents(adapters: Sequence[Adapter], factors: Mapping[str, float]) -> list[Adapter]:
    """The adapters, each scaled by its segment's c; ready to be stored.

    Raises:
        AdapterError: a segment has no c; or as `scaled`.
    """
    for adapter in adapters:
        if adapter.segment not in factors:
            raise AdapterError(
                f"segment {adapter.segment!r} has no c: give one for each adapter that is scaled"
            )
    return [scaled(adapter, factors[adapter.segment]) for adapter in adapters]


@torch.no_grad()
def scaled(adapter: Adapter, c: float) -> Adapter:
    """The adapter with each delta's change times c: of a product the factor that starts at zero.

        W + c (alpha / R) B A        e + c (alpha / R) a_s B_s        score + c d_s[i]

    At 1 it is the adapter itself; at 0 its parent serves the segment, or, where it has none, the
    base, by an adapter without kinds. Kinds that multiply each other (`scale` and `map` of one
    table) go from the parent to the adapter on a bent way.

    Raises:
        AdapterError: c is outside 0 to 1; the adapter has a learned magnitude, NaN or infinity; or
            it is of modules of a model, has no parent, and c is 0.
    """
    if not 0 <= c <= 1:
        raise AdapterError(
            f"segment {adapter.segment!r}: c must be from 0 (the parent) to 1 (as it was trained), "
            f"got {c}"
        )
    if c == 1 or adapter.is_served:
        return adapter
    if c == 0:
        return _nothing(adapter)
    check_no_magnitude(adapter)
    check_finite(adapter.segment, adapter.tensors)
    tensors = dict(adapter.tensors)
    for delta in deltas_of(adapter).values():
        name = _zero_start(delta)
        tensors[f"{delta.name}.{name}"] = c * delta.factors[name]
    return replace(adapter, tensors=tensors)


def _zero_start(delta: Delta) -> str:
    """The factor that starts at zero; what is no product has one factor."""
    return PRODUCTS[delta.kind][0] if delta.is_product else next(iter(delta.factors))


def _changes_nothing(adapter: Adapter) -> bool:
    """Whether its parent, or the base, serves as it does."""
    if adapter.is_served:
        return True
    deltas = deltas_of(adapter).values()
    return not any(bool(delta.factors[_zero_start(delta)].any()) for delta in deltas)


def _nothing(adapter: Adapter) -> Adapter:
    """What changes nothing of the parent, or of the base."""
    if adapter.parent is not None:
        return replace(adapter, config=(), tensors={})
    if not isinstance(adapter.config, AdapterConfig):
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} is of modules of a model and has no "
            "parent: leave it out where the model itself shall serve"
        )
    rows = {n: t[:0].clone() for n, t in adapter.tensors.items() if not t.is_floating_point()}
    return replace(adapter, config=NOTHING, tensors=rows)


def _gains(values: Mapping[float, pd.DataFrame]) -> dict[float, pd.Series]:
    """c -> the gain of each (segment, user) over the parent, in ascending order of both."""
    tried = sorted(values)
    if len(tried) < 2 or tried[0] != 0 or tried[-1] > 1:
        raise ValueError(f"values must be of 0 and of at least one c up to 1, got those of {tried}")
    keyed = {}
    for c in tried:
        table = values[c].assign(segment=values[c]["segment"].astype(str))
        keyed[c] = table.set_index(["segment", "user_id"])["value"].sort_index()
        if not keyed[c].index.equals(keyed[0].index):
            raise ValueError(
                f"c = {c} was judged by other users than c = 0: judge all on one held-out log"
            )
    return {c: keyed[c] - keyed[0] for c in tried[1:]}


def _of_size(
    gains: Mapping[float, pd.Series], members: list[str], confidence: float
) -> tuple[pd.DataFrame, dict[str, object]]:
    """Segments of one size with the c that is taken, and all c that were compared."""
    found, priors, served, expected = [], [], [], []
    for of_all in gains.values():
        inside = of_all.index.get_level_values("segment").isin(members)
        table, prior = _posterior(of_all[inside], members)
        passes = table["chance"] >= confidence
        found.append(table.assign(c=passes))
        priors.append(prior)
        served.append(int(passes.sum()))
        expected.append(float(table["shrunk_gain"].where(passes, 0.0).mean()))
    best, tried = int(np.argmax(expected)), list(gains)
    taken = found[best].assign(c=found[best]["c"] * tried[best])
    return taken, {
        "users": int(taken["users"].sum()),
        "c": tried,
        "prior_mean": [mu for mu, _ in priors],
        "prior_sd": [tau for _, tau in priors],
        "served": served,
        "expected": expected,
        "chosen": np.arange(len(tried)) == best,
    }


def _posterior(gains: pd.Series, members: list[str]) -> tuple[pd.DataFrame, tuple[float, float]]:
    """What is known of the gain of each segment of a size, and mu and tau; see `shrinkage_of`."""
    grouped = gains.groupby("segment")
    users_S = grouped.size().reindex(members, fill_value=0).to_numpy(np.int64)
    gain_S = grouped.mean().reindex(members).to_numpy(np.float64)
    variance, freedom = _variance_of_a_user(gains, gains - grouped.transform("mean"))
    differ_S = (gains != 0).groupby("segment").sum().reindex(members).fillna(0).to_numpy(np.int64)
    has_S = users_S > 0
    v_S = np.where(has_S, variance / np.maximum(users_S, 1), np.inf)
    if has_S.sum() < MIN_SEGMENTS or not variance > 0:
        mu = tau2 = np.nan
        weight_S, shrunk_S = has_S.astype(np.float64), gain_S
        error_S = np.sqrt(np.where(has_S, v_S, np.nan))
        chance_S = _chance_above_zero(shrunk_S, error_S, freedom)
        chance_S[differ_S < MIN_DIFFERING] = np.nan
    else:
        mu, mu_variance, tau2 = _prior(gain_S[has_S], v_S[has_S])
        weight_S = tau2 / (tau2 + v_S)
        shrunk_S = mu + weight_S * (np.where(has_S, gain_S, mu) - mu)
        # B v = (1 - B) tau^2, which is also known where v is infinite.
        error_S = np.sqrt((1 - weight_S) * tau2 + (1 - weight_S) ** 2 * mu_variance)
        chance_S = _chance_above_zero(shrunk_S, error_S)
        if differ_S.sum() < MIN_DIFFERING:
            chance_S[:] = np.nan
    table = pd.DataFrame(
        {
            "segment": members,
            "users": users_S,
            "gain": gain_S,
            "error": np.sqrt(np.where(has_S, v_S, np.nan)),
            "weight": weight_S,
            "shrunk_gain": shrunk_S,
            "shrunk_error": error_S,
            "chance": chance_S,
        }
    )
    return table, (mu, tau2**0.5)


def _variance_of_a_user(gains: pd.Series, residuals: pd.Series) -> tuple[float, int]:
    """sigma^2 and its degrees of freedom; where no segment has two users, as if all were of one."""
    freedom = len(gains) - gains.index.get_level_values("segment").nunique()
    if freedom > 0:
        return float((residuals**2).sum() / freedom), freedom
    return (float(gains.var(ddof=1)) if len(gains) > 1 else float("nan")), len(gains) - 1


def _prior(gain_K: NDArray[np.float64], v_K: NDArray[np.float64]) -> tuple[float, float, float]:
    """mu, its variance, and tau^2."""
    w_K = 1 / v_K
    mean = (w_K * gain_K).sum() / w_K.sum()
    excess = (w_K * (gain_K - mean) ** 2).sum() - (len(gain_K) - 1)
    tau2 = max(0.0, float(excess / (w_K.sum() - (w_K**2).sum() / w_K.sum())))
    wider_K = 1 / (v_K + tau2)
    return float((wider_K * gain_K).sum() / wider_K.sum()), float(1 / wider_K.sum()), tau2


def _chance_above_zero(
    gain_S: NDArray[np.float64], error_S: NDArray[np.float64], freedom: int | None = None
) -> NDArray[np.float64]:
    """P(theta > 0); where it is known without error, 0 or 1; with a freedom by Student's t."""
    # It takes most of a second to load.
    from scipy.special import ndtr, stdtr

    sure_S = (gain_S > 0).astype(np.float64)
    ratio_S = gain_S / np.where(error_S > 0, error_S, 1.0)
    chance_S = ndtr(ratio_S) if freedom is None else stdtr(max(freedom, 1), ratio_S)
    return np.where(error_S == 0, sure_S, np.where(np.isnan(error_S), np.nan, chance_S))
