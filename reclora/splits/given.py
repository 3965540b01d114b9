"""Windows that were cut elsewhere, brought together and checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reclora.interactions import IdMap, Interactions
from reclora.splits.leakage import check_leakage
from reclora.splits.windows import WINDOWS, SplitBy, Windows, check_rows


def together(
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
        TypeError: identifiers are strings in one log and integers in another.
        ValueError: a window has no rows, or other attributes than the first.
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
    windows = Windows(*(_onto(log, users, items, names) for log in logs))
    check_rows(windows, "are in the others; give every window rows of its own")
    check_leakage(windows, by)
    return windows


def _onto(log: Interactions, users: IdMap, items: IdMap, names: Sequence[str]) -> Interactions:
    """A log on maps that know all its ids, and with further segments."""
    place = {name: code for code, name in enumerate(names)}
    segments = np.array([place[name] for name in log.segment_names], np.int64)
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
