"""This file is how a kind of delta is picked for each segment by how much data it has.

A segment with little data wants few numbers. The rungs go from none (the parent serves) over one
number per item to low-rank rows; which rung a size of segment stands on is judged on validation,
over all segments of that size together, since one small segment cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.configs import LADDER, AdapterConfig, table_kinds

PARENT, TOP = "parent", "top"
"""The rung without a delta: the segment is served by its parent."""
MIN_USERS = 30
"""A size with fewer users to judge by is judged together with its neighbour."""


def rungs(top: AdapterConfig) -> dict[str, AdapterConfig]:
    """The ladder up to `top`, from few numbers to many.

        parent    nothing                                   0 numbers
        bias      the item bias                             T
        map       and the tables by `map`                   T + 4 R D
        basis     and the tables by `basis`, not `map`      T + (T_users + T_items) R
        top       all that `top` says

    No rung has a kind above the table's own in `top`: there the table has all that `top` says of
    it, and what `top` leaves frozen stays frozen. A rung that says what one below it says is left
    out.
    """
    nothing = replace(
        top, user_table="none", item_table="none", item_bias="none", tower="none", magnitude=False
    )
    bias = replace(nothing, item_bias=top.item_bias)

    def tables(kind: str) -> AdapterConfig:
        user, item = (_at_most(kind, own) for own in (top.user_table, top.item_table))
        return replace(bias, user_table=user, item_table=item)

    ladder = {
        PARENT: nothing,
        "bias": bias,
        "map": tables("map"),
        "basis": tables("basis"),
        TOP: top,
    }
    first = {config: name for name, config in reversed(ladder.items())}
    return {name: config for name, config in ladder.items() if first[config] == name}


def _at_most(kind: str, own: str) -> str:
    """The lower of a kind and what `top` says of a table."""
    order = (*LADDER, "full")
    kinds = table_kinds("a table", own)
    return kind if any(order.index(k) >= order.index(kind) for k in kinds) else own


def size_classes(
    rows_S: NDArray[np.integer[Any]],
    users_S: NDArray[np.integer[Any]],
    min_segments: int = 1,
) -> NDArray[np.int64]:
    """The class of each segment: its rows' power of ten, neighbours joined from the smallest on
    until each has `MIN_USERS` users, and `min_segments` segments, to judge by.

    Args:
        rows_S: rows to train on.
        users_S: users to judge by.
        min_segments: segments with users that a class is to have, if there are larger ones to join;
            the largest have users enough of their own.
    """
    decades_S = np.log10(np.maximum(rows_S, 1)).astype(np.int64)
    classes: dict[int, int] = {}
    users, segments, current = 0, 0, 0
    for decade in np.unique(decades_S):
        if users >= MIN_USERS and segments >= min_segments:
            users, segments, current = 0, 0, current + 1
        classes[int(decade)] = current
        users_of_decade = users_S[decades_S == decade]
        users += int(users_of_decade.sum())
        segments += int((users_of_decade > 0).sum())
    last = current - 1 if users < MIN_USERS and current else current
    return np.array([min(classes[int(d)], last) for d in decades_S], dtype=np.int64)


def choose_rungs(
    values: Mapping[str, pd.DataFrame], rows_of: Mapping[str, int]
) -> tuple[dict[str, str], pd.DataFrame]:
    """The rung of each segment: for each size of segment the lowest whose users do no worse than
    the best rung's by more than a standard error, the users paired.

    Args:
        values: rung, lowest first -> segment, user_id, value: the same users on each.
        rows_of: rows that each segment has to train on.

    Returns:
        segment -> rung; and what was compared: class, segments, rows (at most), users, rung, mean,
        behind (the best rung's mean minus this one's), error (of behind), chosen.

    Raises:
        ValueError: the rungs were judged by different users.

    Source: the one-standard-error rule of Breiman et al., "Classification and Regression Trees",
    1984, section 3.4.3, on paired differences.
    """
    ordered = {name: _by_user(table) for name, table in values.items()}
    first = next(iter(ordered.values()))
    for name, table in ordered.items():
        if not table.index.equals(first.index):
            raise ValueError(
                f"rung {name!r} was judged by other users than {next(iter(ordered))!r}: judge all "
                f"of them on one held-out log"
            )
    segments = list(rows_of)
    users = first.groupby("segment").size().reindex(segments, fill_value=0)
    classes_S = size_classes(
        np.array([rows_of[s] for s in segments]), users.to_numpy(dtype=np.int64)
    )
    chosen: dict[str, str] = {}
    compared = []
    for number in np.unique(classes_S):
        members = [s for s, c in zip(segments, classes_S, strict=True) if c == number]
        inside = first.index.get_level_values("segment").isin(members)
        rows = _compare({name: table[inside].to_numpy() for name, table in ordered.items()})
        pick = _smallest(rows)
        chosen |= dict.fromkeys(members, pick)
        facts = {
            "class": int(number),
            "segments": len(members),
            "rows": max(rows_of[s] for s in members),
            "users": int(inside.sum()),
        }
        compared += [
            facts | {"rung": name, **row, "chosen": name == pick} for name, row in rows.items()
        ]
    return chosen, pd.DataFrame(compared)


def smallest_within_error(values: Mapping[str, pd.DataFrame]) -> str:
    """The first whose users do no worse than the best one's by more than a standard error.

    Args:
        values: name, the smallest first -> segment, user_id, value: the same users for each.

    Source: as `choose_rungs`.
    """
    ordered = {name: _by_user(table) for name, table in values.items()}
    return _smallest(_compare({name: table.to_numpy() for name, table in ordered.items()}))


def _smallest(rows: Mapping[str, Mapping[str, float]]) -> str:
    return next(name for name, row in rows.items() if row["behind"] <= row["error"])


def _by_user(table: pd.DataFrame) -> pd.Series:
    keyed = table.assign(segment=table["segment"].astype(str)).set_index(["segment", "user_id"])
    return keyed["value"].sort_index()


def _compare(values: Mapping[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Rung -> mean, behind, error. Without users every rung is as good as the best."""
    if not len(next(iter(values.values()))):
        return dict.fromkeys(values, {"mean": np.nan, "behind": 0.0, "error": 0.0})
    best = max(values.values(), key=lambda v: v.mean())
    return {
        name: {
            "mean": float(v.mean()),
            "behind": float((best - v).mean()),
            "error": _standard_error(best - v),
        }
        for name, v in values.items()
    }


def _standard_error(differences_U: NDArray[np.float64]) -> float:
    """Of the mean; one difference alone may be all chance."""
    if len(differences_U) == 1:
        return float(abs(differences_U[0]))
    return float(differences_U.std(ddof=1) / len(differences_U) ** 0.5)
