"""How far a run depends on its seed: n seeds trained in one pass, judged on validation.

    log -> windows, without test -> base
        -> pooled adapter, n seeds in one pass; the first seed's is what segments stand on
        -> segments' own adapters, n seeds in one pass
        -> spread of the headline metric, overlap of lists, the gate's decision under each seed

Nothing is searched for: rates are the first values of each list in [search], or those of
[training]; every segment has all that [adapter] says; `parent = "auto"` counts as `pooled`. All
begin fresh. Nothing is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.comparison import compare
from reclora.configs import AdapterError
from reclora.evaluation import HeldOut, Lists, ScorerOf, headline_of, measure
from reclora.interactions import Interactions
from reclora.report import write_csv
from reclora.stability import (
    NOT_DECIDED,
    agreed,
    averaged,
    overlaps,
    spread,
)
from reclora.training import TrainingConfig

from .alone import alone_in, writing_alone
from .contenders import POOLED, SUBJECT, Contender, Ground, Trained, grid
from .gating import FELL_BACK, KEPT, PROMOTED, Decisions, decide_all
from .inputs import Inputs
from .kept import Kept
from .learning import ground_of
from .plan import check_adapter
from .progress import step
from .ranks import num_ranks
from .run import RunSettings, digest
from .settings import SettingsError
from .under_seeds import train_under_seeds

STATUSES: Final = (PROMOTED, FELL_BACK, KEPT)
"""What can come of a segment: that there was no candidate, or that its training broke, is no other
thing than that what is live is kept."""
ONE_SEED: Final = "one seed"
AVERAGES: Final = {False: "mean of the seeds", True: "mean of the seeds, cut to the rank"}
"""By whether it is cut."""


@dataclass(frozen=True)
class Stability:
    """What was measured, on validation users who chose no epoch."""

    folder: Path
    measure: str
    """The headline metric."""
    seeds: tuple[int, ...]
    models: pd.DataFrame
    """model, users, mean, sd over the seeds, low, high (of the seeds' means), overlap."""
    averages: pd.DataFrame
    """The seeds' averages against one seed: rows of `reclora.comparison.compare` over all users;
    empty where they were not asked for."""
    segments: pd.DataFrame
    """segment, rows that it trained on, users, mean, sd, low, high, overlap, decision, and how many
    seeds came to each; with averages the lift of the one that is cut, and its interval."""
    quarantined: int
    """Adapters whose training broke, of all segments and seeds; they change nothing."""

    @property
    def table(self) -> Path:
        """`segments`, as CSV."""
        return self.folder / "stability.csv"

    @property
    def decisions(self) -> dict[str, int]:
        """What the gate says, or that it is not decided -> of how many segments."""
        counts = self.segments["decision"].value_counts()
        return {word: int(counts[word]) for word in (*STATUSES, NOT_DECIDED) if word in counts}


def stability(settings: RunSettings, *, seeds: int = 5, average: bool = False) -> Stability:
    """Train the segments' adapters under several seeds in one pass, and measure what differs.

    Interrupted, the same call goes on where it was.

    Args:
        seeds: how many; the settings' own come first, see `seeds_of`.
        average: measure the average of the seeds' adapters too.

    Raises:
        LogError, SettingsError, BaseError, StoreError, ValueError: what is wrong with input or
            settings.
        AdapterError: adapters of these kinds have no average.
        TrainingError: every segment is quarantined under every seed.
        Busy: another run is at work in the same folder.
        OSError: a file cannot be written.
        KeyboardInterrupt: it was told to stop.
    """
    if num_ranks() > 1:
        raise SettingsError("stability trains in one process: start it without torchrun")
    drawn = seeds_of(settings, seeds)
    # What a run is called and how many seeds it has decides which folder it goes on in.
    mine = replace(settings, name=f"{settings.name}-stability", seeds=drawn, start="fresh")
    with alone_in(settings.folder):
        inputs = Inputs.read(mine, ())
    inputs = replace(inputs, windows=inputs.windows.without_test())
    check_adapter(mine, inputs.base, inputs.windows.train)
    if average:
        _check_average(inputs.base, inputs.windows.test, mine)
    with writing_alone(inputs.folder.path):
        inputs.folder.begin()
        found = _Study.of(mine, inputs).measured(average)
        write_csv(found.table, found.segments)
        inputs.folder.complete({"models": found.models.to_dict("records")})
    return found


def _check_average(base: BaseModel, nothing: Interactions, settings: RunSettings) -> None:
    """Refuse what has no average before it is trained, not after."""
    untrained = AdapterBank.for_log(base, nothing, settings.adapter).adapters()
    try:
        averaged([untrained] * len(settings.seeds), is_cut=False)
    except AdapterError as error:
        raise AdapterError(
            f"these adapters have no average of {len(settings.seeds)} seeds: {error}. Or take "
            "fewer seeds, or other kinds or a smaller rank in [adapter], or leave it out"
        ) from None


def seeds_of(settings: RunSettings, number: int) -> tuple[int, ...]:
    """The settings' seeds, as many as are asked for, then the smallest that are not among them.

    Raises:
        ValueError: fewer than two differ in nothing.
    """
    if number < 2:
        raise ValueError(f"seeds must be at least 2 to differ, got {number}")
    own = settings.seeds[:number]
    return (*own, *islice((n for n in count() if n not in own), number - len(own)))


@dataclass(frozen=True)
class _Study:
    """What is trained on and judged by, alike under every seed."""

    settings: RunSettings
    inputs: Inputs
    ground: Ground
    config: TrainingConfig

    @classmethod
    def of(cls, settings: RunSettings, inputs: Inputs) -> _Study:
        config = grid(settings.training, settings.search, settings.adapter)[0]
        return cls(settings, inputs, ground_of(settings, inputs), config)

    def measured(self, average: bool) -> Stability:
        """Train, judge and compare."""
        settings, ground, folder = self.settings, self.ground, self.inputs.folder
        judges = headline_of(ground.opposite.held_out)
        models, parent, parent_helped = list[pd.DataFrame](), None, False
        if settings.parent != "none":
            pooled = self._trained(Contender(POOLED, settings.adapter, is_pooled=True), None)
            parent, parent_helped = pooled[0].bank.adapters()[0], bool(pooled[0].helped)
            _, measured = self._ranked(pooled, judges)
            models.append(measured.head(1).assign(model=POOLED))
        contender = Contender(SUBJECT, settings.adapter, False, parent is not None)
        own = self._trained(contender, parent)
        results, measured = self._ranked(own, judges)
        models.append(measured.head(1).assign(model=SUBJECT))
        decisions = self._decisions(own, ground.opposite.held_out, parent_helped)
        lifts = self._averages(own, judges, results) if average else pd.DataFrame()
        columns = ["model", "users", "mean", "sd", "low", "high", "overlap"]
        return Stability(
            folder.path,
            settings.evaluation.headline,
            settings.seeds,
            pd.concat(models, ignore_index=True)[columns],
            lifts[lifts["scope"] == "all"].reset_index(drop=True) if average else lifts,
            self._segments(measured, decisions, lifts),
            sum(len(trained.training.quarantined) for trained in own),
        )

    def _trained(self, contender: Contender, parent: Adapter | None) -> list[Trained]:
        ground, seeds = replace(self.ground, parent=parent), self.settings.seeds
        with step(f"training: {contender.model}, {len(seeds)} seeds in one pass") as progress:
            trained = train_under_seeds(contender, ground, self.config, seeds, progress)
        self.inputs.folder.event("trained", model=contender.model, seeds=seeds)
        return trained

    def _ranked(
        self, trained: Sequence[Trained], judges: HeldOut
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The results of each seed's lists, and how far they differ: `spread` and `overlaps`."""
        lists, tables = dict[int, Lists](), list[pd.DataFrame]()
        model, seeds = trained[0].contender.model, self.settings.seeds
        with step(f"ranking: {model}, {len(seeds)} seeds") as progress:
            for seed, its in zip(seeds, trained, strict=True):
                lists[seed] = self._recommend(judges, its.scorer_of(), its.fingerprint)
                tables.append(measure(judges, lists[seed], model=ONE_SEED, run="", seed=seed))
                progress(len(tables), len(seeds))
        results = pd.concat(tables, ignore_index=True)
        overlap = overlaps(judges, lists, judges.config.ks[0]).drop(columns="users")
        return results, spread(results).merge(overlap, on=["scope", "segment"], how="left")

    def _recommend(self, judges: HeldOut, scorer_of: ScorerOf, fingerprint: str) -> Lists:
        return self._kept.recommend(judges, scorer_of, "stability", fingerprint, model="")[""]

    @property
    def _kept(self) -> Kept:
        return Kept(self.inputs.folder.measuring, self.settings.workers)

    def _decisions(
        self, own: Sequence[Trained], judges: HeldOut, parent_helped: bool
    ) -> dict[int, Decisions]:
        """What a run's gate says under each seed, against what is live."""
        live, decided = self.inputs.live.scorer_of, {}
        with step("the gate, seed by seed") as progress:
            for seed, trained in zip(self.settings.seeds, own, strict=True):
                decided[seed] = decide_all(
                    trained,
                    self.inputs.windows,
                    judges,
                    {},
                    self.ground.log,
                    live,
                    set(),
                    self.settings.gate,
                    parent_helped,
                    self._kept,
                )
                progress(len(decided), len(own))
        return decided

    def _averages(
        self, own: Sequence[Trained], judges: HeldOut, results: pd.DataFrame
    ) -> pd.DataFrame:
        """The seeds' averages, exact and cut, against one seed."""
        adapters = [trained.bank.adapters() for trained in own]
        lifts = []
        for is_cut, name in AVERAGES.items():
            with step(f"ranking: {name}") as progress:
                bank = AdapterBank.of(self.inputs.base, averaged(adapters, is_cut=is_cut))
                fingerprint = digest(name, [trained.fingerprint for trained in own])
                lists = self._recommend(judges, bank.scorer, fingerprint)
                progress(1, 1)
            table = measure(judges, lists, model=name, run="", seed=0)
            metric, k = judges.config.metrics[0], judges.config.ks[0]
            both = pd.concat([results, table], ignore_index=True)
            lifts.append(compare(both, name, ONE_SEED, metric=metric, k=k))
        return pd.concat(lifts, ignore_index=True)

    def _segments(
        self, measured: pd.DataFrame, decisions: dict[int, Decisions], lifts: pd.DataFrame
    ) -> pd.DataFrame:
        """A row a segment of the log."""
        log = self.ground.log
        table = pd.DataFrame({"segment": log.segment_names, "rows": np.diff(log.offsets)})
        own = measured[measured["scope"] == "segment"].drop(columns=["scope", "seeds"])
        table = table.merge(own, on="segment", how="left")
        table["users"] = table["users"].fillna(0).astype(int)
        found = agreed({seed: its.come_to for seed, its in decisions.items()})
        table = table.merge(found, on="segment", how="left")
        if len(lifts):
            is_cut = (lifts["model"] == AVERAGES[True]) & (lifts["scope"] == "segment")
            names = {"difference": "average lift", "low": "average low", "high": "average high"}
            columns = ["segment", *names]
            cut = lifts.loc[is_cut, columns].rename(columns=names)
            table = table.merge(cut.astype({"segment": str}), on="segment", how="left")
        return table
