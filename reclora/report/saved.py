"""A report as a file beside its page, and back: what the page is made of, for those who compute.

`report.parquet` has one row and a column a frame, a list of that frame's rows as structs; what is
no frame stands as JSON in the schema's metadata. Any tool unnests it: in DuckDB,
`select unnest(lifts, recursive := true) from 'report.parquet'`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from reclora.files import read_parquet, write_parquet
from reclora.report.contents import Report, Section

SUFFIX = ".parquet"
PAGE = "report.html"
_KEY = b"reclora report"
_FORMAT = 1


def read_report(path: Path) -> Report:
    """The report that a page was made of, as `write_report` was given it.

        report = read_report(Path("runs/shop-0a1b2c3d4e"))
        report.by_segment()
        plotly_figures(report)["lift"]

    Args:
        path: a run's folder, or a page in one.

    Raises:
        ValueError: no report is there, or it is damaged or of a newer format.
        OSError: the file cannot be read.
    """
    page = path / PAGE if path.is_dir() else path
    file = page.with_suffix(SUFFIX)
    if not file.is_file():
        raise ValueError(
            f"expected the folder of a run that has a page, with {file.name} in it, got {path}; "
            "runs of versions without that file have none: run the same settings again"
        )
    try:
        table = read_parquet(file)
        about: dict[str, Any] = json.loads((table.schema.metadata or {})[_KEY])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or no report: {error}") from None
    if (newer := about.pop("format")) != _FORMAT:
        raise ValueError(f"{file} is of format {newer}, this reclora reads {_FORMAT}: update it")
    sections = [
        Section(title, text, _frame(table, f"section {at}"))
        for at, (title, text) in enumerate(about.pop("sections"))
    ]
    about |= {name: _frame(table, name) for name in about.pop("frames")}
    return Report(**about, sections=sections)


def save_report(path: Path, report: Report) -> None:
    """Write what a page is made of to `path`, whole or not at all (OSError)."""
    about: dict[str, Any] = {"format": _FORMAT, "frames": [], "sections": []}
    columns: dict[str, pa.Array] = {}
    for name, value in _parts(report):
        if isinstance(value, pd.DataFrame):
            about["frames"].append(name)
            columns |= _column(name, value)
        elif name == "sections":
            about[name] = [(section.title, section.text) for section in value]
            for at, section in enumerate(value):
                columns |= _column(f"section {at}", section.table)
        else:
            about[name] = value
    said = json.dumps(about, default=_plain).encode()
    write_parquet(path, pa.table(columns).replace_schema_metadata({_KEY: said}))


def _parts(report: Report) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(report, field.name)) for field in fields(report))


def _column(name: str, frame: pd.DataFrame) -> dict[str, pa.Array]:
    """A frame as the one value of a column; none of a frame without columns, which has no type."""
    if frame.columns.empty:
        return {}
    rows = pa.Table.from_pandas(frame, preserve_index=False).to_struct_array().combine_chunks()
    return {name: pa.LargeListArray.from_arrays(pa.array([0, len(rows)], pa.int64()), rows)}


def _frame(table: pa.Table, name: str) -> pd.DataFrame:
    if name not in table.column_names:
        return pd.DataFrame()
    rows = table[name].combine_chunks().flatten()
    frame: pd.DataFrame = pa.Table.from_struct_array(rows).to_pandas()
    return frame


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own; anything else as the page writes it."""
    return value.item() if hasattr(value, "item") else str(value)
