"""Log -> pretrain, train, validation and test windows.

The base model is pretrained on the first window; adapters train on the second, are chosen on the
third and reported on the fourth. Nothing of a later window may come before what an earlier one
holds: `check_leakage` names the rows that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.interactions import IdMap, Interactions

SplitBy = Literal["global_time", "user_time", "leave_last"]
WINDOWS = ("pretrain", "train", "validation", "test")
NAMED = 5
"""How many rows an error about leakage lists."""


class LeakageError(ValueError):
    """Rows of a later window that an earlier one should not come after; the message names them."""


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


@dataclass(frozen=True)
class Windows:
    """The four windows of one log, on its id maps and segments."""

    pretrain: Interactions
    train: Interactions
    validation: Interactions
    test: Interactions

    @classmethod
    def of(
        cls,
        pretrain: Interactions,
        train: Interactions,
        validation: Interactions,
        test: Interactions,
        *,
        by: SplitBy = "global_time",
    ) -> Windows:
        """Windows from four logs made elsewhere, brought onto common id maps and segments.

            files     a.parquet  b.parquet  c.parquet   d.parquet
            window    pretrain   train      validation  test

        Args:
            by: what later means: `global_time` moments; otherwise each user's own time.

        Raises:
            LeakageError: a row is in two windows, or comes before the end of an earlier one.
            ValueError: a window has no rows; identifiers are strings here and integers there.
        """
        logs = [pretrain, train, validation, test]
        for name, log in zip(WINDOWS, logs, strict=True):
            if log.attributes.keys() != pretrain.attributes.keys():
                raise ValueError(
                    f"the {name} window has the attributes {[*log.attributes]}, the pretrain "
                    f"window {[*pretrain.attributes]}; give all windows the same"
                )
        users, items = logs[0].users, logs[0].items
        for log in logs[1:]:
            users, items = users.extended(log.users.ids), items.extended(log.items.ids)
        names = sorted({name for log in logs for name in log.segment_names})
        windows = cls(*(_onto(log, users, items, names) for log in logs))
        _check_rows(windows)
        check_leakage(windows, by)
        return windows

    def summary(self) -> pd.DataFrame:
        """One row a window: window, first, last (UTC), rows, users, items, and of those the cold:
        users and items that are in no window before it (0 for the first).
        """
        users = np.zeros(len(self.pretrain.users), bool)
        items = np.zeros(len(self.pretrain.items), bool)
        rows: list[dict[str, object]] = []
        for name in WINDOWS:
            log = getattr(self, name)
            own_users, own_items = warm(log)
            cold = [
                int(np.count_nonzero(own & ~before)) if rows else 0
                for own, before in ((own_users, users), (own_items, items))
            ]
            rows.append(_describe(name, log, own_users, own_items, cold))
            users, items = users | own_users, items | own_items
        return pd.DataFrame(rows)


def warm(log: Interactions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which users and which items of its id maps a log has a row of; the others are cold to it."""
    users, items = np.zeros(len(log.users), bool), np.zeros(len(log.items), bool)
    users[log.user_rows], items[log.item_rows] = True, True
    return users, items


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
    for logs whose users come and go at different times. With `leave_last` each user's last row (or
    so many) tests and the one before it validates; what is left is cut by the user's own time in
    the ratio of pretrain to train. A user who has no more rows than those is not held out at all:

        user a    1 pretrain, 2 pretrain, 3 train, 4 validation, 5 test
        user b    7 pretrain, 9 pretrain

    Raises:
        ValueError: a window is left without rows, or the k-core is empty.
    """
    if config.k_core:
        log = k_core(log, config.k_core)
    if config.by == "leave_last":
        windows = Windows(*_leave_last(log, config))
    else:
        windows = Windows(*cut(log, [getattr(config, window) for window in WINDOWS], config.by))
    _check_rows(windows)
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

    Source: Batagelj and Zaversnik, "An O(m) algorithm for cores decomposition of networks", 2003.
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


def check_leakage(windows: Windows, by: SplitBy) -> None:
    """Refuse windows of which a later one has rows that an earlier one knows or comes after.

    Args:
        by: with `global_time` no row may come before the last moment of an earlier window, else
            none before the same user's last moment there.

    Raises:
        LeakageError: the first such rows by window, segment, user, item and time, and how many.
    """
    for later in range(1, len(WINDOWS)):
        for name in WINDOWS[:later]:
            refuse_leaks(
                getattr(windows, WINDOWS[later]),
                f"{WINDOWS[later]} window's",
                getattr(windows, name),
                f"{name} window's",
                by,
            )


def refuse_leaks(log: Interactions, name: str, before: Interactions, its: str, by: SplitBy) -> None:
    """Refuse a log that has rows of one that comes before it, or earlier ones; as `check_leakage`.

    Args:
        name, its: whose rows those of the two logs are, in words.

    Raises:
        LeakageError: the first such rows by segment, user, item and time, and how many.
    """
    _refuse(log, name, _twice(log, before), f"are among the {its} rows too")
    last = _last_moments(before, by)[log.user_rows]
    end = "the last" if by == "global_time" else "their user's last"
    _refuse(log, name, log.timestamps < last, f"are earlier than {end} of the {its} rows")


def _check_rows(windows: Windows) -> None:
    for name in WINDOWS:
        if len(getattr(windows, name)) == 0:
            rows = sum(len(getattr(windows, window)) for window in WINDOWS)
            raise ValueError(
                f"the {name} window has no rows: {rows} interactions are too few for these "
                f"shares, or too many share one moment; change the shares of the split"
            )


def _last_moments(log: Interactions, by: SplitBy) -> NDArray[np.int64]:
    """The last moment of a log, for each user; of all users, or the user's own."""
    last = np.full(len(log.users), np.iinfo(np.int64).min)
    if by == "global_time":
        last[:] = log.timestamps.max(initial=last[0] if len(last) else 0)
    else:
        np.maximum.at(last, log.user_rows, log.timestamps)
    return last


def _twice(log: Interactions, before: Interactions) -> NDArray[np.bool_]:
    """Which rows of a log are in another: same user, item and time, in whichever segment."""
    columns = ["user", "item", "time"]
    frames = [
        pd.DataFrame(
            dict(
                zip(
                    columns,
                    (each.user_rows, each.item_rows, each.timestamps),
                    strict=True,
                )
            )
        )
        for each in (log, before)
    ]
    merged = frames[0].merge(frames[1].drop_duplicates(), how="left", indicator=True)
    return (merged["_merge"] == "both").to_numpy()


def _refuse(log: Interactions, name: str, leaks: NDArray[np.bool_], what: str) -> None:
    rows = np.flatnonzero(leaks)
    if not rows.size:
        return
    first = rows[:NAMED]
    times = pd.to_datetime(log.timestamps[first], unit="us", utc=True)
    lines = [
        f"  segment {log.segment_names[segment]!r}, user_id {user!r}, item_id {item!r}, {time}"
        for segment, user, item, time in zip(
            log.segment_rows[first],
            log.users.ids_of(log.user_rows[first]).to_pylist(),
            log.items.ids_of(log.item_rows[first]).to_pylist(),
            times,
            strict=True,
        )
    ]
    more = [f"  and {rows.size - NAMED:,} more"] if rows.size > NAMED else []
    raise LeakageError(
        "\n".join(
            [
                f"{rows.size:,} of the {len(log):,} {name} rows {what}: what is measured on them "
                "was trained on; take them out, or cut elsewhere:",
                *lines,
                *more,
            ]
        )
    )


def _onto(log: Interactions, users: IdMap, items: IdMap, names: Sequence[str]) -> Interactions:
    """A log on maps that know all its ids, and with further segments."""
    segments = np.array([names.index(name) for name in log.segment_names], np.int64)
    return Interactions.from_arrays(
        users=users,
        items=items,
        segment_names=names,
        segments=segments[log.segment_rows],
        user_rows=users.rows_of(log.users.ids)[log.user_rows],
        item_rows=items.rows_of(log.items.ids)[log.item_rows],
        timestamps=log.timestamps,
        weights=log.weights,
        attributes=log.attributes,
    )


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


def _describe(
    name: str,
    log: Interactions,
    users: NDArray[np.bool_],
    items: NDArray[np.bool_],
    cold: Sequence[int],
) -> dict[str, object]:
    ends = [log.timestamps.min(), log.timestamps.max()] if len(log) else []
    moments = pd.to_datetime(ends, unit="us", utc=True)
    return {
        "window": name,
        "first": moments[0] if len(log) else pd.NaT,
        "last": moments[1] if len(log) else pd.NaT,
        "rows": len(log),
        "users": np.count_nonzero(users),
        "cold users": cold[0],
        "items": np.count_nonzero(items),
        "cold items": cold[1],
    }
