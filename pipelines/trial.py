"""One setting of a run, trained on a sample of its segments and judged on validation.

A trial chooses as a run does: epochs by one half of the validation users, everything else by the
other half; where users are few, the other way round too. The test window is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.early_stopping import Judge
from reclora.evaluation import HeldOut
from reclora.ladder import smallest_within_error
from reclora.splits import Windows

from .contenders import (
    POOLED,
    SEARCHED,
    SUBJECT,
    Choice,
    Ground,
    choose,
    contenders,
    num_folds,
    train_contender,
)
from .inputs import onto_base
from .learning import adapt_log
from .prepare import prepare, windows_of
from .pretrain import check_earlier, pretrain
from .progress import Step
from .run import RunSettings
from .workshop import Workshop
from .yardstick import candidates_of, files_beside_the_log

Tell = Callable[[int, float], None]
"""Told (epoch, the score of its best epochs so far); 0 is before training. What it raises ends the
training."""


def unseen(done: int, total: int) -> None:
    """Nobody looks at the progress within a trial."""


@dataclass(frozen=True)
class Judged:
    """What a setting is worth to the users who judge it."""

    values: pd.DataFrame
    """Rows of the results table: the headline of each user of each segment."""
    chosen: dict[str, Any]
    """By dotted key: what [search] and `parent = "auto"` chose."""

    @property
    def mean(self) -> float:
        """The headline metric, every user counting the same."""
        return float(self.values["value"].mean())


@dataclass(frozen=True)
class Material:
    """What every trial trains on and is judged by."""

    base: BaseModel
    windows: Windows
    """Of the sampled segments; the test window is empty."""
    segments: int
    """All that could have been sampled."""
    inputs: Mapping[str, str]
    """File -> sha256."""
    _folds: dict[object, tuple[Ground, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, settings: RunSettings, segments: int) -> Material:
        """Lay out the log, make the base and draw the segments; what is there is reused.

        Args:
            segments: so many are drawn, see `sampled`; all of them where there are no more.

        Raises:
            LogError, SettingsError, BaseError, ValueError: what is wrong.
        """
        summary = prepare(settings)
        base = pretrain(settings, summary.inputs)
        whole = windows_of(settings)
        check_earlier(settings, whole)
        base, windows, _ = onto_base(base, whole, settings)
        windows = windows.without_test()
        names, trained = windows.train.segment_names, np.diff(windows.train.offsets)
        judging = np.diff(windows.validation.offsets)
        sizes = {
            name: int(rows)
            for name, rows, judge in zip(names, trained, judging, strict=True)
            if rows and judge
        }
        if not sizes:
            raise ValueError(
                "no segment has a row in the train and in the validation window: give a longer "
                "log, or other shares in [split]"
            )
        windows = windows.of_segments(sampled(sizes, segments))
        inputs = summary.inputs | files_beside_the_log(settings)
        return cls(base, windows, len(sizes), inputs)

    def folds(self, settings: RunSettings) -> tuple[Ground, ...]:
        """What is trained on, as half of the users stop it, and, of few users, as the other does.

        Raises:
            ValueError: validation holds nothing new for anybody.
        """
        which = settings.history, settings.half_life
        if which not in self._folds:
            names, validation = self.windows.train.segment_names, self.windows.validation
            log = adapt_log(settings, self.windows)
            ground = Ground(
                self.base,
                log,
                validation,
                self.windows.before_validation,
                settings.evaluation,
                # All segments in one pass.
                Workshop(chunk_rows=max(len(log), 1)),
                candidates=candidates_of(settings, self.base.items, names),
            )
            # Whatever a trial may choose: all are judged by the same users.
            folds = num_folds(replace(settings, parent="auto"), validation)
            # One at a time: each holds copies of the log.
            self._folds.clear()
            self._folds[which] = (ground, ground.opposite)[:folds]
        return self._folds[which]

    def judge(
        self, settings: RunSettings, tell: Tell | None = None, progress: Step = unseen
    ) -> Judged:
        """Train the segments' adapters, and what they stand on, as the settings say; start fresh.

        Args:
            tell: of the first training of the segments' own adapters.
            progress: told of each model (done, of so many trainings).

        Raises:
            TrainingError: every segment that trained is quarantined.
            ValueError: adapters do not fit the base, or nobody has anything new in validation.
        """
        settings = replace(settings, compared=())
        folds, own = self.folds(settings), list[tuple[Choice, tuple[Ground, ...]]]()
        for contender in contenders(settings):
            if contender.model != SUBJECT:
                choice = choose(contender, folds, settings, progress)
            else:
                grounds = folds if tell is None or own else (_told(folds[0], tell), *folds[1:])
                choice = choose(contender, grounds, settings, progress)
                own.append((choice, folds))
            if contender.model == POOLED:
                parents = [stopped.bank.adapters()[0] for stopped in choice.stopped]
                folds = tuple(replace(f, parent=p) for f, p in zip(folds, parents, strict=True))
        choice = own[0][0] if len(own) == 1 else _better(own, settings)
        chosen = {f"training.{name}": getattr(choice.config, name) for name in SEARCHED}
        parent = "pooled" if choice.contender.has_parent else "none"
        return Judged(choice.values, chosen | {"parent": parent})


def sampled(sizes: Mapping[str, int], num: int) -> list[str]:
    """Segments of every size: of each power of ten of rows in proportion to how many there are, but
    one at least, evenly from the smallest to the largest.

    Args:
        sizes: segment -> rows, above 0.
        num: how many, about; all where there are no more.

    Returns:
        Their names; the same for the same sizes.
    """
    if len(sizes) <= num:
        return list(sizes)
    classes: dict[int, list[str]] = {}
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        classes.setdefault(len(str(sizes[name])), []).append(name)
    drawn = []
    for names in classes.values():
        share = max(1, round(num * len(names) / len(sizes)))
        drawn += [names[int((at + 0.5) * len(names) / share)] for at in range(share)]
    return drawn


def _better(own: list[tuple[Choice, tuple[Ground, ...]]], settings: RunSettings) -> Choice:
    """Of adapters with and without a parent what a run keeps: those of fewer numbers, unless the
    others are better by more than a standard error.
    """
    trained = [
        train_contender(c.contender, folds[0], c.config, settings.seeds[0]) for c, folds in own
    ]
    order = sorted(range(len(own)), key=lambda at: trained[at].num_numbers)
    kept = smallest_within_error({str(at): own[at][0].values for at in order})
    return own[int(kept)][0]


def _told(ground: Ground, tell: Tell) -> Ground:
    """The same ground, which tells of the first training on it."""
    watched = _Watched(ground.held_out, tell)
    told = replace(ground, workshop=replace(ground.workshop, watch=watched.on))
    # It is the same, and takes a while.
    told.__dict__["held_out"] = ground.held_out
    return told


class _Watched:
    """A judge that tells what it said: the mean over users of each segment's best score so far."""

    def __init__(self, held_out: HeldOut, tell: Tell) -> None:
        self._users = {s.name: s.num_users for s in held_out.segments}
        self._tell = tell
        self._best: dict[str, float] = {}
        self._epoch = -1
        self._is_over = False

    def on(self, judge: Judge) -> Judge:
        """The judge of a training; the second is not told of."""
        if self._is_over:
            return judge
        self._is_over = True

        def watched(bank: AdapterBank, segments: NDArray[np.int64]) -> NDArray[np.float64]:
            scores = judge(bank, segments)
            for code, score in zip(segments.tolist(), scores.tolist(), strict=True):
                name = bank.segment_names[code]
                if np.isfinite(score):
                    self._best[name] = max(score, self._best.get(name, -np.inf))
            self._epoch += 1
            if self._best:
                users = [self._users[name] for name in self._best]
                mean = np.average(list(self._best.values()), weights=users)
                self._tell(self._epoch, float(mean))
            return scores

        return watched
