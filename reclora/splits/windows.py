"""The four windows of a log, and what is cold and what is warm in them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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

    @cached_property
    def before_validation(self) -> Interactions:
        """All that came before the validation window."""
        return self.pretrain.joined(self.train)

    @cached_property
    def before_test(self) -> Interactions:
        """All that came before the test window."""
        return self.before_validation.joined(self.validation)

    def of_segments(self, names: Sequence[str]) -> Windows:
        """The train, validation and test windows of some segments; what came before a window stays
        whole, since what a user saw in another segment is seen as well.

        Raises:
            KeyError: a segment that no window has.
        """
        known = {name: at for at, name in enumerate(self.train.segment_names)}
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known) or list(known)[:5]
                raise KeyError(
                    f"no segment {name!r} in the log; near names: {', '.join(map(repr, near))}"
                )
        codes = sorted(known[name] for name in dict.fromkeys(names))
        parts = (log.part(codes) for log in (self.train, self.validation, self.test))
        narrow = Windows(self.pretrain, *parts)
        narrow.__dict__["before_validation"] = self.before_validation
        narrow.__dict__["before_test"] = self.before_test
        return narrow

    def without_test(self) -> Windows:
        """The same, of which nobody can ask the test window any more: it has no row."""
        return replace(self, test=self.test.select(np.zeros(len(self.test), bool)))

    def summary(self) -> pd.DataFrame:
        """One row a window: window, first, last (UTC), rows, users, items, and how many of each are
        cold: users and items that are in no window before it, and rows with such a user or item (0
        for the first window, before which there is none).

        Columns: window, first, last, rows, cold_rows, users, cold_users, items, cold_items.
        """
        users, items = warm(self.pretrain)
        rows: list[dict[str, object]] = []
        for name in WINDOWS:
            log = getattr(self, name)
            rows.append({"window": name, **_describe(log, users, items)})
            own_users, own_items = warm(log)
            users, items = users | own_users, items | own_items
        return pd.DataFrame(rows)


def warm(log: Interactions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which users and which items of its id maps a log has a row of; the others are cold to it.

    Returns:
        Two masks, over the rows of `log.users` and of `log.items`.
    """
    users, items = np.zeros(len(log.users), bool), np.zeros(len(log.items), bool)
    users[log.user_rows], items[log.item_rows] = True, True
    return users, items


def check_rows(windows: Windows, advice: str) -> None:
    """Refuse windows of which one is empty, and say why that may be (ValueError)."""
    for name in WINDOWS:
        if len(getattr(windows, name)) == 0:
            rows = sum(len(getattr(windows, window)) for window in WINDOWS)
            raise ValueError(f"the {name} window has no rows: {rows} interactions {advice}")


def _describe(
    log: Interactions, known_users: NDArray[np.bool_], known_items: NDArray[np.bool_]
) -> dict[str, object]:
    """When a window is, and how many rows, users and items it has; of each, those not known yet."""
    ends = [log.timestamps.min(), log.timestamps.max()] if len(log) else []
    moments = pd.to_datetime(ends, unit="us", utc=True)
    users, items = warm(log)
    cold = ~known_users[log.user_rows] | ~known_items[log.item_rows]
    return {
        "first": moments[0] if len(log) else pd.NaT,
        "last": moments[1] if len(log) else pd.NaT,
        "rows": len(log),
        "cold_rows": np.count_nonzero(cold),
        "users": np.count_nonzero(users),
        "cold_users": np.count_nonzero(users & ~known_users),
        "items": np.count_nonzero(items),
        "cold_items": np.count_nonzero(items & ~known_items),
    }
