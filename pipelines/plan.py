"""What a run would do, and what it needs: checked before hours of training, not after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.interactions import Interactions
from reclora.splits import Windows
from reclora.store import AdapterStore
from reclora.training import train

from .aging import check_ages
from .alone import alone_in
from .contenders import SUBJECT, contenders, grid, num_folds, rungs_of
from .inputs import Inputs
from .learning import adapt_log
from .ranks import num_ranks
from .run import RunFolder, RunSettings
from .settings import SettingsError
from .space import check_space
from .workshop import chunks_of


@dataclass(frozen=True)
class Planned:
    """What a run would do."""

    run: str
    """Its id."""
    reused: bool
    """It is complete already, and would be reused: nothing would be trained or written."""
    segments: int
    rows: int
    """Of the train window."""
    begin_with_current: int
    """Segments that begin with their adapter of the current release."""
    chunks: int
    models: tuple[str, ...]
    """What is trained."""
    trainings: int
    current: int | None
    """The current release."""
    quality: dict[str, int]
    bytes_needed: int


def plan(settings: RunSettings, only: Sequence[str] = ()) -> Planned:
    """Do all that comes before training, and say what would be; for errors see `retrain`."""
    if num_ranks() > 1:
        raise SettingsError(
            f"a plan is made in one process, and here are {num_ranks()} ranks: start --dry-run "
            "without torchrun"
        )
    with alone_in(settings.folder):
        check_writable(settings)
        inputs = Inputs.read(settings, only)
    train_log, live = adapt_log(settings, inputs.windows), inputs.live
    planned = Planned(
        run=inputs.folder.id,
        reused=is_done(settings, inputs.folder),
        segments=train_log.num_segments,
        rows=len(train_log),
        begin_with_current=len(live.start),
        chunks=len(chunks_of(train_log, settings.chunk_rows)),
        models=(),
        trainings=0,
        current=None if live.release is None else live.release.number,
        quality=inputs.rows_lost,
        bytes_needed=0,
    )
    if planned.reused:
        return planned
    check_adapter(settings, inputs.base, train_log)
    check_ages(settings, inputs, only)
    needed = bytes_needed(settings, inputs.windows)
    check_space(settings.runs, needed)
    trained = contenders(settings, has_parent=live.parent is not None)
    searched = sum(
        len(grid(settings.training, settings.search, c.config))
        for c in trained
        if isinstance(c.config, AdapterConfig)
    )
    models = tuple(dict.fromkeys(c.model for c in trained))
    searched += len(rungs_of(settings)) * sum(c.model == SUBJECT for c in trained)
    searched *= num_folds(settings, inputs.windows.validation)
    trainings = searched + len(models) * len(settings.seeds)
    if settings.ages:
        # Each age and 0; a parent is trained anew where `auto` chooses one.
        each = 1 if settings.parent == "none" else 2
        trainings += each * (1 + len(settings.ages)) * len(settings.seeds)
    return replace(planned, models=models, trainings=trainings, bytes_needed=needed)


def is_done(settings: RunSettings, folder: RunFolder) -> bool:
    """Whether the run is complete, and the store has what it published: it may have been for
    another store.
    """
    if not folder.is_complete:
        return False
    number, store = folder.summary()["release"], AdapterStore(settings.store_folder)
    return number is None or (number in store.releases() and store.release(number).run == folder.id)


def check_writable(settings: RunSettings) -> None:
    """Refuse at the start what could not be written at the end (OSError); `alone_in` has written to
    the folder of a store that is yet to be made.
    """
    if settings.store_folder.exists():
        AdapterStore(settings.store_folder).check_writable()


def check_adapter(settings: RunSettings, base: BaseModel, log: Interactions) -> None:
    """Train on nothing: a config that does not fit is refused before hours of training, not after.

    Raises:
        ValueError: the rank is above the base's embedding_dim, there is no delta to train, or no
            row factor to drop from.
    """
    nothing = log.select(np.zeros(len(log), bool))
    for kinds in rungs_of(settings).values():
        AdapterBank.for_log(base, nothing, kinds)
    train(
        AdapterBank.for_log(base, nothing, settings.adapter), nothing, settings.training, judge=None
    )


def bytes_needed(settings: RunSettings, windows: Windows) -> int:
    """What a run writes at the most, about: numbers, the best of them and the optimizer's, of one
    model at a time; the pack; of every model and seed its lists and what was measured of them; and
    what the first of many ranks sends the others.
    """
    width = (
        settings.adapter.rank + 1
        if settings.compared == ()
        else settings.base.factorisation.embedding_dim
    )
    aged = 2 * (1 + len(settings.ages)) if settings.ages else 0
    models = (len(contenders(settings)) + aged) * len(settings.seeds) + 4
    lists = (len(windows.validation) + len(windows.test)) * max(settings.evaluation.ks) * 4
    rows = len(windows.train) + (len(windows.pretrain) if settings.history == "all" else 0)
    sent = 0
    if num_ranks() > 1:
        # To the ranks: rows, by segment and as one; what users had before, and what may be ranked
        # for them, of every part of them; the adapters of a model.
        before, log = len(windows.before_test), windows.train
        masks = 0 if settings.evaluation.candidates == "catalogue" else log.num_segments
        sent = 2 * 32 * (rows + before) + 6 * (8 * before + masks * len(log.items) // 8)
        sent += rows * width * 4
    return (2 + aged) * rows * width * 4 * 4 + models * 3 * lists + sent + 2**26
