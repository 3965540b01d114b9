"""What the models of a run are held against on test, and the models that need no training."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from torch import Tensor

from reclora.base import BaseModel
from reclora.evaluation import (
    ForeignError,
    LabelledRows,
    ScorerOf,
    read_labelled,
    recommend,
    slices_of,
)
from reclora.evaluation.plain import EVERYBODY
from reclora.files import sha256_of
from reclora.interactions import IdMap
from reclora.popularity import popularity
from reclora.splits import LeakageError, Windows

from .assessment import Yardstick
from .candidate_items import CandidateItems
from .held_out import hold_out_some
from .run import RunSettings

BASE = "frozen base"
POPULARITY_ALL, POPULARITY_RECENT = "segment popularity, all time", "segment popularity, recent"


def yardstick_of(
    settings: RunSettings,
    base: BaseModel,
    windows: Windows,
    run: str,
    current: ScorerOf | None = None,
) -> Yardstick:
    """The test window, what items are like, what is current, and labelled rows.

    Args:
        current: the scorers of the current release: lists have an overlap with its lists.

    Raises:
        ValueError: the test window holds nothing new for anybody; a file of candidates or labels is
            not what it should be.
        LeakageError: labelled rows are earlier than the test window.
    """
    seen = windows.before_test
    given = candidates_of(settings, base.items, windows.test.segment_names)
    held_out = hold_out_some("the test window", windows.test, seen, settings.evaluation, given)
    lists = None
    if current is not None:
        lists = recommend(held_out, current, model="the current release")[""]
    labelled, unknown = _labelled(settings, base, windows) if settings.labelled else (None, 0)
    return Yardstick(
        run=run,
        held_out=held_out,
        users=base.users,
        features_NF=base.item_table.materialised().numpy() if base.item_table.is_whole else None,
        current=lists,
        labelled=labelled,
        labelled_unknown=unknown,
    )


def sliced(yardstick: Yardstick, windows: Windows) -> Yardstick:
    """The same with the slices of the test window, which are as large as the window itself."""
    slices = slices_of(yardstick.held_out, windows.test, windows.before_test)
    return replace(yardstick, slices=slices)


def files_beside_the_log(settings: RunSettings) -> dict[str, str]:
    """The sha256 of what decides a run's numbers and is not in its log: candidates and labels.

    Raises:
        OSError: a file is not there.
    """
    files = [("candidates", settings.candidates)] if settings.candidates else []
    files += [("labelled", path) for path in settings.labelled]
    return {f"{what}: {path}": sha256_of(path) for what, path in files}


def split_notes(settings: RunSettings) -> list[str]:
    """What a reader must know of how the log was cut."""
    notes = []
    if settings.split.by != "global_time":
        notes.append(
            "The split is by each user's own time: a user's future never trains that user, but "
            "other users' later interactions may have."
        )
        if settings.labelled:
            notes.append(
                "So it cannot be checked that no model was trained on the labelled rows: give rows "
                "that are in no window before test."
            )
    if settings.split.k_core:
        notes.append(
            f"Only the {settings.split.k_core}-core of the log was used, counted over the whole of "
            "it: users and items were kept by what comes later, which flatters every model."
        )
    return notes


def untrained(base: BaseModel, windows: Windows) -> dict[str, ScorerOf]:
    """What needs no training: both popularities and the frozen base."""
    frozen = base.scorer()
    return {
        POPULARITY_ALL: popularity(windows.before_test),
        POPULARITY_RECENT: popularity(windows.train),
        BASE: lambda segment: frozen,
    }


def candidates_of(
    settings: RunSettings, items: IdMap, segments: tuple[str, ...]
) -> dict[str, Tensor] | None:
    """The items that are ranked for each segment, where the settings name a file of them.

    Raises:
        ForeignError: as `CandidateItems.read`.
    """
    if settings.candidates is None:
        return None
    found = CandidateItems.read(settings.candidates, items, segments)
    masks = ((segment, found.mask(segment)) for segment in segments)
    return {segment: mask_N for segment, mask_N in masks if mask_N is not None}


def _labelled(settings: RunSettings, base: BaseModel, windows: Windows) -> tuple[LabelledRows, int]:
    rows, unknown, first = read_labelled(
        settings.labelled, base.users, base.items, settings.log.contract
    )
    rows = _in_segments(settings, rows, windows.test.segment_names)
    begin = int(windows.test.timestamps.min())
    if settings.split.by == "global_time" and first is not None and first < begin:
        moments = [datetime.fromtimestamp(moment / 1e6, UTC) for moment in (first, begin)]
        raise LeakageError(
            f"{settings.labelled[0]}: labelled rows begin at {moments[0]}, before the test window "
            f"does, at {moments[1]}: models may have been trained on them; keep those of the test "
            "window"
        )
    return rows, unknown


def _in_segments(
    settings: RunSettings, rows: LabelledRows, segments: tuple[str, ...]
) -> LabelledRows:
    """Labelled rows whose segments models know; those without one are of the log's only one."""
    found = [str(name) for name in np.unique(rows.segments)]
    if found == [EVERYBODY] and len(segments) == 1:
        return replace(rows, segments=np.full(len(rows.labels), segments[0]))
    unknown = [name for name in found if name not in segments]
    if unknown:
        raise ForeignError(
            f"{settings.labelled[0]}: labelled rows are of the segments {unknown[:5]}, which the "
            f"log has not (a file without a column segment is of {EVERYBODY!r}); it has "
            f"{list(segments)[:5]}"
        )
    return rows
