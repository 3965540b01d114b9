"""This file is the way back from disk: a laid-out log becomes arrays of table rows."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
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


def read_log(
    folder: Path | str, *, declined: bool = False, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Return the fields of the `Interactions` that `prepare_log` laid out in `folder`.

    It streams: beside the arrays and the id maps it holds one row group.

    Args:
        declined: the rows below `min_label` instead, on the same id maps and segments.
        only: the segments to read, in the log's order; row groups without a row of them are not
            read. None: all.

    Raises:
        LogError: the folder holds no complete log; or a file is damaged, or of another log; or the
            declined rows were dropped.
        KeyError: a segment that the log does not have.
        ValueError: some segments alone are asked for of the declined rows.
    """
    folder = Path(folder)
    summary = LogSummary.read(folder)
    names = tuple(summary.segments)
    if only is not None:
        if declined:
            raise ValueError(
                "the declined rows are read of all segments, not of some: leave out only"
            )
        unknown = [name for name in only if name not in summary.segments]
        if unknown:
            raise KeyError(f"{folder}: no segment {unknown[0]!r} in the log")
        asked = set(only)
        names = tuple(name for name in names if name in asked)
    if declined and summary.contract.declined == "drop":
        raise LogError(
            f"{folder}: the rows below min_label were dropped; lay the log out again with the "
            "contract's declined = 'keep'"
        )
    name, count = (DECLINED, summary.declined) if declined else (LOG, summary.rows_kept)
    wanted = set(names)
    spans = [(0, count)] if only is None else _spans(summary.segments, wanted)
    try:
        users, items = IdMap.read(folder / USER_IDS), IdMap.read(folder / ITEM_IDS)
        _check_count(USER_IDS, "ids", len(users), summary.users)
        _check_count(ITEM_IDS, "ids", len(items), summary.items)
        arrays = _read_arrays(folder / name, count, spans, summary.segments, users, items)
        segments = arrays.pop("segments")
        if (np.diff(segments) < 0).any():
            raise LogError(f"expected {name} sorted by segment, got another order")
        codes = [code for code, each in enumerate(summary.segments) if each in wanted]
        if only is not None and not np.isin(segments, codes).all():
            raise LogError(f"expected {name} to have as many rows of each segment as it says")
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise LogError(f"{folder}: damaged, lay the log out again: {error}") from error
    return {
        "users": users,
        "items": items,
        "segment_names": names,
        "offsets": np.append(np.searchsorted(segments, codes), len(segments)),
        **arrays,
    }


def _spans(sizes: Mapping[str, int], wanted: Collection[str]) -> list[tuple[int, int]]:
    """First and last row (excluded) of each wanted segment, in a file that is sorted by segment."""
    ends = np.cumsum([0, *sizes.values()]).tolist()
    places = zip(sizes, pairwise(ends), strict=True)
    return [span for name, span in places if name in wanted]


def _read_arrays(
    path: Path,
    count: int,
    spans: Sequence[tuple[int, int]],
    segment_names: Iterable[str],
    users: IdMap,
    items: IdMap,
) -> dict[str, Any]:
    """The rows of some spans of a file of `count` rows."""
    names = IdMap(pa.array(segment_names, pa.string()))
    wanted = sum(stop - start for start, stop in spans)
    segments, user_rows, item_rows, timestamps = np.empty((4, wanted), np.int64)
    weights = None
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        _check_count(path.name, "rows", file.metadata.num_rows, count)
        columns = [name for name in file.schema_arrow.names if name != "label"]
        attributes: dict[str, list[pa.Array]] = {
            name: [] for name in columns if name not in (*REQUIRED, *OPTIONAL)
        }
        if "weight" in columns:
            weights = np.empty(wanted, np.float32)
        start = 0
        for first, batch in _batches(file, columns, spans):
            rows = slice(start, start + batch.num_rows)
            segments[rows] = _rows_of(names, batch, "segment", path.name, first)
            user_rows[rows] = _rows_of(users, batch, "user_id", path.name, first)
            item_rows[rows] = _rows_of(items, batch, "item_id", path.name, first)
            timestamps[rows] = batch["timestamp"].cast(pa.int64())
            if weights is not None:
                weights[rows] = batch["weight"]
            for name, parts in attributes.items():
                parts.append(batch[name].dictionary_encode())
            start += batch.num_rows
    _check_count(path.name, "readable rows", start, wanted)
    return {
        "segments": segments,
        "user_rows": user_rows,
        "item_rows": item_rows,
        "timestamps": timestamps,
        "weights": weights,
        "attributes": {name: _categories(parts) for name, parts in attributes.items()},
    }


def _batches(
    file: pq.ParquetFile, columns: Sequence[str], spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of the spans, with the place of the first of them in the file; row groups without
    any are not read. A lookup passes over the whole id map unless it is of ascending integers, so
    batches are few and large.
    """
    sizes = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
    for at, (begin, end) in enumerate(pairwise(np.cumsum([0, *sizes]).tolist())):
        inside = [(max(a, begin), min(b, end)) for a, b in spans if a < end and b > begin]
        if not inside:
            continue
        first = begin
        for batch in file.iter_batches(GROUP_ROWS, row_groups=[at], columns=columns):
            last = first + batch.num_rows
            for a, b in inside:
                a, b = max(a, first), min(b, last)
                if a < b:
                    yield a, batch.slice(a - first, b - a)
            first = last


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
