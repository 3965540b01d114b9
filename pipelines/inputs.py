"""All that a run knows before anything is trained: the log's windows on the base model, and what is
live.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reclora.base import BaseModel
from reclora.interactions import LogSummary
from reclora.splits import WINDOWS, Windows, warm
from reclora.store import AdapterStore, BaseMismatch, Release, StoreError

from .assessment import Yardstick
from .live import Live
from .orders import Crew
from .prepare import check_same_ids, prepare, windows_of
from .pretrain import check_earlier, pretrain
from .ranks import num_ranks
from .run import RunFolder, RunSettings
from .settings import SettingsError
from .yardstick import files_beside_the_log

_LOOKED_BACK = 20
"""Releases among which a run finds what it has published."""


@dataclass(frozen=True)
class Cut:
    """What is said of the windows as they were cut; the rows themselves need not be kept."""

    table: pd.DataFrame
    """See `Windows.summary`."""
    outside: dict[str, int]
    """What the k-core left out."""

    @classmethod
    def of(cls, summary: LogSummary, whole: Windows) -> Cut:
        """Of the windows before identifiers that the base does not know were dropped."""
        return cls(whole.summary(), _outside_the_core(summary, whole))


@dataclass(frozen=True)
class Inputs:
    """What a run begins with."""

    folder: RunFolder
    crew: Crew | None
    """The ranks that have the base, where there are many; `base` has no row of its tables then."""
    summary: LogSummary
    cut: Cut
    """Before identifiers that the base does not know were dropped."""
    base: BaseModel
    windows: Windows
    unknown: dict[str, int]
    """Window -> rows that were dropped, because the base does not know their user or item."""
    live: Live
    published: Release | None
    """What the run has published, before it was killed."""
    absent: tuple[str, ...]
    """Segments that are live, but have no row in the log; none where some alone are trained."""

    @classmethod
    def read(cls, settings: RunSettings, only: Sequence[str]) -> Inputs:
        """Read and check everything.

        Args:
            only: segments to train; empty for all.

        Raises:
            LogError, SettingsError, BaseError, StoreError, ValueError: what is wrong.
        """
        store = AdapterStore(settings.store_folder)
        summary = prepare(settings)
        base = pretrain(settings, summary.inputs)
        crew = None
        if num_ranks() > 1:
            crew = Crew(settings)
            base = crew.open()
        check_store(settings, base)
        inputs = summary.inputs | files_beside_the_log(settings)
        folder, start, published = _folder_of(settings, base.fingerprint, inputs, store, only)
        whole = windows_of(settings)
        check_earlier(settings, whole)
        _check_known(whole, only)
        # Identifiers that adapters brought are known from now on.
        live = Live.of(store, start, base, settings, only)
        base, windows, unknown = onto_base(live.base, whole, settings)
        if (base.users, base.items) != (live.base.users, live.base.items):
            live = Live.of(store, start, base, settings, only)
        _warn_of_strangers(base, whole, unknown)
        _warn_of_length(settings, base)
        if only:
            windows = windows.of_segments(only)
        known, live_ones = set(whole.train.segment_names), start.segments if start else ()
        absent = () if only else tuple(name for name in live_ones if name not in known)
        cut = Cut.of(summary, whole)
        return cls(folder, crew, summary, cut, base, windows, unknown, live, published, absent)

    @property
    def rows_lost(self) -> dict[str, int]:
        """What was read, and what was dropped on the way to the base."""
        return {"rows read": self.summary.rows_read, "rows kept": self.summary.rows_kept} | {
            f"unknown to the base, {window} window": n for window, n in self.unknown.items() if n
        }


def _check_known(whole: Windows, only: Sequence[str]) -> None:
    """Refuse segments that the log does not have (SettingsError)."""
    if not set(only) <= set(whole.train.segment_names):
        try:
            whole.of_segments(only)
        except KeyError as error:
            raise SettingsError(f"--only: {error.args[0]}") from None


def _warn_of_length(settings: RunSettings, base: BaseModel) -> None:
    """Say where lists are the whole catalogue, whichever model makes them."""
    longest = max(settings.evaluation.ks)
    if longest >= len(base.items):
        print(
            f"evaluation.ks has {longest:,}, and there are {len(base.items):,} items: such lists "
            "hold them all, whatever the model",
            file=sys.stderr,
        )


def _warn_of_strangers(base: BaseModel, whole: Windows, unknown: dict[str, int]) -> None:
    """Say where most of the train window is lost: the base may be of another log."""
    rows, lost = len(whole.train), unknown["train"]
    if 2 * lost > rows:
        users = np.unique(whole.train.user_rows)
        known = int((base.users.rows_of(whole.train.users.ids_of(users)) >= 0).sum())
        print(
            f"the base knows {known:,} of {len(users):,} users of the train window, and "
            f"{lost:,} of its {rows:,} rows are dropped: is it of this log? unknown = 'grow' keeps "
            "them",
            file=sys.stderr,
        )


def _folder_of(
    settings: RunSettings,
    base: str,
    inputs: dict[str, str],
    store: AdapterStore,
    only: Sequence[str],
) -> tuple[RunFolder, Release | None, Release | None]:
    """The run's folder, the release that was live when it began, and the one that it has published.

    A run that has published is found again by the id that stands in its release, whatever others
    have published since.
    """

    run = RunFolder(settings, base, inputs)

    def folder_from(start: Release | None) -> RunFolder:
        release = "" if start is None else store.sha256(start)
        return run.beginning_from({"release": release, "only": sorted(only)})

    newest = list[Release]()
    for number in store.releases()[: -_LOOKED_BACK - 1 : -1]:
        # A damaged release that is not current stops nobody.
        with contextlib.suppress(StoreError):
            newest.append(store.release(number))
    starts = {folder_from(start).id: start for start in (*newest, None)}
    for release in newest:
        if release.run in starts:
            start = starts[release.run]
            return folder_from(start), start, release
    current = store.current()
    return folder_from(current), current, None


def check_store(settings: RunSettings, base: BaseModel) -> None:
    """Refuse at the start what publishing would refuse at the end.

    Raises:
        BaseMismatch: the store holds adapters of another base.
    """
    current = AdapterStore(settings.store_folder).current()
    if current is not None and current.base_fingerprint != base.fingerprint:
        raise BaseMismatch(
            f"{settings.store_folder} holds adapters of base {current.base_fingerprint}, the base "
            f"of this run is {base.fingerprint}: name another `folder`, or remove "
            f"{settings.store_folder}"
        )


def onto_base(
    base: BaseModel, whole: Windows, settings: RunSettings
) -> tuple[BaseModel, Windows, dict[str, int]]:
    """The windows on the base's id maps, grown if asked for, and how many rows each one lost.

    Raises:
        ValueError: ids of the log and of the base are of two types, or a window has no row left.
    """
    users, items = base.users, base.items
    check_same_ids("user_id", whole.train.users, users)
    check_same_ids("item_id", whole.train.items, items)
    if settings.unknown == "grow":
        users = users.extended(whole.train.users.ids_of(np.unique(whole.train.user_rows)))
        items = items.extended(whole.train.items.ids_of(np.unique(whole.train.item_rows)))
    moved = {name: getattr(whole, name).onto(users, items) for name in WINDOWS}
    lost = {name: counts.rows for name, (_, counts) in moved.items()}
    for name in ("train", "validation", "test"):
        if lost[name] == len(getattr(whole, name)):
            raise ValueError(
                f"the base model knows no user with an item of the {name} window: all "
                f"{lost[name]:,} rows would be dropped. Take a base of this log's identifiers, or "
                f'set unknown = "grow" for those of the train window'
            )
    return base.grown(users, items), Windows(**{n: log for n, (log, _) in moved.items()}), lost


def data_quality(
    summary: LogSummary, cut: Cut, lost: dict[str, int], yardstick: Yardstick
) -> dict[str, int]:
    """What was read and what was dropped on the way, in rows unless it says users."""
    held_out = yardstick.held_out
    quarantined = {f"quarantined: {reason}": n for reason, n in summary.quarantined.items()}
    unknown = {f"unknown to the base, {window} window": n for window, n in lost.items() if n}
    return {
        "rows read": summary.rows_read,
        **(quarantined or {"quarantined": 0}),
        "duplicates merged": summary.duplicates,
        "below the least label": summary.below_min_label,
        "rows kept": summary.rows_kept,
        **cut.outside,
        **unknown,
        **(
            {"labelled rows unknown to the base": yardstick.labelled_unknown}
            if yardstick.labelled is not None
            else {}
        ),
        "test users measured": held_out.num_users,
        "test users with nothing new to find": int(
            held_out.counts()["users_without_relevant"].sum()
        ),
    }


def _outside_the_core(summary: LogSummary, whole: Windows) -> dict[str, int]:
    """What the k-core left out; nothing where the log was taken whole."""
    logs = [getattr(whole, name) for name in WINDOWS]
    rows = summary.rows_kept - sum(map(len, logs))
    users, items = (np.any(masks, axis=0) for masks in zip(*map(warm, logs), strict=True))
    if not rows:
        return {}
    return {
        "of those outside the k-core": rows,
        "users outside the k-core": summary.users - int(users.sum()),
        "items outside the k-core": summary.items - int(items.sum()),
    }
