"""Frames as CSV that a spreadsheet opens without running anything."""

from __future__ import annotations

from csv import QUOTE_NONNUMERIC
from pathlib import Path

import pandas as pd

from reclora.files import write_text

_RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """Write a frame as CSV (UTF-8, a header, no index), whole or not at all, and return `path`.

    A string that a spreadsheet would take for a formula gets an apostrophe before it, by which the
    spreadsheet shows it as it is.

    Raises:
        OSError: it cannot be written; an older file stays.

    Source: OWASP, "CSV Injection".
    """
    inert = frame.apply(
        lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_inert)
    )
    inert.columns = [_inert(str(name)) for name in frame.columns]
    write_text(path, inert.to_csv(index=False, lineterminator="\n", quoting=QUOTE_NONNUMERIC))
    return path


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_RUNS) else value
