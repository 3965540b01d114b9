"""The contents of a run's page: frames of means and lifts, and what a reader needs beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from reclora.notebook import as_html

_COLUMNS = {
    "means": ("scope", "segment", "model", "metric", "k", "users", "mean"),
    "lifts": (
        *("model", "baseline", "metric", "k", "scope", "segment", "users"),
        *("baseline_mean", "model_mean", "difference", "low", "high", "verdict", "q", "note"),
    ),
    "segments": ("segment",),
    "curves": ("model", "segment", "epoch", "value"),
    "split": ("window", "first", "last", "rows", "users", "items"),
    "costs": ("model", "numbers", "seconds"),
    "spectra": ("segment", "delta", "direction", "energy"),
}
MAY_BE_EMPTY = ("curves", "split", "costs", "spectra")
LIFT = ["users", "baseline_mean", "model_mean", "difference", "low", "high", "verdict", "q", "note"]
"""What `by_segment` says of a segment's lift."""
TO_TELL = "needs to tell"
"""Column of `Report.segments`, where there is one: what it takes to tell what cannot be told."""
_KEY = ["model", "baseline", "metric", "k", "scope", "segment"]


@dataclass(frozen=True, eq=False)
class Section:
    """A table with a heading and a line on what it says."""

    title: str
    text: str
    table: pd.DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What the page of one run is made of.

    The headline is the lift of `subject` over `baseline` on `metric`@`k`, all segments together.

    Raises:
        ValueError: a frame lacks a column; a lift is given twice, or its verdict contradicts its
            interval; the headline comparison is not among the lifts.
    """

    title: str
    run: str
    """The run's id."""
    subject: str
    """The model that the page is about."""
    baseline: str
    """The model it is held against in the headline."""
    metric: str
    k: int
    means: pd.DataFrame
    """scope ("all" or "segment"), segment, model, metric, k, users, mean."""
    lifts: pd.DataFrame
    """model, baseline, metric, k, scope, segment, users, baseline_mean, model_mean, difference
    (model less baseline), low, high (95 % paired bootstrap over users; NaN where there is none),
    verdict: "better" only where low > 0, "worse" only where high < 0, or "cannot tell"; q (of the
    randomisation test, corrected for the number of segments), note (why nothing can be told)."""
    segments: pd.DataFrame
    """segment, and any columns that say how large it is and how its adapter came out."""
    curves: pd.DataFrame
    """model, segment (empty for all together), epoch, value on validation; may be empty."""
    split: pd.DataFrame
    """window, first, last (timestamps), rows, users, items; may be empty."""
    data_quality: Mapping[str, int | str]
    definitions: Mapping[str, str]
    """Metric -> its formula and edge rule."""
    settings: Mapping[str, Any]
    """Resolved settings, nested."""
    versions: Mapping[str, str]
    repeat: str
    """The command that gives these numbers again."""
    outcome: str = ""
    """What went live, in a sentence."""
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """model, numbers (that it stores), seconds (of CPU, that its training took); may be empty."""
    spectra: pd.DataFrame = field(default_factory=pd.DataFrame)
    """segment, delta (of what), direction (from 1, the strongest first), energy (the share of its
    squared singular value in the delta's); may be empty."""
    notes: Sequence[str] = ()
    """What a reader must know beside the numbers."""
    sections: Sequence[Section] = ()
    """What else was measured."""

    def __post_init__(self) -> None:
        for name, wanted in _COLUMNS.items():
            _check_columns(name, getattr(self, name), wanted)
        _check_lifts(self.lifts)
        if len(self.headline("all")) != 1:
            pairs = self.lifts[["model", "baseline", "metric", "k"]].drop_duplicates()
            raise ValueError(
                f"lifts need one row with scope 'all' for the headline {self.subject!r} over "
                f"{self.baseline!r} on {self.metric}@{self.k}; they compare "
                f"{list(pairs.itertuples(index=False, name=None))}"
            )

    def __repr__(self) -> str:
        lift = self.headline("all")[0]
        return (
            f"Report({self.subject!r} over {self.baseline!r} on {self.metric}@{self.k}: "
            f"{lift['difference']:+.4f} [{lift['low']:.4f}, {lift['high']:.4f}], {lift['verdict']})"
        )

    def _repr_html_(self) -> str:
        return as_html(self, self.by_segment().to_dict("list"))

    def by_segment(self) -> pd.DataFrame:
        """Every segment with all that is known of it: users, the two means, difference, low, high,
        verdict, q and note of the headline, then the columns of `segments`. Those of which
        something can be told come first, by lift; then the others, by users, since the lifts of a
        few users are the largest and say the least; segments without a measured user come last.
        """
        columns = ["segment", *LIFT]
        lifts = pd.DataFrame(self.headline("segment"), columns=columns)
        untold = lifts["verdict"] == "cannot tell"
        by = lifts["users"].where(untold, lifts["difference"]).astype(float)
        lifts = lifts.iloc[np.lexsort((-lifts["difference"].astype(float), -by, untold))]
        known = self.segments.astype({"segment": object})
        known = known.drop(columns=known.columns.intersection(LIFT))
        table = lifts.astype({"segment": object}).merge(
            known, on="segment", how="outer", sort=False
        )
        place = {segment: at for at, segment in enumerate(lifts["segment"])}
        order = table["segment"].map(lambda segment: place.get(segment, len(place)))
        table = table.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)
        return table.fillna({"users": 0}).astype({"users": int})

    def headline(self, scope: str) -> list[dict[str, Any]]:
        """The lifts of the headline: one for scope "all", one a segment for scope "segment"."""
        frame = self.lifts
        chosen = (
            (frame["model"] == self.subject)
            & (frame["baseline"] == self.baseline)
            & (frame["metric"] == self.metric)
            & (frame["k"] == self.k)
            & (frame["scope"] == scope)
        )
        return [{str(key): row[key] for key in row} for row in frame[chosen].to_dict("records")]


def _check_columns(name: str, frame: pd.DataFrame, wanted: Sequence[str]) -> None:
    missing = [column for column in wanted if column not in frame.columns]
    if missing and not (name in MAY_BE_EMPTY and frame.empty):
        raise ValueError(f"{name} need the columns {missing}; they have {list(frame.columns)}")


def _check_lifts(lifts: pd.DataFrame) -> None:
    twice = lifts[lifts.duplicated(_KEY)]
    if len(twice):
        raise ValueError(f"lifts give the same comparison twice: {twice[_KEY].iloc[0].to_dict()}")
    better, worse = lifts["verdict"] == "better", lifts["verdict"] == "worse"
    known = better | worse | (lifts["verdict"] == "cannot tell")
    wrong = lifts[~known | (better & ~(lifts["low"] > 0)) | (worse & ~(lifts["high"] < 0))]
    if len(wrong):
        raise ValueError(
            "a verdict must be better (only where low > 0), worse (only where high < 0) or "
            f"cannot tell; it is not in {wrong.iloc[0].to_dict()}"
        )
