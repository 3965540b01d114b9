"""Choose on validation and train, with the first seed: all that the gate asks, and what goes live.

Test is not looked at here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from reclora.adapters import Adapter
from reclora.interactions import Interactions
from reclora.ladder import smallest_within_error
from reclora.recency import faded
from reclora.splits import Windows

from .contenders import (
    POOLED,
    SUBJECT,
    Choice,
    Ground,
    Trained,
    choose,
    contenders,
    num_folds,
    train_contender,
)
from .inputs import Inputs
from .progress import step
from .run import RunSettings
from .workshop import Workshop
from .yardstick import candidates_of


@dataclass(frozen=True)
class Learned:
    """What was chosen and trained."""

    choices: Sequence[Choice]
    """What validation chose for each contender."""
    trained: Sequence[Trained]
    """Each contender as the first seed trained it."""
    ground: Ground
    """What they trained on; a parent in it was there already."""
    known_until: float
    """The last moment that training and choosing knew, in seconds since 1970."""

    @property
    def subject(self) -> Trained:
        """What is published."""
        return next(t for t in self.trained if t.contender.model == SUBJECT)

    @property
    def given_parent(self) -> Adapter | None:
        """What segments stand on, where it was there already."""
        return self.ground.parent

    @property
    def searches(self) -> pd.DataFrame:
        """model, what is searched, value (on validation), chosen."""
        return pd.concat([choice.tried for choice in self.choices], ignore_index=True)

    @property
    def rungs(self) -> pd.DataFrame | None:
        """What the kinds of the subject were picked by; None where they were given."""
        return self.choices[-1].rungs

    @property
    def parent_helped(self) -> bool:
        """Whether there is a parent that was better than the base on validation, or is live."""
        if self.subject.parent is None or self.given_parent is not None:
            return self.subject.parent is not None
        pooled = next(t for t in self.trained if t.contender.model == POOLED)
        return bool(pooled.helped)


def learn(settings: RunSettings, inputs: Inputs) -> Learned:
    """Choose the settings of every contender, and train it with the first seed.

    Raises:
        ValueError: validation holds nothing new for anybody.
        TrainingError: every segment that trained is quarantined.
        OSError: a checkpoint cannot be written.
    """
    windows, live = inputs.windows, inputs.live
    ground = replace(ground_of(settings, inputs), parent=live.parent, start=live.start)
    folds = (ground, ground.opposite)[: num_folds(settings, windows.validation)]
    choices, trained = list[Choice](), list[Trained]()
    seed = settings.seeds[0]
    asked = contenders(settings, has_parent=live.parent is not None)
    names = Counter(contender.model for contender in asked)
    for contender in asked:
        title = contender.model
        if names[title] > 1:
            title += ", on the pooled adapter" if contender.has_parent else ", on the base"
        if contender.model == SUBJECT:
            contender = live.with_its_kinds(contender, windows.train.segment_names)
        with step(f"choosing rates: {title}") as progress:
            choice = choose(contender, folds, settings, progress)
        choices.append(choice)
        inputs.folder.event("chosen", model=contender.model, config=asdict(choice.config))
        with step(f"training: {title}") as progress:
            trained.append(train_contender(choice.contender, folds[0], choice.config, seed))
            progress(1, 1)
        inputs.folder.event("trained", model=contender.model, seed=seed)
        if contender.model == POOLED and settings.parent != "none":
            parents = [stopped.bank.adapters()[0] for stopped in choice.stopped]
            folds = tuple(replace(f, parent=p) for f, p in zip(folds, parents, strict=True))
    _keep_the_better(choices, trained)
    until = int(windows.validation.timestamps.max()) / 1e6
    # A new ground: what the old one has cached, all segments as one, is needed no more.
    return Learned(choices, trained, replace(ground), until)


def ground_of(settings: RunSettings, inputs: Inputs) -> Ground:
    """What a run trains on and chooses by, where nothing is there to begin with."""
    windows = inputs.windows
    return Ground(
        inputs.base,
        adapt_log(settings, windows),
        windows.validation,
        windows.before_validation,
        settings.evaluation,
        Workshop(inputs.folder.training, settings.chunk_rows, settings.workers),
        inputs.crew,
        candidates=candidates_of(settings, inputs.base.items, windows.train.segment_names),
    )


def adapt_log(settings: RunSettings, windows: Windows) -> Interactions:
    """What adapters train on: the adapt window, or all before validation, faded."""
    if settings.history == "window":
        return faded(windows.train, settings.half_life)
    names = windows.train.segment_names
    whole = windows.before_validation
    if whole.segment_names != names:
        whole = whole.part([whole.segment_names.index(name) for name in names])
    return faded(whole, settings.half_life)


def _keep_the_better(choices: list[Choice], trained: list[Trained]) -> None:
    """Of the subject with and without a parent the one of fewer numbers, unless validation likes
    the other better by more than a standard error: what cannot be told is not paid for.
    """
    own = [at for at, each in enumerate(trained) if each.contender.model == SUBJECT]
    own.sort(key=lambda at: trained[at].num_numbers)
    kept = smallest_within_error({str(at): choices[at].values for at in own})
    for at in sorted(own, reverse=True):
        if str(at) != kept:
            del choices[at], trained[at]
