"""The trained models of a run: each with its own learning rates, chosen on validation.

    pooled full fine-tune               base + everything free, all segments as one
    per-segment full fine-tune          base + everything free, each segment alone
    per-segment bias, map, basis        base + one kind of delta, each segment alone
    pooled adapter                      base + low rank, all segments as one
    per-segment adapters, no parent     base + low rank, each segment alone
    pooled adapter + residual           base + pooled adapter + low rank of each segment
    per-segment adapters                base + pooled adapter + each segment's own, by how much data
                                        it has: what is published

An untuned baseline flatters what is compared with it, so adapters and the full fine-tune go through
the same search over the same grid, and the first seed decides. Epochs are chosen by one half of the
validation users and settings compared by the other; where users are few, the other way round too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import FULL, AdapterConfig
from reclora.evaluation import (
    EvaluationConfig,
    HeldOut,
    RankingJudge,
    headline_of,
    measure,
)
from reclora.interactions import Interactions
from reclora.ladder import PARENT, TOP, choose_rungs, rungs
from reclora.ranking import Scorer
from reclora.training import Training, TrainingConfig

from .held_out import hold_out_some
from .orders import Crew, recommend
from .progress import Step
from .run import (
    EACH_KIND,
    FULL_FINE_TUNE,
    NO_PARENT,
    RESIDUAL,
    SEGMENT_FULL,
    RunSettings,
    Search,
    digest,
)
from .workshop import Recipe, Workshop, digest_of


@dataclass(frozen=True)
class Contender:
    """One way of training on the adapt window."""

    model: str
    config: AdapterConfig | tuple[AdapterConfig, ...]
    """Of all segments, or of each."""
    is_pooled: bool
    """Trained on all segments as one, and the same for all of them."""
    has_parent: bool = False
    """Trained on top of the pooled adapter."""


@dataclass(frozen=True)
class Trained:
    """A trained contender."""

    contender: Contender
    bank: AdapterBank
    training: Training
    fingerprint: str
    """Of all that decided its numbers within a run."""

    def scorer_of(self) -> Callable[[str], Scorer]:
        """Segment name -> scorer; a pooled model is materialised once."""
        if not self.contender.is_pooled:
            return self.bank.scorer
        scorer = self.bank.scorer(self.bank.segment_names[0])
        return lambda segment: scorer

    @property
    def parent(self) -> Adapter | None:
        """What its segments' adapters stand on."""
        return self.bank.parent_adapter

    @property
    def num_numbers(self) -> int:
        """Those of the segments whose own adapter helped, and once those of what they stand on."""
        own = sum(self.bank.adapter(name).num_numbers for name in self.helped)
        return own + (0 if self.parent is None else self.parent.num_numbers)

    @property
    def helped(self) -> list[str]:
        """The segments whose own adapter was better on validation than what it stands on."""
        return [name for name, epoch in self.training.best_epoch.items() if epoch > 0]


SUBJECT, ALONE = "per-segment adapters", "per-segment adapters, no parent"
POOLED = "pooled adapter"
ON_POOLED = "pooled adapter + residual"
POOLED_FULL, OWN_FULL = "pooled full fine-tune", "per-segment full fine-tune"


def contenders(settings: RunSettings, has_parent: bool = False) -> tuple[Contender, ...]:
    """The models that a run trains; the pooled adapter before what stands on it. Of two that are
    called `SUBJECT` the better one is kept.

    Args:
        has_parent: there is a pooled adapter already that the segments' own are to stand on.
    """
    own = Contender(SUBJECT, settings.adapter, is_pooled=False)
    trained = []
    if FULL_FINE_TUNE in settings.compared:
        trained.append(Contender(POOLED_FULL, FULL, is_pooled=True))
    if SEGMENT_FULL in settings.compared:
        trained.append(Contender(OWN_FULL, FULL, is_pooled=False))
    if EACH_KIND in settings.compared:
        lower = [name for name in rungs(settings.adapter) if name not in (PARENT, TOP)]
        kinds = {f"per-segment {name}": rungs(settings.adapter)[name] for name in lower}
        trained += [Contender(name, kind, is_pooled=False) for name, kind in kinds.items()]
    if not has_parent and (settings.parent != "none" or FULL_FINE_TUNE in settings.compared):
        trained.append(Contender(POOLED, settings.adapter, is_pooled=True))
    if settings.parent == "none":
        return (*trained, own)
    if NO_PARENT in settings.compared:
        trained.append(replace(own, model=ALONE))
    if RESIDUAL in settings.compared:
        trained.append(replace(own, model=ON_POOLED, has_parent=True))
    if settings.parent == "auto" and not has_parent:
        trained.append(own)
    return (*trained, replace(own, has_parent=True))


def rungs_of(settings: RunSettings) -> dict[str, AdapterConfig]:
    """The rungs that a run picks from; none where every segment gets all that [adapter] says."""
    return rungs(settings.adapter) if settings.kinds == "auto" else {}


SEARCHED = ("rows_lr", "bias_lr", "l2", "shrinkage")
"""What of the training a search chooses."""


def grid(
    training: TrainingConfig, search: Search, config: AdapterConfig | None = None
) -> list[TrainingConfig]:
    """Every setting that the search tries; of what `config` has no delta for, the first value."""
    values = {n: getattr(search, n) or (getattr(training, n),) for n in SEARCHED}
    if config is not None and config.user_table == config.item_table == "none":
        values |= {n: values[n][:1] for n in SEARCHED if n != "bias_lr"}
    return [
        replace(training, **dict(zip(values, chosen, strict=True)))
        for chosen in product(*values.values())
    ]


@dataclass(frozen=True)
class Ground:
    """What every contender trains on and is chosen by, alike."""

    base: BaseModel
    log: Interactions
    """The train window."""
    validation: Interactions
    seen: Interactions
    """All that came before the validation window."""
    evaluation: EvaluationConfig
    workshop: Workshop = Workshop()
    crew: Crew | None = None
    """The ranks that train and rank, where there are many."""
    users: Literal["even", "odd"] = "even"
    """Validation users that count: those of even rows, who choose the epochs of what is published,
    or those of odd ones, who are asked at the gate; all of them, where there is nobody else."""
    parent: Adapter | None = None
    """The pooled adapter, for the contenders that stand on it."""
    start: Mapping[str, Adapter] = field(default_factory=dict)
    """Segment -> the adapter that it begins with, for those that stand on that parent."""
    candidates: Mapping[str, Tensor] | None = None
    """The items that are ranked for each segment, where they are given."""

    @cached_property
    def opposite(self) -> Ground:
        """The same with the other half of the validation users."""
        return replace(self, users="odd" if self.users == "even" else "even")

    @cached_property
    def pooled(self) -> Ground:
        """The same with all segments as one."""
        return replace(
            self,
            log=self.log.pooled(),
            validation=self.validation.pooled(),
            seen=self.seen.pooled(),
            candidates=_pooled(self.candidates),
            start={},
        )

    @cached_property
    def taken(self) -> Interactions | None:
        """What users took before the log that is trained on; None where that is all of it."""
        if len(self.log) == len(self.seen):
            return None
        names = self.log.segment_names
        if self.seen.segment_names == names:
            return self.seen
        return self.seen.part([self.seen.segment_names.index(name) for name in names])

    @cached_property
    def held_out(self) -> HeldOut:
        """The validation window, held out after the train window."""
        what = "the validation window"
        whole = hold_out_some(what, self.validation, self.seen, self.evaluation, self.candidates)
        half = whole.only_users(lambda rows: rows % 2 == int(self.users == "odd"))
        return half if half.num_users else whole


def _pooled(candidates: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """What is a candidate of any segment."""
    if candidates is None:
        return None
    return {"pooled": torch.stack(list(candidates.values())).any(dim=0)}


CROSSED_BELOW = 20_000
"""Of fewer validation users both halves compare, each on what the other half stopped: for twice the
search, half the noise of a few hundred users. Many tell settings apart without."""


def num_folds(settings: RunSettings, validation: Interactions) -> int:
    """2: both halves compare; 1: the odd one alone, where it is large, or where nothing is to be
    chosen.
    """
    users = np.unique(validation.user_rows)
    is_fixed = settings.kinds == "given" and settings.parent != "auto"
    is_fixed &= len(grid(settings.training, settings.search)) == 1
    is_whole = len(np.unique(users % 2)) == 1
    return 1 if is_fixed or is_whole or len(users) >= CROSSED_BELOW else 2


def train_contender(
    contender: Contender, ground: Ground, config: TrainingConfig, seed: int
) -> Trained:
    """Train one contender with one setting and seed; each segment keeps its best epoch."""
    if contender.is_pooled:
        ground = ground.pooled
    parent, configs = ground.parent if contender.has_parent else None, contender.config
    each = configs if isinstance(configs, AdapterConfig) else dict(enumerate(configs))
    recipe = Recipe(each, seed, parent, ground.start)
    # Whatever it is called: what is trained for one name is there for the other.
    nameless = asdict(replace(contender, model=""))
    what = [nameless, digest_of(parent), ground.users, sorted(ground.start)]
    log, taken, held_out, workshop = ground.log, ground.taken, ground.held_out, ground.workshop
    if ground.crew is not None:
        # What the ranks have trained is then taken up as a run that goes on takes up its own.
        name = workshop.name_of(what, config, seed)
        ground.crew.train(workshop, name, recipe, log, taken, held_out, config)
    judge_of = partial(RankingJudge, held_out)
    bank, training = workshop.train(what, recipe, ground.base, log, config, judge_of, seed, taken)
    quarantined = sorted(training.quarantined)
    return Trained(contender, bank, training, digest(*what, vars(config), seed, quarantined))


@dataclass(frozen=True)
class Choice:
    """What validation chose for a contender."""

    contender: Contender
    """With the kinds of each segment, where they were to be picked."""
    config: TrainingConfig
    tried: pd.DataFrame
    """model, what is searched, value, chosen: one row a setting."""
    values: pd.DataFrame
    """What the choice was worth to the users that compared: segment, user_id, value."""
    stopped: tuple[Trained, ...]
    """The contender as trained with the setting on each fold: what a contender that stands on it
    compares its own settings on."""
    rungs: pd.DataFrame | None = None
    """What the kinds were picked by; see `reclora.ladder.choose_rungs`."""


def choose(
    contender: Contender, folds: Sequence[Ground], settings: RunSettings, progress: Step
) -> Choice:
    """The setting with the best headline metric on validation, of the first seed, and the kinds.

    The epochs are chosen by one half of the validation users and the settings compared by the
    other: a maximum over epochs flatters whatever is noisiest, high rates and small segments above
    all, and would choose them. Of equal settings the first in the grid is chosen. With that setting
    the rungs of the ladder are then compared for each size of segment.

    Args:
        folds: `num_folds` grounds, what the users of each stop is judged by the opposite ones; each
            with the parent as its own users stopped it (`Choice.stopped`).
    """
    tried: list[tuple[TrainingConfig, float]] = []
    chosen, stopped, best = settings.training, tuple[Trained, ...](), (-np.inf, pd.DataFrame())
    of = contender.config if isinstance(contender.config, AdapterConfig) else None
    configs = grid(settings.training, settings.search, of)
    # Kinds that segments begin with are theirs already.
    is_given = contender.config != settings.adapter or bool(folds[0].start)
    ladder = rungs_of(settings) if contender.model == SUBJECT and not is_given else {}
    steps = len(configs) + len(ladder)
    for config in configs:
        trained = tuple(train_contender(contender, f, config, settings.seeds[0]) for f in folds)
        values_U = _opposite_values(folds, trained)
        value = float(values_U["value"].mean())
        tried.append((config, value))
        if value > best[0] or not stopped:
            chosen, stopped, best = config, trained, (value, values_U)
        progress(len(tried), steps)
    rows = [
        {"model": contender.model}
        | {name: getattr(config, name) for name in SEARCHED}
        | {"value": value, "chosen": config == chosen}
        for config, value in tried
    ]
    choice = Choice(contender, chosen, pd.DataFrame(rows), best[1], stopped)
    if not ladder:
        return choice
    values = {}
    for done, (rung, kinds) in enumerate(ladder.items(), len(configs) + 1):
        on_rung = [
            _on_rung(rung, kinds, choice, fold, on_top, settings.seeds[0])
            for fold, on_top in zip(folds, stopped, strict=True)
        ]
        values[rung] = _opposite_values(folds, on_rung)
        progress(done, steps)
    return _with_rungs(choice, ladder, values, folds[0].log)


def _with_rungs(
    choice: Choice,
    ladder: Mapping[str, AdapterConfig],
    values: Mapping[str, pd.DataFrame],
    log: Interactions,
) -> Choice:
    """The choice with the rung of each segment, by what the users said of every rung."""
    names = log.segment_names
    sizes = dict(zip(names, np.diff(log.offsets).tolist(), strict=True))
    picked, compared = choose_rungs(values, sizes)
    if not choice.contender.has_parent and set(picked.values()) == {PARENT}:
        # Without any delta there is nothing to train: let each segment's validation say no.
        return replace(choice, rungs=compared)
    of_picked = [v[v["segment"].astype(str).map(picked) == rung] for rung, v in values.items()]
    return replace(
        choice,
        contender=replace(choice.contender, config=tuple(ladder[picked[name]] for name in names)),
        values=pd.concat(of_picked, ignore_index=True),
        rungs=compared,
    )


def _opposite_values(folds: Sequence[Ground], trained: Sequence[Trained]) -> pd.DataFrame:
    """What the users say of it that stopped none of its epochs, all folds together."""
    values = [headline_values(f.opposite, t) for f, t in zip(folds, trained, strict=True)]
    return pd.concat(values, ignore_index=True)


def _on_rung(
    rung: str, kinds: AdapterConfig, choice: Choice, fold: Ground, on_top: Trained, seed: int
) -> Trained:
    """The contender with the adapters of one rung; `on_top` has all kinds."""
    contender = replace(choice.contender, config=kinds)
    if rung == PARENT:
        parent = fold.parent if contender.has_parent else None
        bank = AdapterBank.for_log(fold.base, fold.log, kinds, seed, parent)
        untrained = Training(pd.DataFrame(), {}, steps=0)
        return Trained(contender, bank, untrained, digest(rung, digest_of(parent)))
    if kinds == choice.contender.config:
        return on_top
    return train_contender(contender, fold, choice.config, seed)


def headline_values(comparing: Ground, trained: Trained) -> pd.DataFrame:
    """The rows of the results table of the first metric at the first k."""
    model, workshop = trained.contender.model, comparing.workshop
    only = headline_of(comparing.held_out)
    lists = recommend(
        only,
        trained.scorer_of(),
        model=model,
        workers=workshop.workers,
        crew=comparing.crew,
        kept=workshop.lists(comparing.users, model, trained.fingerprint),
    )
    return measure(only, lists[""], model=model, run="", seed=0)
