"""This file is the way back from disk: a laid-out log becomes arrays of table rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reclora.interactions.contract import LogError
from reclora.interactions.ids import IdMap
from reclora.interactions.layout import ITEM_IDS, LOG, USER_IDS
from reclora.interactions.reading import BATCH_ROWS
from reclora.interactions.summary import LogSummary


def read_log(folder: Path) -> dict[str, Any]:
    """Return the fields of the `Interactions` that `prepare_log` laid out in `folder`.

    It streams: beside the arrays and the id maps it holds one batch of rows.

    Raises:
        LogError: the folder holds no complete log; or a file is damaged, or of another log.
    """
    summary = LogSummary.read(folder)
    try:
        users, items = IdMap.read(folder / USER_IDS), IdMap.read(folder / ITEM_IDS)
        arrays = _read_arrays(folder / LOG, summary, users, items)
        segments = arrays.pop("segments")
        known = {
            "segment": segments,
            "user_id": arrays["user_rows"],
            "item_id": arrays["item_rows"],
        }
        for column, rows in known.items():
            if (rows < 0).any():
                raise LogError(f"{LOG}, row {np.argmax(rows < 0)}: {column} is in no other file")
        if (np.diff(segments) < 0).any():
            raise LogError(f"expected {LOG} sorted by segment, got another order")
    except (TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise LogError(f"{folder}: damaged, lay the log out again: {error}") from error
    return {
        "users": users,
        "items": items,
        "segment_names": tuple(summary.segments),
        "offsets": np.searchsorted(segments, np.arange(len(summary.segments) + 1)),
        **arrays,
    }


def _read_arrays(path: Path, summary: LogSummary, users: IdMap, items: IdMap) -> dict[str, Any]:
    names = pa.array(summary.segments, pa.large_string())
    segments, user_rows, item_rows, timestamps = np.empty((4, summary.rows_kept), np.int64)
    weights = None
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        if file.metadata.num_rows != summary.rows_kept:
            raise LogError(f"expected {summary.rows_kept} rows, got {file.metadata.num_rows}")
        columns = [name for name in file.schema_arrow.names if name != "label"]
        if "weight" in columns:
            weights = np.empty(summary.rows_kept, np.float32)
        start = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            rows = slice(start, start + batch.num_rows)
            segments[rows] = pc.index_in(batch["segment"], value_set=names).fill_null(-1)
            user_rows[rows] = users.rows_of(batch["user_id"])
            item_rows[rows] = items.rows_of(batch["item_id"])
            timestamps[rows] = batch["timestamp"].cast(pa.int64())
            if weights is not None:
                weights[rows] = batch["weight"]
            start += batch.num_rows
    return {
        "segments": segments,
        "user_rows": user_rows,
        "item_rows": item_rows,
        "timestamps": timestamps,
        "weights": weights,
    }
