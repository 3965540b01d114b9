"""This file is the gate: which candidates go live, by their paired gain on validation.

    gain_u = metric of user u with the candidate - with what is live        on the same users

Most segments are too small to be told alone, so by default they lend each other strength: what a
segment's users say counts as far as the segments of its size bear them out (`reclora.shrinkage`).

    shrunk      P(theta_s > min_gain | the gains of s and of all of its size) >= chance
    each        the interval of its own mean gain is above min_gain, corrected for how many are
                looked at
    together    or, where nothing can be told of it alone, that of all such segments together

Under each of them a segment that is better alone (`reclora.comparison.compare`) goes live, and one
that is worse alone never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from reclora.comparison import compare
from reclora.shrinkage import shrinkage_of

CANDIDATE, LIVE = "candidate", "live"

Rule = Literal["shrunk", "together", "each", "none"]


@dataclass(frozen=True)
class GateConfig:
    """What a candidate must show to go live.

    Raises:
        ValueError: a number out of its range, named with the range.
    """

    rule: Rule = "shrunk"
    """`shrunk`: a segment must be above `min_gain` with a chance of `chance`, by its own users and
    those of segments of its size, or be better by itself; `each`: its own interval must be above
    it; `together`: or, where nothing can be told of it alone, that of all such segments together,
    losers among them; `none`: all goes live that was better than what it stands on."""
    min_gain: float = 0.0
    """The gain of the headline metric that is worth a change; any finite number."""
    confidence: float = 0.95
    """Of intervals, and 1 - the share of wrong decisions among those made; 0 < c < 1."""
    chance: float = 0.9
    """Of a gain, that the rule `shrunk` asks for; 0 < c < 1. The lower, the more is gained in all,
    and the more segments are worse off."""
    min_coverage: float = 0.0
    """Guard: the share of the live lists' items that the candidate's must reach; 0 = off."""
    max_popularity: float = 0.0
    """Guard: how many times as popular as in the live lists items may be; 0 = off."""
    max_churn: float = 1.0
    """Guard: the share of the live lists' places that may change; 1 = off."""
    canary: float = 0.0
    """What passes goes live for this share of the users only, as candidates to be promoted later;
    0 = for all of them."""

    def __post_init__(self) -> None:
        for name in ("confidence", "chance"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {getattr(self, name)}")
        if not np.isfinite(self.min_gain):
            raise ValueError(f"min_gain must be a finite number, got {self.min_gain}")
        for name in ("min_coverage", "max_popularity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.max_churn <= 1:
            raise ValueError(f"max_churn must be from 0 to 1, got {self.max_churn}")
        if not 0 <= self.canary < 1:
            raise ValueError(f"canary must be at least 0 and below 1, got {self.canary}")


def decide(
    results: pd.DataFrame,
    groups: Mapping[str, str],
    config: GateConfig,
    guards: pd.DataFrame | None = None,
    rows_of: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Decide on every segment.

    Args:
        results: rows of the results table of one metric and k, of the models `candidate` and
            `live`, on users who chose nothing of the candidates' numbers.
        groups: segment -> what it is judged together with, of every segment that has a candidate:
            what is of another nature, as an adapter of its own and the parent's, is judged apart.
        guards: segment, coverage and popularity (the candidate's over what is live), churn.
        rows_of: segment -> the rows that it trained on: under `shrunk` those of a size lend each
            other strength. If not given, all are of one size.

    Returns:
        A row for each of `groups`: segment, goes_live, reason, users, live, candidate (means),
        gain, low, high, p, q, shrunk_gain and chance (of the rule `shrunk`), and the guards that
        were given. NaN where nobody was asked.

    Raises:
        ValueError: results of several metrics, or users that only one of the models has.
    """
    table = _compared(results, config) if len(results) else pd.DataFrame(columns=["segment"])
    columns = ["users", "live", "candidate", "gain", "low", "high", "p", "q", "verdict"]
    own = table.set_index("segment").reindex(index=list(groups), columns=columns)
    own["users"] = own["users"].fillna(0).astype(int)
    own[["shrunk_gain", "chance"]] = np.nan
    if config.rule == "shrunk" and len(own):
        sizes = dict.fromkeys(groups, 1) if rows_of is None else rows_of
        own[["shrunk_gain", "chance"]] = _shrunk(results, groups, config, sizes)
    lives, reasons = _by_rule(own, results, groups, config)
    decided = own.drop(columns="verdict")
    decided.insert(0, "goes_live", lives)
    decided.insert(1, "reason", reasons)
    if guards is not None and len(guards):
        decided = decided.join(guards.set_index("segment"))
        _veto(decided, config)
    return decided.rename_axis("segment").reset_index()


def _compared(results: pd.DataFrame, config: GateConfig) -> pd.DataFrame:
    """The comparison of each segment, in the gate's words."""
    table = _over_min_gain(results, config)
    return table[table["scope"] == "segment"]


def _over_min_gain(results: pd.DataFrame, config: GateConfig) -> pd.DataFrame:
    """`compare`, where better means better by more than `min_gain`."""
    measures = results[["metric", "k"]].drop_duplicates()
    if len(measures) != 1:
        raise ValueError(f"a gate decides by one metric at one k, got {measures.values.tolist()}")
    metric, k = measures.iloc[0]
    shifted = results.assign(
        value=results["value"].where(
            results["model"] != CANDIDATE, results["value"] - config.min_gain
        )
    )
    table = compare(
        shifted, CANDIDATE, LIVE, metric=str(metric), k=int(k), confidence=config.confidence
    )
    back = {name: table[name] + config.min_gain for name in ("difference", "low", "high")}
    table = table.assign(**back, candidate=table["model_mean"] + config.min_gain)
    return table.rename(columns={"baseline_mean": "live", "difference": "gain"})


def _shrunk(
    results: pd.DataFrame,
    groups: Mapping[str, str],
    config: GateConfig,
    rows_of: Mapping[str, int],
) -> pd.DataFrame:
    """shrunk_gain and chance of each segment; what is of another nature is no like of it."""
    if not len(results):
        return pd.DataFrame(np.nan, index=list(groups), columns=["shrunk_gain", "chance"])
    # A user is one, of however many seeds; to whom a metric gives no value is none.
    keys = [results["segment"].astype(str), results["user_id"], results["model"].astype(str)]
    means = results["value"].groupby(keys).mean().unstack("model").dropna().reset_index()
    live, own = (
        means[["segment", "user_id"]].assign(value=means[model]) for model in (LIVE, CANDIDATE)
    )
    values = {0.0: live, 1.0: own.assign(value=own["value"] - config.min_gain)}
    found = []
    for group in dict.fromkeys(groups.values()):
        sizes = {name: rows_of[name] for name, its in groups.items() if its == group}
        of_group = {c: v[v["segment"].isin(sizes)] for c, v in values.items()}
        found.append(shrinkage_of(of_group, sizes, config.chance).table)
    told = pd.concat(found).set_index("segment")
    told["shrunk_gain"] += config.min_gain
    return told[["shrunk_gain", "chance"]]


def _by_rule(
    own: pd.DataFrame, results: pd.DataFrame, groups: Mapping[str, str], config: GateConfig
) -> tuple[list[bool], list[str]]:
    if config.rule == "none":
        return [True] * len(own), ["no gate: rule = none"] * len(own)
    together = _groups_told(own, results, groups, config) if config.rule == "together" else {}
    lives, reasons = [], []
    for segment, row in own.iterrows():
        if row["verdict"] in ("better", "worse"):
            lives.append(row["verdict"] == "better")
            reasons.append(f"{_word(row, config)}: gain {_interval(row)}, q {row['q']:.2g}")
            continue
        alone = (
            "no user to judge by"
            if not row["users"]
            else f"cannot tell alone, by {int(row['users']):,} users: gain {_interval(row)}"
        )
        if config.rule == "shrunk":
            lives.append(bool(row["chance"] >= config.chance))
            reasons.append(alone + _chance(row, config))
            continue
        passes, said = together.get(groups[str(segment)], (False, ""))
        lives.append(passes)
        reasons.append(alone + said)
    return lives, reasons


def _groups_told(
    own: pd.DataFrame, results: pd.DataFrame, groups: Mapping[str, str], config: GateConfig
) -> dict[str, tuple[bool, str]]:
    """Group -> whether the segments of which nothing can be told are better together; and how."""
    untold = own.index[~own["verdict"].isin(("better", "worse"))]
    told: dict[str, tuple[bool, str]] = {}
    for group in dict.fromkeys(groups[str(s)] for s in untold):
        names = [s for s in untold if groups[str(s)] == group]
        rows = results[results["segment"].astype(str).isin(names)] if len(results) else results
        if not len(rows):
            told[group] = False, f"; nor have the {len(names):,} segments like it"
            continue
        row = _over_min_gain(rows.assign(segment=group), config).iloc[0]
        passes = row["verdict"] == "better"
        if len(names) == 1 and not passes:
            # It has been said of the segment itself.
            told[group] = False, ""
            continue
        judged = _word(row, config) if passes else "not better"
        said = f"; the {len(names):,} such segments with {group} are {judged} together: gain "
        told[group] = passes, said + _interval(row)
    return told


def _word(row: pd.Series, config: GateConfig) -> str:
    """Better by more than a margin is better, or with a margin below zero may be not worse."""
    if row["verdict"] == "better" and config.min_gain < 0 and not row["low"] > 0:
        return f"not worse by more than {-config.min_gain:g}"
    return str(row["verdict"])


def _chance(row: pd.Series, config: GateConfig) -> str:
    """What is to be expected of a segment by its like."""
    if np.isnan(row["chance"]):
        return "; too few of its size gain or lose to lend it strength"
    over = f" by more than {config.min_gain:g}" if config.min_gain else ""
    asked = "" if row["chance"] >= config.chance else f", {config.chance:g} is asked"
    return (
        f"; with those of its size {row['shrunk_gain']:+.4f}, better{over} with a chance of "
        f"{row['chance']:.3f}{asked}"
    )


def _interval(row: pd.Series) -> str:
    if np.isnan(row["low"]):
        return f"{row['gain']:+.4f}"
    return f"{row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def _veto(decided: pd.DataFrame, config: GateConfig) -> None:
    """Keep back, in place, what passes but changes more than the guards allow."""
    most = config.max_popularity or np.inf
    limits = [
        ("coverage", decided["coverage"] < config.min_coverage, config.min_coverage),
        ("popularity", decided["popularity"] > most, most),
        ("churn", decided["churn"] > config.max_churn, config.max_churn),
    ]
    for name, beyond, limit in limits:
        hit = beyond & decided["goes_live"]
        for segment in decided.index[hit]:
            decided.loc[segment, "reason"] = (
                f"vetoed: {name} {decided.loc[segment, name]:.3g} against a limit of {limit:g}; "
                f"{decided.loc[segment, 'reason']}"
            )
        decided.loc[hit, "goes_live"] = False
