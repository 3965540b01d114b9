"""This file is the way back from disk: a laid-out log becomes arrays of table rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reclora.interactions.contract import OPTIONAL, REQUIRED, LogError
from reclora.interactions.ids import IdMap
from reclora.interactions.layout import GROUP_ROWS, ITEM_IDS, LOG, USER_IDS
from reclora.interactions.summary import LogSummary


def read_log(folder: Path) -> dict[str, Any]:
    """Return the fields of the `Interactions` that `prepare_log` laid out in `folder`.

    It streams: beside the arrays and the id maps it holds one row group.

    Raises:
        LogError: the folder holds no complete log; or a file is damaged, or of another log.
    """
    summary = LogSummary.read(folder)
    try:
        users, items = IdMap.read(folder / USER_IDS), IdMap.read(folder / ITEM_IDS)
        _check_count(USER_IDS, "ids", len(users), summary.users)
        _check_count(ITEM_IDS, "ids", len(items), summary.items)
        arrays = _read_arrays(folder / LOG, summary, users, items)
        segments = arrays.pop("segments")
        if (np.diff(segments) < 0).any():
            raise LogError(f"expected {LOG} sorted by segment, got another order")
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise LogError(f"{folder}: damaged, lay the log out again: {error}") from error
    return {
        "users": users,
        "items": items,
        "segment_names": tuple(summary.segments),
        "offsets": np.searchsorted(segments, np.arange(len(summary.segments) + 1)),
        **arrays,
    }


def _read_arrays(path: Path, summary: LogSummary, users: IdMap, items: IdMap) -> dict[str, Any]:
    names = IdMap(pa.array(summary.segments, pa.string()))
    segments, user_rows, item_rows, timestamps = np.empty((4, summary.rows_kept), np.int64)
    weights = None
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        _check_count(path.name, "rows", file.metadata.num_rows, summary.rows_kept)
        columns = [name for name in file.schema_arrow.names if name != "label"]
        attributes: dict[str, list[pa.Array]] = {
            name: [] for name in columns if name not in (*REQUIRED, *OPTIONAL)
        }
        if "weight" in columns:
            weights = np.empty(summary.rows_kept, np.float32)
        start = 0
        # Each lookup hashes the whole id map, so few and large batches.
        for batch in file.iter_batches(GROUP_ROWS, columns=columns):
            rows = slice(start, start + batch.num_rows)
            segments[rows] = _rows_of(names, batch, "segment", start)
            user_rows[rows] = _rows_of(users, batch, "user_id", start)
            item_rows[rows] = _rows_of(items, batch, "item_id", start)
            timestamps[rows] = batch["timestamp"].cast(pa.int64())
            if weights is not None:
                weights[rows] = batch["weight"]
            for name, parts in attributes.items():
                parts.append(batch[name].dictionary_encode())
            start += batch.num_rows
    _check_count(path.name, "readable rows", start, summary.rows_kept)
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


def _rows_of(ids: IdMap, batch: pa.RecordBatch, column: str, start: int) -> NDArray[np.int64]:
    rows = ids.rows_of(batch[column])
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        raise LogError(f"{LOG}, row {start + unknown[0]:,}: {column} is in no other file")
    return rows


def _check_count(name: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise LogError(f"expected {expected:,} {what} in {name}, got {found:,}")
