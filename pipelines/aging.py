"""How the adapters of a run age: what is published, trained as it would have been some days ago.

For every age of the settings, and for 0, the run is put back by so many days:

    adapters and their parent   train on       [end - age - days, end - age]
    their epochs                are chosen on  (end - age, end - age + v]
    all that was known          ends at        end - age + v

end is the last moment of the train window, v how long the validation window is, and days as long as
all ages have a window. At each age kinds and rates are those that the run has chosen, and the base
is the run's, which is why no window may end before the base's own does. All are measured on test,
which chooses nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reclora.drift import BASE as BASE_OF_DRIFT
from reclora.drift import Drift, drift_of, of_age, windows_of
from reclora.evaluation import headline_of, measure
from reclora.interactions import Interactions
from reclora.recency import DAY, faded
from reclora.splits import Windows
from reclora.training import TrainingError

from .assessment import Yardstick
from .contenders import POOLED, Contender, Ground, Trained, train_contender
from .held_out import hold_out_some
from .inputs import Inputs
from .kept import Kept
from .learning import Learned, adapt_log
from .progress import step
from .run import RunSettings
from .settings import SettingsError
from .yardstick import BASE, candidates_of


@dataclass(frozen=True)
class Past:
    """What a run would have had so many days ago."""

    age: float
    log: Interactions
    """What adapters train on."""
    validation: Interactions
    seen: Interactions
    """All that came before its validation window."""


def pasts_of(settings: RunSettings, windows: Windows) -> Iterator[Past]:
    """The past of each age, the present first.

    Raises:
        ValueError: the oldest age leaves no window.
    """
    log = adapt_log(replace(settings, half_life=0.0), windows)
    end = int(windows.train.timestamps.max())
    length = int(windows.validation.timestamps.max()) - end
    recent = windows.train.joined(windows.validation)
    for age, (first, last) in windows_of(log, (0.0, *settings.ages)).items():
        window = log.select((log.timestamps >= first) & (log.timestamps <= last))
        is_next = (recent.timestamps > last) & (recent.timestamps <= last + length)
        before = windows.before_validation
        yield Past(
            age,
            # It fades from its own end.
            faded(window, settings.half_life),
            recent.select(is_next),
            before.select(before.timestamps <= last),
        )


def check_ages(settings: RunSettings, inputs: Inputs, only: Sequence[str] = ()) -> None:
    """Refuse before anything is trained what could not be measured at the end.

    Raises:
        SettingsError: some segments alone are trained.
        ValueError: an age is not within the train window, a window has no row, or nobody has
            anything new after one.
    """
    if not settings.ages:
        return
    if only:
        raise SettingsError(
            "ages are of all segments, whose pooled parent ages with them: leave out --only, or "
            "set ages = []"
        )
    windows = inputs.windows
    # The base knows all before the train window: an adapter on it cannot be older than that.
    longest = int(np.ptp(windows.train.timestamps)) / DAY
    if settings.ages[-1] >= longest:
        raise ValueError(
            f"ages must be within the train window, {longest:.4g} days, since the base is of all "
            f"before it; got {settings.ages[-1]:g}: lower ages, or raise split.train"
        )
    candidates = candidates_of(settings, inputs.base.items, windows.train.segment_names)
    for past in pasts_of(settings, windows):
        what = f"the train window of adapters {of_age(past.age)}"
        if not len(past.log):
            raise ValueError(f"ages: {what} has no row: leave that age out")
        hold_out_some(
            f"the days after {what}",
            past.validation,
            past.seen,
            settings.evaluation,
            candidates,
            advice="leave that one out of ages",
        )


def measure_drift(
    settings: RunSettings, inputs: Inputs, learned: Learned, yardstick: Yardstick
) -> Drift | None:
    """Train and rank what is published at every age and with every seed, by all hands.

    What is trained is kept in the run's folder, and what is ranked too.

    Returns:
        None where no ages are asked for, and where a training came to nothing, which is said.

    Raises:
        ValueError: a score is NaN.
        OSError: what is made cannot be kept.
    """
    if not settings.ages:
        return None
    kept = Kept(inputs.folder.measuring, settings.workers, inputs.crew)
    held_out, frozen = yardstick.held_out, inputs.base.scorer()
    lists = kept.recommend(held_out, lambda _: frozen, "test", BASE, 0, "", model=BASE)[""]
    only = headline_of(held_out)
    results = [measure(only, lists, model=BASE_OF_DRIFT, run="", seed=0)]
    rows_of = {}
    for past in pasts_of(settings, inputs.windows):
        ground, model = _ground(learned.ground, past), of_age(past.age)
        rows_of[past.age] = np.diff(past.log.offsets)
        for seed in settings.seeds:
            with step(f"how adapters age: {model}, seed {seed}") as progress:
                try:
                    trained = _trained(settings, learned, ground, seed)
                except TrainingError as error:
                    print(f"how adapters age is left out: {model}: {error}", file=sys.stderr)
                    inputs.folder.event("left out", model=model, seed=seed)
                    return None
                what = "aged", past.age, seed, trained.fingerprint
                lists = kept.recommend(
                    held_out, trained.scorer_of(), *what, model=model, progress=progress
                )[""]
            inputs.folder.event("aged", model=model, seed=seed)
            results.append(measure(only, lists, model=model, run="", seed=seed))
    try:
        return drift_of(pd.concat(results, ignore_index=True), rows_of)
    except ValueError as error:
        # What is live has its report, whatever becomes of this.
        print(f"how adapters age is left out: {error}", file=sys.stderr)
        return None


def _ground(present: Ground, past: Past) -> Ground:
    """The ground of the past: nothing that is live, and a folder of its own, since trainings are
    kept by what they are and not by their rows.
    """
    workshop = present.workshop
    if workshop.folder is not None:
        workshop = replace(workshop, folder=workshop.folder / f"aged-{past.age:.15g}")
    return replace(
        present,
        log=past.log,
        validation=past.validation,
        seen=past.seen,
        workshop=workshop,
        parent=None,
        start={},
    )


def _trained(settings: RunSettings, learned: Learned, ground: Ground, seed: int) -> Trained:
    """The subject, with the settings that were chosen for it, and its parent, where it has one."""
    chosen = learned.choices[-1]
    if chosen.contender.has_parent:
        # One that is live may know what came later; as old as the segments' own there is none.
        pooled = next(
            (choice for choice in learned.choices if choice.contender.model == POOLED),
            replace(chosen, contender=Contender(POOLED, settings.adapter, is_pooled=True)),
        )
        below = train_contender(pooled.contender, ground, pooled.config, seed)
        ground = replace(ground, parent=below.bank.adapters()[0])
    return train_contender(chosen.contender, ground, chosen.config, seed)
