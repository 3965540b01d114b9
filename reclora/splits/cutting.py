"""Cutting a log into its windows: by time, by each user's own time, or by each user's last rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from reclora.interactions import Interactions
from reclora.splits.windows import WINDOWS, SplitBy, Windows, check_rows


@dataclass(frozen=True)
class SplitConfig:
    """Where the cuts fall.

    Raises:
        ValueError: a share that is not positive, shares that do not sum to 1, or a count below 1.
    """

    by: SplitBy = "global_time"
    """`global_time`: three moments cut the whole log. `user_time`: each user's own history is cut.
    `leave_last`: each user's last rows are held out.
    """
    pretrain: float = 0.70
    """Share of the interactions that the base model is made from."""
    train: float = 0.15
    """Share that adapters train on: the adapt window."""
    validation: float = 0.05
    """Share that models are chosen on; `leave_last` does without."""
    test: float = 0.10
    """Share that results are reported on; `leave_last` does without."""
    leave_last: int = 1
    """With `leave_last`: each user's last rows that test, and as many before them that choose."""
    k_core: int = 0
    """Drop users and items with fewer interactions than this, again and again, before the cut; 0
    keeps all. See `k_core`: it is what papers do, and it looks into the future."""

    def __post_init__(self) -> None:
        if self.by not in get_args(SplitBy):
            raise ValueError(
                f"split by must be one of {', '.join(get_args(SplitBy))}, got {self.by!r}"
            )
        shares = [getattr(self, window) for window in WINDOWS]
        if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"{', '.join(WINDOWS)} must be positive and sum to 1, got {shares}")
        if self.leave_last < 1:
            raise ValueError(f"leave_last must be at least 1, got {self.leave_last}")
        if self.k_core < 0:
            raise ValueError(f"k_core must be 0 or more, got {self.k_core}")


def split(log: Interactions, config: SplitConfig) -> Windows:
    """Cut a log into its windows.

    With `global_time` and shares .4, .2, .2, .2, rows of one log at times 1 to 5 fall so:

        time      1         2         3      4           5
        window    pretrain  pretrain  train  validation  test

    Rows of one moment stay together, in the window where the first of them falls, so no moment is
    in two windows. With `user_time` each user's own rows are cut (ordered by time, then item row):
    the p-th of a user's n rows, counted from 0, falls where p / n falls among the shares, and rows
    of one moment may be cut apart; only those of one item too, in several segments, are one row
    here. With the same shares:

        user a    1 pretrain, 2 pretrain, 3 train, 4 validation, 5 test
        user b    7 pretrain, 9 train

    Then a user's own future never trains that user, but other users' later interactions may: it is
    for logs whose users come and go at different times. With `leave_last` each user's last row,
    of all segments, tests and the one before it validates (or `leave_last` of each); what is left
    is cut by the user's own time in the ratio of pretrain to train. The order is that of
    `user_time`, so rows of one moment may be cut apart. A user of 2 * leave_last rows or fewer is
    not held out at all:

        user a    1 pretrain, 2 pretrain, 3 train, 4 validation, 5 test
        user b    7 pretrain, 9 pretrain

    Raises:
        ValueError: a window is left without rows, or the k-core is empty.
    """
    if config.k_core:
        log = k_core(log, config.k_core)
    if config.by == "leave_last":
        windows = Windows(*_leave_last(log, config))
        advice = (
            f"are too few for a user for leave_last = {config.leave_last}, or for these shares of "
            "what is left; change one of them"
        )
    else:
        windows = Windows(*cut(log, [getattr(config, window) for window in WINDOWS], config.by))
        advice = (
            "are too few for these shares, or too many share one moment; change the shares of the "
            "split"
        )
    check_rows(windows, advice)
    return windows


def cut(log: Interactions, shares: Sequence[float], by: SplitBy) -> list[Interactions]:
    """Cut a log into consecutive parts of these shares, which sum to 1; a part may be empty.

    By the moments of the whole log with `global_time`, else by each user's own time.
    """
    positions = _global_positions(log) if by == "global_time" else _user_positions(log)
    # A share like .7 + .15 must not miss its row by the last bit of a float.
    ends = np.cumsum(shares)[:-1] - 1e-9
    part = np.searchsorted(ends, positions, side="right")
    return [log.select(part == code) for code in range(len(shares))]


def k_core(log: Interactions, k: int) -> Interactions:
    """The rows that are left when users and items with fewer than k interactions are dropped, again
    and again, until all have k; id maps stay.

    Counted over the whole log it selects on the future: a user is kept by what they will do. So
    figures on a core flatter every model, and compare with those on the same core only.

    Raises:
        ValueError: nothing is left.

    Source: Seidman, "Network structure and minimum degree", Social Networks 5, 1983, defines the
    core of a graph; here users and items are its nodes, and every interaction is an edge.
    """
    kept = np.arange(len(log))
    while True:
        few = [
            np.bincount(rows[kept], minlength=size)[rows[kept]] < k
            for rows, size in ((log.user_rows, len(log.users)), (log.item_rows, len(log.items)))
        ]
        if not (few[0] | few[1]).any():
            break
        kept = kept[~(few[0] | few[1])]
    if not len(kept) and len(log):
        raise ValueError(
            f"the {k}-core of {log!r} is empty: nobody has {k} interactions with items that have "
            f"{k}; take a smaller k_core"
        )
    return log.select(kept)


def _leave_last(log: Interactions, config: SplitConfig) -> list[Interactions]:
    """Each user's last rows are test, those before them validation, the rest pretrain and train."""
    places, sizes = _places(log)
    from_end = sizes - 1 - places
    is_long = sizes > 2 * config.leave_last
    test = is_long & (from_end < config.leave_last)
    validation = is_long & ~test & (from_end < 2 * config.leave_last)
    rest = log.select(~test & ~validation)
    whole = config.pretrain + config.train
    before = cut(rest, (config.pretrain / whole, config.train / whole), "user_time")
    return [*before, log.select(validation), log.select(test)]


def _global_positions(log: Interactions) -> NDArray[np.float64]:
    """Share of the log that lies strictly before each row's moment."""
    order = np.sort(log.timestamps)
    return np.searchsorted(order, log.timestamps, side="left") / len(log)


def _user_positions(log: Interactions) -> NDArray[np.float64]:
    """Share of the user's own rows that come before each row."""
    places, sizes = _places(log)
    return places / sizes


def _places(log: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the user's own events come before each row, and how many there are.

    Rows of one user, item and moment are one event, in however many segments: no cut parts them.
    """
    order = np.lexsort((log.item_rows, log.timestamps, log.user_rows))
    columns = [column[order] for column in (log.user_rows, log.timestamps, log.item_rows)]
    is_new = np.ones(len(log), bool)
    is_new[1:] = np.any([np.diff(column) != 0 for column in columns], axis=0)
    event = is_new.cumsum() - 1
    first, last = (
        np.searchsorted(columns[0], columns[0], side="left"),
        np.searchsorted(columns[0], columns[0], side="right") - 1,
    )
    places, sizes = np.empty((2, len(log)), np.int64)
    places[order] = event - event[first]
    sizes[order] = event[last] - event[first] + 1
    return places, sizes
