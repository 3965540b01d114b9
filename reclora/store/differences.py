"""This file is what two releases differ in, a row a segment; no pack is read. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reclora.store.changes import Tables
from reclora.store.placements import PlacementTable
from reclora.store.releases import Release

Texts = Mapping[str, str]
"""sha256 of a pack -> its settings in a few words."""


def difference(before: Release, after: Release) -> pd.DataFrame:
    """Return a row for each segment that differs; for the columns see `AdapterStore.diff`."""
    texts = {pack.pack: described(pack.config) for pack in (*before.packs, *after.packs)}
    older, newer = Tables.of(before), Tables.of(after)
    tables = older.current, newer.current, older.candidates, newer.candidates
    metrics = sorted({name for table in tables for name in table.metrics})
    current = _compared(older.current, newer.current, metrics, texts)
    waiting = _compared(older.candidates, newer.candidates, metrics, texts)
    waiting = waiting[~waiting["segment"].isin(current["segment"])].assign(change="candidate")
    rows = pd.concat([current, waiting]) if len(waiting) else current
    return rows.sort_values("segment", ignore_index=True)


def _compared(
    before: PlacementTable, after: PlacementTable, metrics: Sequence[str], texts: Texts
) -> pd.DataFrame:
    old_names, new_names = (pd.Index(table.names(), dtype=object) for table in (before, after))
    names = old_names.union(new_names)
    # Where a segment is in each table; -1: nowhere, which is the row that `_columns` adds.
    old_rows, new_rows = old_names.get_indexer(names), new_names.get_indexer(names)
    old, new = (
        {name: column[rows] for name, column in _columns(table, metrics, texts).items()}
        for table, rows in ((before, old_rows), (after, new_rows))
    )
    differs = np.zeros(len(names), bool)
    for key, values in old.items():
        # What is unknown before and after is the same.
        both_unknown = (values != values) & (new[key] != new[key])
        differs |= (values != new[key]) & ~both_unknown
    table: dict[str, Any] = {
        "segment": names,
        "change": np.select([old_rows < 0, new_rows < 0], ["added", "removed"], "changed"),
        "before": old["", "text"],
        "after": new["", "text"],
    }
    for name in metrics:
        table[f"{name} before"], table[f"{name} after"] = old["metric", name], new["metric", name]
    return pd.DataFrame(table)[differs]


def _columns(
    table: PlacementTable, metrics: Sequence[str], texts: Texts
) -> dict[tuple[str, str], NDArray[Any]]:
    """What is compared of each row, and as the last row what stands for no row."""
    codes = np.append(table.columns["packs"], len(table.packs))
    serves = np.append(table.columns["serves_parent"].astype(bool), False)
    settings = np.array([*(texts[pack] for pack in table.packs), ""], object)[codes]
    columns = {
        ("", "pack"): np.array([*table.packs, ""], object)[codes],
        ("", "index"): np.append(table.columns["indexes"], -1),
        ("", "serves"): serves,
        ("", "text"): np.where(serves, "parent", settings),
    }
    for name in metrics:
        known = name in table.metrics
        at = table.metrics.index(name) if known else 0
        values = table.columns["metrics"][:, at] if known else np.full(len(table), math.nan)
        columns["metric", name] = np.append(values, math.nan)
    return columns


def described(config: Mapping[str, Any]) -> str:
    """Return kinds and rank of an adapter's settings, in a few words."""
    deltas = config.get("deltas")
    if isinstance(deltas, list):
        found = [f"{d.get('kind')} {d.get('rank')}" for d in deltas if isinstance(d, Mapping)]
        return ", ".join(dict.fromkeys(found))
    names = ("user_table", "item_table", "item_bias", "tower")
    kinds = [f"{name}={config[name]}" for name in names if config.get(name, "none") != "none"]
    return ", ".join([*kinds, f"rank {config.get('rank')}"])
