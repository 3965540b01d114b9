"""What each model of a run costs: the numbers that it stores, the seconds of its training."""

from __future__ import annotations

import numpy as np

from reclora.base import read_provenance
from reclora.interactions import Interactions

from .contenders import POOLED, SUBJECT
from .figures import Effort
from .inputs import Inputs
from .learning import Learned
from .run import RunSettings
from .scratch import SCRATCH, Retrained
from .yardstick import BASE, POPULARITY_ALL, POPULARITY_RECENT


def efforts_of(
    settings: RunSettings, inputs: Inputs, learned: Learned, scratch: Retrained | None
) -> dict[str, Effort]:
    """Model -> its effort, what needs least first.

    A popularity stores a count for every (segment, item). What stands on a parent has the parent's
    numbers and seconds as well; the seconds of one that was there already nobody knows.

    Args:
        scratch: of the first seed, where there is one.
    """
    windows, nothing = inputs.windows, float("nan")
    efforts = {
        POPULARITY_ALL: Effort(1, _pairs(windows.before_test), nothing),
        POPULARITY_RECENT: Effort(1, _pairs(windows.train), nothing),
        BASE: Effort(1, inputs.base.num_numbers, _seconds_of_base(settings)),
    }
    seeds = len(settings.seeds)
    if scratch is not None:
        efforts[SCRATCH] = Effort(seeds, scratch.base.num_numbers, scratch.seconds)
    seconds_of = {t.contender.model: t.training.seconds for t in learned.trained}
    for trained in learned.trained:
        below = 0.0 if trained.parent is None else seconds_of.get(POOLED, nothing)
        seconds = trained.training.seconds + below
        efforts[trained.contender.model] = Effort(seeds, trained.num_numbers, seconds)
    efforts[SUBJECT] = efforts.pop(SUBJECT)
    return efforts


def _pairs(log: Interactions) -> int:
    return len(np.unique(log.segment_rows * len(log.items) + log.item_rows))


def _seconds_of_base(settings: RunSettings) -> float:
    """NaN where it was not pretrained here."""
    folder = settings.base.saved or settings.base_folder
    return float(read_provenance(folder).get("seconds", "nan"))
