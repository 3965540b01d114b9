"""This file is the table of what a release decided on every segment, and by which numbers.

    releases/decisions/<sha256>.parquet

Needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from reclora.store.folders import DECISIONS
from reclora.store.layout import HashedFile, hashed_path
from reclora.store.reading import StoreError, open_regular, read_into

MAX_BYTES = 2**28
"""Largest table that is written and read: some hundred bytes for each of a million segments."""


def decisions_file(decisions: pd.DataFrame) -> HashedFile:
    """Return the file of a table; its index is not kept.

    Raises:
        StoreError: a column is no column of Parquet, or the file is larger than `MAX_BYTES`.
    """
    written = io.BytesIO()
    try:
        table = pa.Table.from_pandas(decisions, preserve_index=False)
        pq.write_table(table, written, compression="zstd", write_page_checksum=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StoreError(f"the table of decisions cannot be written: {error}") from None
    size = written.getbuffer().nbytes
    if size > MAX_BYTES:
        raise StoreError(
            f"the table of decisions has {size:,} bytes, at most {MAX_BYTES:,} are read; "
            "give fewer columns"
        )
    return HashedFile.of([written.getbuffer()], DECISIONS)


def read_decisions(folder: Path, name: str) -> pd.DataFrame:
    """Read a table, every byte of it checked against its name.

    Raises:
        StoreError: it is missing, damaged, or larger than `MAX_BYTES`.
    """
    table: pd.DataFrame = pq.read_table(pa.BufferReader(_bytes_of(folder, name))).to_pandas()
    return table


def check_decisions(folder: Path, name: str) -> None:
    """Raise as `read_decisions` would."""
    _bytes_of(folder, name)


def _bytes_of(folder: Path, name: str) -> memoryview:
    path = hashed_path(folder, name, DECISIONS)
    try:
        with open_regular(path) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > MAX_BYTES:
                raise StoreError(f"{path} has {size:,} bytes; a table has at most {MAX_BYTES:,}")
            raw = np.empty(size, np.uint8).data
            read_into(descriptor, raw, 0, path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing, a release needs it; restore it from a copy") from None
    if hashlib.sha256(raw).hexdigest() != name:
        raise StoreError(f"{path} is damaged: its sha256 is not its name; restore it from a copy")
    return raw
