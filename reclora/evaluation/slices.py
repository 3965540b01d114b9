"""Slices of a held-out log: whom and what a model serves well, and whom not.

| slice | value of a held-out row |
|---|---|
| `users` | `cold`: the user has no row in the seen log; else `warm` |
| `items` | `cold`: the item has no row in the seen log; else `warm` |
| `user activity` | the user's rows in the seen log: `0`, `1-9`, `10-99`, `100-999`, ... |
| `item popularity` | `head`: of the fewest items that hold half of the seen log; `tail`; `cold` |
| `days after` | days from the end of the seen log to the row, `0-1`, `2-3`, `4-7`, `8-15`, ... |
| an attribute of the log | what the row has there; `column NAME` if it is called like one above |

A slice of rows leaves the lists as they are and changes what is relevant: in the slice of tail
items only tail items count, as relevant and as hits. `days after` is there where every held-out row
is later than the seen log: by it one sees how fast what was learned grows old.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.evaluation.held_out import HeldOut
from reclora.interactions import Interactions
from reclora.recency import DAY

Slice = dict[str, HeldOut]
"""Value -> what is held out in it."""


def slices_of(held_out: HeldOut, heldout: Interactions, seen: Interactions) -> dict[str, Slice]:
    """Every slice of a held-out log that splits it: name -> value -> what is held out.

    Args:
        held_out: made of the two logs by `hold_out`.
        heldout, seen: those logs.
    """
    user_counts = np.bincount(seen.user_rows, minlength=len(seen.users))
    item_counts = np.bincount(seen.item_rows, minlength=len(seen.items))
    built_in = {
        "users": _warmth(user_counts)[heldout.user_rows],
        "items": _warmth(item_counts)[heldout.item_rows],
        "user activity": _decades(user_counts)[heldout.user_rows],
        "item popularity": _popularity(item_counts)[heldout.item_rows],
    }
    if len(seen) and len(heldout) and heldout.timestamps.min() > seen.timestamps.max():
        built_in["days after"] = _ages((heldout.timestamps - seen.timestamps.max()) // DAY)
    values: dict[str, pd.Categorical] = {}
    for name, strings in built_in.items():
        values[name] = pd.Categorical(strings.astype(object))
    for name, column in heldout.attributes.items():
        values[f"column {name}" if name in values else name] = column
    found = {}
    for name, column in values.items():
        codes = {str(value): code for code, value in enumerate(column.categories)}
        parts = {
            value: held_out.only(heldout.select(column.codes == codes[value]))
            for value in sorted(codes, key=_place)
        }
        kept = {value: part for value, part in parts.items() if part.num_users}
        if len(kept) > 1:
            found[name] = kept
    return found


def measure_slice(parts: Slice, measure: Callable[[HeldOut], pd.DataFrame]) -> pd.DataFrame:
    """The results of every value of a slice, in whose column `segment` the value stands.

    `user_id` is the user and the segment, so that one who is in two segments is two, as everywhere.
    Such a table goes into `compare` and `means` as one by segment does.

    Args:
        measure: what gives the results of one value, such as `measure` with a model's lists.
    """
    return pd.concat(list(_relabelled(parts, measure)), ignore_index=True)


def _relabelled(parts: Slice, measure: Callable[[HeldOut], pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for value, held_out in parts.items():
        results = measure(held_out)
        unit = results["segment"].astype(str) + "\x1f" + results["user_id"].astype(str)
        yield results.assign(
            segment=pd.Categorical([value] * len(results), list(parts)), user_id=unit
        )


def _warmth(counts: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.where(counts > 0, "warm", "cold")


def _decades(counts: NDArray[np.int64]) -> NDArray[np.str_]:
    """0, 1-9, 10-99, ...: fixed, so that the slices of two runs are the same."""
    digits = np.char.str_len(counts.astype(str))
    names = np.array(
        ["0", *(f"{10 ** (d - 1)}-{10**d - 1}" for d in range(1, max(digits, default=1) + 1))]
    )
    return names[np.where(counts > 0, digits, 0)]


def _ages(days: NDArray[np.int64]) -> NDArray[np.str_]:
    """0-1, 2-3, 4-7, ...: fixed, so that the slices of two runs are the same."""
    doublings = np.log2(np.maximum(days, 1)).astype(np.int64)
    first = np.where(doublings > 0, 1 << doublings, 0)
    names = np.char.add(np.char.add(first.astype(str), "-"), ((2 << doublings) - 1).astype(str))
    return names


def _popularity(counts: NDArray[np.int64]) -> NDArray[np.str_]:
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    names = np.full(len(counts), "cold", dtype="<U4")
    names[order] = np.where(before < counts.sum() / 2, "head", "tail")
    names[counts == 0] = "cold"
    return names


def _place(value: str) -> tuple[int, str]:
    """Decades by size, other values by name."""
    first = value.split("-")[0]
    return int(first) if first.isdecimal() else 0, value
