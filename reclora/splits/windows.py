"""The four windows of a log, and what is cold and what is warm in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.interactions import Interactions

SplitBy = Literal["global_time", "user_time", "leave_last"]
WINDOWS = ("pretrain", "train", "validation", "test")


@dataclass(frozen=True)
class Windows:
    """The four windows of one log, on its id maps and segments."""

    pretrain: Interactions
    train: Interactions
    validation: Interactions
    test: Interactions

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


def check_rows(windows: Windows) -> None:
    for name in WINDOWS:
        if len(getattr(windows, name)) == 0:
            rows = sum(len(getattr(windows, window)) for window in WINDOWS)
            raise ValueError(
                f"the {name} window has no rows: {rows} interactions are too few for these "
                f"shares, or too many share one moment; change the shares of the split"
            )


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
