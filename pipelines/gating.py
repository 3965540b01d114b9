"""What goes live: every segment's candidate against what serves it now, on validation.

A segment's candidate is its own new adapter where an epoch of it was better than what it stands on,
else its parent alone. It is judged on the validation users who chose none of its epochs.

| status | means |
|---|---|
| promoted | its own new adapter goes live |
| fell back | its parent alone goes live |
| kept | what was live stays: the gate did not find the candidate better, or there was none better |
| skipped | there is nothing to go live, and why |
| quarantined | its training broke; what was live stays |

What is done is what the first seed comes to. With several seeds a segment of which they do not all
come to the same is reported as not decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reclora.evaluation import (
    HeldOut,
    Lists,
    ScorerOf,
    headline_of,
    measure,
    measure_catalogue,
    measure_lists,
)
from reclora.gate import CANDIDATE, LIVE, GateConfig, decide
from reclora.interactions import Interactions
from reclora.splits import Windows
from reclora.stability import NOT_DECIDED, agreed

from .contenders import Trained
from .kept import Kept

OWN, PARENT_ALONE = "an adapter of their own", "the parent alone"
PROMOTED, FELL_BACK, KEPT, SKIPPED, QUARANTINED = (
    "promoted",
    "fell back",
    "kept",
    "skipped",
    "quarantined",
)
STATUSES = (PROMOTED, FELL_BACK, KEPT, SKIPPED, QUARANTINED)


@dataclass(frozen=True)
class Decisions:
    """What was decided on every segment, and by which numbers."""

    table: pd.DataFrame
    """A row a segment: segment, status, reason, then what `reclora.gate.decide` gives, and the
    means of the other models on the same users."""

    def of(self, status: str) -> list[str]:
        """The segments of a status."""
        return [str(s) for s in self.table.loc[self.table["status"] == status, "segment"]]

    @property
    def counts(self) -> dict[str, int]:
        """Status -> how many segments, of those that there are."""
        found = self.table["status"].value_counts()
        return {status: int(found[status]) for status in STATUSES if status in found}

    def with_absent(self, segments: Sequence[str]) -> Decisions:
        """The same with segments that are live, and of which the log has no row."""
        if not segments:
            return self
        rows = {"segment": list(segments), "status": KEPT, "reason": "no row in this log"}
        absent = pd.DataFrame(rows | {"had_candidate": False})
        return Decisions(pd.concat([self.table, absent], ignore_index=True))

    def without(self, changed: set[str], why: str) -> Decisions:
        """The same where some segments stay as they are after all."""
        goes = self.table["status"].isin((PROMOTED, FELL_BACK))
        stays = self.table["segment"].isin(changed) & goes
        table = self.table.copy()
        table.loc[stays, ["status", "reason"]] = [KEPT, why]
        return Decisions(table)

    def across(self, by_seed: Mapping[int, Decisions]) -> Decisions:
        """The same with a column `across_seeds`: what comes of a segment under every seed, or "not
        decided", whose reason says under which seed what. The status stays: it is what was done.

        Args:
            by_seed: seed -> what the gate says of its candidates, on these segments.
        """
        found = agreed({seed: its.come_to for seed, its in by_seed.items()})
        table = self.table.set_index("segment")
        table.insert(1, "across_seeds", found.set_index("segment")["decision"])
        for name in table.index[table["across_seeds"] == NOT_DECIDED]:
            said = "; ".join(f"{its.come_to[name]} under seed {n}" for n, its in by_seed.items())
            table.loc[name, "reason"] = f"{NOT_DECIDED}: {said}; {table.loc[name, 'reason']}"
        return Decisions(table.reset_index())

    @property
    def come_to(self) -> dict[str, str]:
        """Segment -> what comes of it; whyever nothing goes live, what was live is kept."""
        status = self.table["status"].where(self.table["status"].isin((PROMOTED, FELL_BACK)), KEPT)
        return dict(zip(self.table["segment"].astype(str), status, strict=True))

    @property
    def not_decided(self) -> int:
        """Segments of which the seeds do not all come to the same."""
        return int((self.table.get("across_seeds", pd.Series()) == NOT_DECIDED).sum())

    @property
    def goes_live(self) -> set[str]:
        """The segments whose candidate goes live."""
        return {*self.of(PROMOTED), *self.of(FELL_BACK)}


def decide_all(
    subject: Trained,
    windows: Windows,
    held_out: HeldOut,
    others: Mapping[str, ScorerOf],
    log: Interactions,
    live: ScorerOf,
    begun: set[str],
    config: GateConfig,
    parent_helped: bool,
    kept: Kept,
) -> Decisions:
    """Decide on every segment of the train window.

    Args:
        subject: the trained candidates.
        held_out: the validation users who chose no epoch.
        others: models whose means stand in the table beside: base, parent, popularity.
        log: what the candidates trained on.
        live: what serves each segment now.
        begun: segments whose training began with what is live.
        parent_helped: the parent may serve segments.
        kept: where lists are kept.
    """
    segments = {
        name: _Segment.of(code, name, subject, windows, begun, parent_helped)
        for code, name in enumerate(windows.train.segment_names)
    }
    asked = {name: s.group for name, s in segments.items() if s.group}
    only = replace(held_out, segments=tuple(s for s in held_out.segments if s.name in asked))
    only = headline_of(only)
    lists = {
        model: kept.recommend(only, scorer_of, "gate", model, subject.fingerprint, model=model)[""]
        for model, scorer_of in {CANDIDATE: subject.scorer_of(), LIVE: live, **others}.items()
    }
    results = pd.concat(
        [measure(only, lists[m], model=m, run="", seed=0) for m in lists], ignore_index=True
    )
    judged = results[results["model"].isin((CANDIDATE, LIVE))]
    guards = _guards(only, lists[CANDIDATE], lists[LIVE])
    sizes = dict(zip(log.segment_names, np.diff(log.offsets), strict=True))
    # The parent is the same whatever the segment's size: nothing was trained on its rows alone.
    rows_of = {name: int(sizes[name]) if group == OWN else 0 for name, group in asked.items()}
    decided = decide(judged, asked, config, guards, rows_of).set_index("segment")
    means = results[~results["model"].isin((CANDIDATE, LIVE))]
    beside = means.groupby(["segment", "model"], observed=True)["value"].mean().unstack("model")
    table = decided.join(beside.reindex(columns=list(others)))
    rows = [segments[name].decided(decided) for name in segments]
    told = pd.DataFrame(rows, columns=["segment", "status", "reason", "had_candidate"])
    told = told.set_index("segment").join(table.drop(columns=["goes_live", "reason"]))
    return Decisions(told.rename_axis("segment").reset_index())


@dataclass(frozen=True)
class _Segment:
    name: str
    group: str
    """What its candidate is; empty for none."""
    otherwise: tuple[str, str]
    """Status and reason where there is no candidate."""

    @classmethod
    def of(
        cls,
        code: int,
        name: str,
        subject: Trained,
        windows: Windows,
        begun: set[str],
        parent_helped: bool,
    ) -> _Segment:
        why = subject.training.quarantined.get(name)
        if why:
            return cls(name, "", (QUARANTINED, why))
        if subject.training.best_epoch[name] > 0:
            return cls(name, OWN, ("", ""))
        if name in begun:
            return cls(name, "", (KEPT, "no epoch was better on validation than what is live"))
        if subject.parent is not None and parent_helped:
            return cls(name, PARENT_ALONE, ("", ""))
        return cls(name, "", (SKIPPED, _why_untrained(code, subject, windows)))

    def decided(self, decided: pd.DataFrame) -> tuple[str, str, str, bool]:
        """The segment, its status, the reason, and whether it had a candidate."""
        if not self.group:
            return self.name, *self.otherwise, False
        row = decided.loc[self.name]
        passes = PROMOTED if self.group == OWN else FELL_BACK
        return self.name, passes if row["goes_live"] else KEPT, str(row["reason"]), True


def _why_untrained(code: int, subject: Trained, windows: Windows) -> str:
    for window in ("train", "validation"):
        offsets = getattr(windows, window).offsets
        if offsets[code] == offsets[code + 1]:
            what = "to train on" if window == "train" else "to validate on"
            return f"no interactions {what}"
    if not subject.bank.has_delta(code):
        return "an adapter of its own did not help segments of its size"
    return "no epoch was better on validation than what it stands on"


def _guards(held_out: HeldOut, candidate: Lists, live: Lists) -> pd.DataFrame:
    """segment, and of the candidate's lists against the live ones': coverage and popularity as
    ratios, churn as the share of places that changed.
    """
    k = held_out.config.ks[0]
    sides = {}
    for model, lists, others in (("candidate", candidate, live), ("live", live, None)):
        each = measure_lists(held_out, lists, model=model, run="", seed=0, others=others)
        whole = measure_catalogue(held_out, lists, model=model, run="", seed=0)
        spread = whole[(whole["scope"] == "segment") & (whole["metric"] == "coverage")]
        values = each[each["k"] == k].groupby(["metric", "segment"], observed=True)["value"].mean()
        sides[model] = values, spread[spread["k"] == k].set_index("segment")["value"]
    (own, own_coverage), (other, other_coverage) = sides["candidate"], sides["live"]
    guards = pd.DataFrame({"coverage": _ratio(own_coverage, other_coverage)})
    for name in ("popularity", "churn"):
        guards[name] = np.nan
    known = own.index.get_level_values("metric")
    if "popularity" in known:
        guards["popularity"] = _ratio(own["popularity"], other["popularity"])
    if "overlap" in known:
        guards["churn"] = 1 - own["overlap"]
    return guards.rename_axis("segment").reset_index()


def _ratio(own: pd.Series, other: pd.Series) -> pd.Series:
    ratio: pd.Series = own / other.where(other != 0)
    return ratio
