"""This file is the way back from disk: a laid-out log becomes arrays of table rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reclora.interactions.contract import OPTIONAL, REQUIRED, LogError
from reclora.interactions.ids import IdMap
from reclora.interactions.layout import DECLINED, GROUP_ROWS, ITEM_IDS, LOG, USER_IDS
from reclora.interactions.summary import LogSummary


def read_log(folder: Path, *, declined: bool = False) -> dict[str, Any]:
    """Return the fields of the `Interactions` that `prepare_log` laid out in `folder`.

    It streams: beside the arrays and the id maps it holds one row group.

    Args:
        declined: the rows below `min_label` instead, on the same id maps and segments.

    Raises:
        LogError: the folder holds no complete log; or a file is damaged, or of another log; or the
            declined rows were dropped.
    """
    summary = LogSummary.read(folder)
    if declined and summary.contract.declined == "drop":
        raise LogError(
            f"{folder}: the rows below min_label were dropped; lay the log out again with the "
            "contract's declined = 'keep'"
        )
    name, count = (DECLINED, summary.declined) if declined else (LOG, summary.rows_kept)
    try:
        users, items = IdMap.read(folder / USER_IDS), IdMap.read(folder / ITEM_IDS)
        _check_count(USER_IDS, "ids", len(users), summary.users)
        _check_count(ITEM_IDS, "ids", len(items), summary.items)
        arrays = _read_arrays(folder / name, count, summary.segments, users, items)
        segments = arrays.pop("segments")
        if (np.diff(segments) < 0).any():
            raise LogError(f"expected {name} sorted by segment, got another order")
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise LogError(f"{folder}: damaged, lay the log out again: {error}") from error
    return {
        "users": users,
        "items": items,
        "segment_names": tuple(summary.segments),
        "offsets": np.searchsorted(segments, np.arange(len(summary.segments) + 1)),
        **arrays,
    }


def _read_arrays(
    path: Path, count: int, segment_names: Iterable[str], users: IdMap, items: IdMap
) -> dict[str, Any]:
    names = IdMap(pa.array(segment_names, pa.string()))
    segments, user_rows, item_rows, timestamps = np.empty((4, count), np.int64)
    weights = None
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        _check_count(path.name, "rows", file.metadata.num_rows, count)
        columns = [name for name in file.schema_arrow.names if name != "label"]
        attributes: dict[str, list[pa.Array]] = {
            name: [] for name in columns if name not in (*REQUIRED, *OPTIONAL)
        }
        if "weight" in columns:
            weights = np.empty(count, np.float32)
        start = 0
        # Each lookup hashes the whole id map, so few and large batches.
        for batch in file.iter_batches(GROUP_ROWS, columns=columns):
            rows = slice(start, start + batch.num_rows)
            segments[rows] = _rows_of(names, batch, "segment", path.name, start)
            user_rows[rows] = _rows_of(users, batch, "user_id", path.name, start)
            item_rows[rows] = _rows_of(items, batch, "item_id", path.name, start)
            timestamps[rows] = batch["timestamp"].cast(pa.int64())
            if weights is not None:
                weights[rows] = batch["weight"]
            for name, parts in attributes.items():
                parts.append(batch[name].dictionary_encode())
            start += batch.num_rows
    _check_count(path.name, "readable rows", start, count)
    return {
        "segments": segments,
        "user_rows": user_rows,
        "item_rows": item_rows,
        "timestamps": timestamps,
        "weights": weights,
        "attributes": {name: _categories(parts) for name, parts in attributes.items()},
    }


def _categories(parts: list[pa.Array]) -> pd.Categorical:
    """One categorical of the strings of some batches, its categories ascending."""
    names = [part.dictionary.to_pylist() for part in parts]
    distinct = sorted(set().union(*names))
    place = {name: code for code, name in enumerate(distinct)}
    codes = [
        np.array([place[name] for name in own], np.int64)[part.indices.to_numpy()]
        for own, part in zip(names, parts, strict=True)
    ]
    whole = np.concatenate([np.empty(0, np.int64), *codes])
    return pd.Categorical.from_codes(whole, pd.Index(distinct, dtype="str"))


def _rows_of(
    ids: IdMap, batch: pa.RecordBatch, column: str, file: str, start: int
) -> NDArray[np.int64]:
    rows = ids.rows_of(batch[column])
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        raise LogError(f"{file}, row {start + unknown[0]:,}: {column} is in no other file")
    return rows


def _check_count(name: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise LogError(f"expected {expected:,} {what} in {name}, got {found:,}")
