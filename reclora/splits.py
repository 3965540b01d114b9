"""Log -> pretrain, train, validation and test windows, by time.

The base model is pretrained on the first window; adapters train on the second, are chosen on the
third and reported on the fourth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.interactions import Interactions

SplitBy = Literal["global_time", "user_time"]
WINDOWS = ("pretrain", "train", "validation", "test")


@dataclass(frozen=True)
class SplitConfig:
    """Where the cuts fall.

    Raises:
        ValueError: a share that is not positive, or shares that do not sum to 1.
    """

    by: SplitBy = "global_time"
    """`global_time`: three moments cut the whole log. `user_time`: each user's own history is cut.
    """
    pretrain: float = 0.70
    """Share of the interactions that the base model is made from."""
    train: float = 0.15
    """Share that adapters train on: the adapt window."""
    validation: float = 0.05
    """Share that models are chosen on."""
    test: float = 0.10
    """Share that results are reported on."""

    def __post_init__(self) -> None:
        if self.by not in ("global_time", "user_time"):
            raise ValueError(f"split by must be global_time or user_time, got {self.by!r}")
        shares = [getattr(self, window) for window in WINDOWS]
        if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"{', '.join(WINDOWS)} must be positive and sum to 1, got {shares}")


@dataclass(frozen=True)
class Windows:
    """The four windows of one log, on its id maps and segments."""

    pretrain: Interactions
    train: Interactions
    validation: Interactions
    test: Interactions

    def summary(self) -> pd.DataFrame:
        """One row a window: window, first, last (UTC), rows, users, items."""
        return pd.DataFrame([_describe(name, getattr(self, name)) for name in WINDOWS])


def split(log: Interactions, config: SplitConfig) -> Windows:
    """Cut a log into its windows.

    With `global_time` and shares .4, .2, .2, .2, rows of one log at times 1 to 5 fall so:

        time      1         2         3      4           5
        window    pretrain  pretrain  train  validation  test

    Rows of one moment stay together, in the window where the first of them falls, so no moment is
    in two windows. With `user_time` each user's own rows are cut (ordered by time, then item row):
    the p-th of a user's n rows, counted from 0, falls where p / n falls among the shares, and rows
    of one moment may be cut apart. Then a user's own future never trains that user, but other
    users' later interactions may: it is for logs whose users come and go at different times.

    Raises:
        ValueError: a window is left without rows.
    """
    parts = cut(log, [getattr(config, window) for window in WINDOWS], config.by)
    for name, part in zip(WINDOWS, parts, strict=True):
        if len(part) == 0:
            raise ValueError(
                f"the {name} window has no rows: {len(log)} interactions are too few for these "
                f"shares, or too many share one moment; change the shares of the split"
            )
    return Windows(*parts)


def cut(log: Interactions, shares: Sequence[float], by: SplitBy) -> list[Interactions]:
    """Cut a log into consecutive parts of these shares, which sum to 1; a part may be empty."""
    positions = _global_positions(log) if by == "global_time" else _user_positions(log)
    # A share like .7 + .15 must not miss its row by the last bit of a float.
    ends = np.cumsum(shares)[:-1] - 1e-9
    part = np.searchsorted(ends, positions, side="right")
    return [log.select(part == code) for code in range(len(shares))]


def _global_positions(log: Interactions) -> NDArray[np.float64]:
    """Share of the log that lies strictly before each row's moment."""
    order = np.sort(log.timestamps)
    return np.searchsorted(order, log.timestamps, side="left") / len(log)


def _user_positions(log: Interactions) -> NDArray[np.float64]:
    """Share of the user's own rows that come before each row."""
    order = np.lexsort((log.item_rows, log.timestamps, log.user_rows))
    users = log.user_rows[order]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    sizes = np.diff(starts, append=len(users))
    positions = np.empty(len(log))
    positions[order] = (np.arange(len(users)) - np.repeat(starts, sizes)) / np.repeat(sizes, sizes)
    return positions


def _describe(name: str, log: Interactions) -> dict[str, object]:
    moments = pd.to_datetime([log.timestamps.min(), log.timestamps.max()], unit="us", utc=True)
    return {
        "window": name,
        "first": moments[0],
        "last": moments[1],
        "rows": len(log),
        "users": len(np.unique(log.user_rows)),
        "items": len(np.unique(log.item_rows)),
    }
