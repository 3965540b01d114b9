"""Leakage: rows of a later window that an earlier one knows, or comes after."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.interactions import Interactions
from reclora.splits.windows import WINDOWS, SplitBy, Windows

NAMED = 5
"""How many rows an error about leakage lists."""


class LeakageError(ValueError):
    """Rows of a later window that an earlier one should not come after; the message names them."""


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
    twice = np.zeros(len(log), bool)
    # A row of both is no later than its user's last one there, which few rows of a later log are.
    few = np.flatnonzero(log.timestamps <= _last_moments(before, "user_time")[log.user_rows])
    if few.size:
        theirs = np.flatnonzero(np.isin(before.timestamps, log.timestamps[few]))
        known = _events(before, theirs).drop_duplicates()
        merged = _events(log, few).merge(known, how="left", indicator=True)
        twice[few] = merged["_merge"] == "both"
    return twice


def _events(log: Interactions, rows: NDArray[np.int64]) -> pd.DataFrame:
    columns = {"user": log.user_rows, "item": log.item_rows, "time": log.timestamps}
    return pd.DataFrame({name: column[rows] for name, column in columns.items()})


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
