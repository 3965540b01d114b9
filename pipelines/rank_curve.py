"""Which rank a run needs, from one training: adapters are cut to every rank, not trained again.

    log -> windows, without test -> base
        -> pooled adapter -> segments' own adapters, of `adapter.rank`, the highest asked about
        -> the pooled one cut to each rank; the own ones, on the whole pooled one
        -> metric by rank, the smallest rank within a standard error of each; the larger of the two

A run has one rank for the pooled adapter and the segments' own, hence the larger. One half of the
validation users chooses the epochs, the other is asked about the ranks. Nothing is searched for:
rates are the first values of each list in [search], or those of [training], the seed is the first;
every segment has all that [adapter] says; `parent = "auto"` counts as `pooled`. All begin fresh.
Nothing is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import pandas as pd

from reclora.adapters import Adapter
from reclora.arithmetic.parts import resized
from reclora.bank import AdapterBank
from reclora.configs import AdapterConfig, AdapterError, Config
from reclora.report import write_csv
from reclora.shrinkage import scaled
from reclora.truncation import RankCurve, rank_curve, truncate

from .alone import alone_in, writing_alone
from .contenders import POOLED, SUBJECT, Contender, Ground, Trained, grid, train_contender
from .inputs import Inputs
from .learning import ground_of
from .plan import check_adapter
from .progress import step
from .ranks import num_ranks
from .run import RunSettings
from .settings import SettingsError

PARTS: Final = ("user_table", "item_table", "item_bias", "tower")


@dataclass(frozen=True)
class RankChoice:
    """What each rank is worth to validation users who chose no epoch, and what follows."""

    folder: Path
    measure: str
    """The headline metric."""
    seed: int
    largest: int
    """What was trained: `adapter.rank`."""
    curves: pd.DataFrame
    """model (the pooled adapter, where there is one, and the segments' own), then as
    `RankCurve.table` has it: scope, segment, rank, bytes, users, mean, behind, error, chosen."""
    helped: int
    """Segments whose own adapter is better, to those who chose its epoch, than what it stands on;
    the others take no byte here and change nothing, as in a run."""
    quarantined: int
    """Segments whose training broke, among those others."""
    changes: dict[str, object]
    """Key of the settings -> the value that the chosen rank needs, where it is another: rank and
    alpha, so that the scaling stays; of rank 0 the kinds. Empty too where no kind is left, or no
    adapter helped."""
    higher: dict[str, object]
    """The same of the next rank to try, where the largest is chosen and there is a higher one."""

    @property
    def table(self) -> Path:
        """`curves`, as CSV."""
        return self.folder / "rank-curve.csv"

    @property
    def whole(self) -> pd.DataFrame:
        """The curves of all segments together."""
        whole = self.curves[self.curves["scope"] == "all"]
        return whole.drop(columns=["scope", "segment"]).reset_index(drop=True)

    @property
    def segments(self) -> int:
        """How many there are."""
        return int(self.curves.loc[self.curves["scope"] == "segment", "segment"].nunique())

    @property
    def ranks(self) -> dict[str, int]:
        """Model -> the smallest that is behind its best by no more than a standard error."""
        chosen = self.whole[self.whole["chosen"]]
        return dict(zip(chosen["model"], chosen["rank"].tolist(), strict=True))

    @property
    def rank(self) -> int:
        """What a run needs, which has one for all of its models."""
        return max(self.ranks.values())

    @property
    def told_apart(self) -> dict[str, bool]:
        """Model that helped -> whether a rank of it is worse than its best by more than a standard
        error.
        """
        whole = self.whole
        worse = set(whole.loc[whole["behind"] > whole["error"], "model"])
        several = whole.loc[whole["rank"] > 0, "model"]
        return {model: model in worse for model in several.unique()}


def choose_rank(settings: RunSettings) -> RankChoice:
    """Train the segments' adapters once, at `adapter.rank`, and measure what each rank is worth.

    Interrupted, the same call goes on where it was.

    Raises:
        LogError, SettingsError, BaseError, StoreError, ValueError: what is wrong with input or
            settings.
        AdapterError: adapters of these kinds cannot be cut, or have nothing to cut.
        TrainingError: every segment is quarantined.
        Busy: another run is at work in the same folder.
        OSError: a file cannot be written.
        KeyboardInterrupt: it was told to stop.
    """
    if num_ranks() > 1:
        raise SettingsError("rank-curve trains in one process: start it without torchrun")
    # What a run is called and its seeds decide which folder it goes on in.
    name = f"{settings.name}-rank-curve"
    mine = replace(settings, name=name, seeds=settings.seeds[:1], start="fresh")
    with alone_in(settings.folder):
        inputs = Inputs.read(mine, ())
    windows = inputs.windows.without_test()
    inputs = replace(inputs, windows=windows)
    check_adapter(mine, inputs.base, windows.train)
    untrained = AdapterBank.for_log(inputs.base, windows.test, mine.adapter).adapters()[0]
    _check_has_ranks(untrained)
    with writing_alone(inputs.folder.path):
        inputs.folder.begin()
        found = _choice(mine, inputs, untrained)
        write_csv(found.table, found.curves)
        told = {"rank": found.rank, "curves": found.whole.to_dict("records")}
        inputs.folder.complete(told)
    return found


def as_served(trained: Trained) -> list[Adapter]:
    """What a run would serve each segment by: its own adapter where that helped, else what it
    stands on, which changes with no rank and takes no byte.
    """
    helped = {*trained.helped}
    adapters = trained.bank.adapters()
    return [own if own.segment in helped else scaled(own, 0.0) for own in adapters]


def _check_has_ranks(untrained: Adapter) -> None:
    """Refuse what cannot be cut before it is trained, not after."""
    try:
        (cut,) = truncate([untrained], 0)
    except AdapterError as error:
        raise AdapterError(
            f"adapters of these kinds cannot be cut to ranks: {error}. [adapter] asks for it"
        ) from None
    if cut is untrained:
        assert isinstance(untrained.config, AdapterConfig)
        kinds = ", ".join(f"{part} = {kind!r}" for part, kind in _kinds(untrained.config).items())
        raise AdapterError(
            "adapters of these kinds have no rank: expected `rows` or `map` of a table, or "
            f"`low_rank` where the base has a tower, got {kinds}: give one in [adapter]"
        )


def _choice(settings: RunSettings, inputs: Inputs, untrained: Adapter) -> RankChoice:
    """Train, measure and choose."""
    curves, own = _measured(settings, inputs)
    rank = max(curve.smallest_rank() for curve in curves.values())
    is_moot = all(curve.ranks == [0] for curve in curves.values())
    (cut,) = [untrained] if is_moot else truncate([untrained], rank)
    largest, limit = settings.adapter.rank, inputs.base.embedding_dim
    higher = min(2 * largest, limit) if rank == largest < limit else largest
    return RankChoice(
        inputs.folder.path,
        settings.evaluation.headline,
        settings.seeds[0],
        largest,
        _table(curves),
        len(own.helped),
        len(own.training.quarantined),
        _changes(settings.adapter, cut.config),
        _changes(settings.adapter, resized(settings.adapter, [higher])),
    )


def _measured(settings: RunSettings, inputs: Inputs) -> tuple[dict[str, RankCurve], Trained]:
    """Model -> its curve; and the segments' own adapters."""
    ground, curves = ground_of(settings, inputs), {}
    if settings.parent != "none":
        pooled = _trained(Contender(POOLED, settings.adapter, is_pooled=True), ground, settings)
        inputs.folder.event("trained", model=POOLED)
        curves[POOLED] = _curve(pooled, ground.pooled)
        ground = replace(ground, parent=pooled.bank.adapters()[0])
    has_parent = ground.parent is not None
    own = _trained(Contender(SUBJECT, settings.adapter, False, has_parent), ground, settings)
    inputs.folder.event("trained", model=SUBJECT)
    return curves | {SUBJECT: _curve(own, ground)}, own


def _trained(contender: Contender, ground: Ground, settings: RunSettings) -> Trained:
    config = grid(settings.training, settings.search, settings.adapter)[0]
    with step(f"training: {contender.model}, rank {settings.adapter.rank}") as progress:
        trained = train_contender(contender, ground, config, settings.seeds[0])
        progress(1, 1)
    return trained


def _curve(trained: Trained, ground: Ground) -> RankCurve:
    """By those users who chose no epoch."""
    with step(f"ranking: {trained.contender.model}, every rank") as progress:
        curve = rank_curve(as_served(trained), ground.base, ground.opposite.held_out)
        progress(1, 1)
    return curve


def _table(curves: Mapping[str, RankCurve]) -> pd.DataFrame:
    """The tables of all models; of the pooled adapter all segments as one alone."""
    tables = []
    for model, curve in curves.items():
        table = curve.table()
        table.insert(0, "model", model)
        tables.append(table if model == SUBJECT else table[table["scope"] == "all"])
    return pd.concat(tables, ignore_index=True)


def _changes(own: AdapterConfig, other: Config) -> dict[str, object]:
    """What to set for another config; nothing where no kind is left, which no run would train."""
    assert isinstance(other, AdapterConfig)
    names = [field.name for field in fields(own)] if _kinds(other) else []
    values = {name: getattr(other, name) for name in names}
    return {f"adapter.{n}": value for n, value in values.items() if value != getattr(own, n)}


def _kinds(config: AdapterConfig) -> dict[str, str]:
    """The part of a base model -> its kind, of those that have one."""
    parts = {name: str(getattr(config, name)) for name in PARTS}
    return {name: kind for name, kind in parts.items() if kind != "none"}
