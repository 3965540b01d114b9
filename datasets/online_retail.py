"""This file is how UCI's Online Retail becomes an interaction log: cleaned, a country a segment.

Source: D. Chen, S. L. Sain and K. Guo, "Data mining for the online retail industry: A case study of
RFM model-based customer segmentation using data mining", Journal of Database Marketing & Customer
Strategy Management 19(3), 2012. Terms, sizes and caveats stand in the data card, README.md beside
this file.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from reclora.files import make_folder, write_parquet

_NAMES = tuple(
    stem + suffix
    for stem in ("Online Retail", "online_retail")
    for suffix in (".xlsx", ".csv", ".parquet")
)
_TEXTS = ("Description", "Country")
_COLUMNS = (*_TEXTS, "CustomerID", "Quantity", "UnitPrice", "InvoiceDate")
# What pandas writes, and what tables passed on as text have: month/day/year.
_TIMES = ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M")
_EXACT = 2**53


class OnlineRetailError(ValueError):
    """The table of Online Retail is missing, damaged or malformed."""


def read(folder: Path) -> pa.Table:
    """Read the table in `folder` as interactions, one row a line of an invoice.

    The table is `Online Retail.xlsx` as published, or the same as `.csv` (UTF-8, separated by
    commas, times as 2010-12-01 08:26:00 or 12/1/2010 8:26) or `.parquet`, also under the name
    `online_retail`. Of its columns Description, Quantity, InvoiceDate, UnitPrice, CustomerID and
    Country are used; others are not looked at. The usual cleaning keeps the rows with a customer, a
    Quantity above 0 (cancellations have one below) and a UnitPrice above 0, and, so that each has
    an item, a Description.

    An item is its Description without white space at the ends, also where there is a StockCode:
    the table is passed on without codes too, and both must give the same log.

    Returns:
        Columns user_id (int64: the CustomerID), item_id (string), timestamp (microseconds; the
        shop's local time, taken as UTC) and segment (string: the Country), sorted by timestamp,
        user_id, item_id and segment. Repeats stay.

    Raises:
        OnlineRetailError: there is no table, or several; it is damaged, lacks a column or has it
            twice; a value is malformed (its row is named, as a spreadsheet counts: the header is
            row 1; in Parquet the first row is 1); no row is left; or openpyxl is not installed and
            the table is an .xlsx.
    """
    path = _path_of(folder)
    table = _READERS[path.suffix](path)
    times = _times(path, table["InvoiceDate"])
    users = _numbers(path, table["CustomerID"], whole=True)
    quantities = _numbers(path, table["Quantity"], whole=True)
    prices = _numbers(path, table["UnitPrice"], whole=False)
    items, countries = (table[name].astype("str").str.strip() for name in _TEXTS)
    for values in (times, quantities, prices, countries.where(countries != "")):
        _require(path, values, values.notna(), "a value")
    bought = users.notna() & (quantities > 0) & (prices > 0) & items.notna() & (items != "")
    if not bought.any():
        raise OnlineRetailError(
            f"{path}: expected rows with a CustomerID, a Description, and a Quantity and a "
            f"UnitPrice above 0, found none among {len(table)}"
        )
    utc = times[bought].dt.as_unit("us").dt.tz_localize("UTC")
    return pa.table(
        {
            "user_id": pa.array(users[bought].astype("int64"), pa.int64()),
            "item_id": pa.array(items[bought], pa.string()),
            "timestamp": pa.array(utc, pa.timestamp("us", "UTC")),
            "segment": pa.array(countries[bought], pa.string()),
        }
    ).sort_by([(name, "ascending") for name in ("timestamp", "user_id", "item_id", "segment")])


def write_log(folder: Path, out: Path) -> Path:
    """Write what `read` gives to the Parquet file `out`, whole or not at all; return `out`.

    Raises:
        OnlineRetailError: as `read`.
        OSError: `out` cannot be written.
    """
    table = read(folder)
    make_folder(out.parent)
    write_parquet(out, table)
    return out


def _path_of(folder: Path) -> Path:
    found = [name for name in _NAMES if (folder / name).is_file()]
    if len(found) == 1:
        return folder / found[0]
    if not found:
        known = ", ".join(_NAMES)
        raise OnlineRetailError(f"expected one of {known} in {folder}, found none of them")
    raise OnlineRetailError(
        f"expected one table in {folder}, found {' and '.join(found)}; leave one of them there"
    )


def _read_xlsx(path: Path) -> pd.DataFrame:
    try:
        # Without a header: pandas would rename the second of two columns of one name.
        rows = pd.read_excel(
            path,
            header=None,
            dtype=object,
            keep_default_na=False,
            na_values=[""],
            engine="openpyxl",
        )
    except ImportError as error:
        raise OnlineRetailError(
            f"{path}: expected openpyxl to read it with; pip install openpyxl"
        ) from error
    except Exception as error:  # openpyxl raises whatever it stumbles over in a damaged file.
        raise OnlineRetailError(f"{path}: not a whole .xlsx file: {error}") from error
    header = [str(name) for name in rows.iloc[0]] if len(rows) else []
    _check_columns(path, header)
    rows.columns = pd.Index(header)
    return rows.iloc[1:].reset_index(drop=True)


def _read_csv(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    # One thread: only then do Arrow's messages number the row.
    alone = csv.ReadOptions(use_threads=False)
    try:
        header = b"".join(data.partition(b"\n")[:2])
        _check_columns(path, csv.read_csv(pa.py_buffer(header), alone).column_names)
        table = csv.read_csv(
            pa.py_buffer(data),
            alone,
            csv.ParseOptions(ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types=dict.fromkeys(_COLUMNS, pa.string()),
                include_columns=_COLUMNS,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        row = re.search(r"Row #(\d+): (.*)", str(error), re.DOTALL)
        where, why = (f"{path}: row {row[1]}", row[2]) if row else (path, error)
        raise OnlineRetailError(f"{where}: expected a table in UTF-8 and commas: {why}") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        _check_columns(path, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise OnlineRetailError(f"{path}: not a whole Parquet file: {error}") from error
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return frame


_READERS = {".xlsx": _read_xlsx, ".csv": _read_csv, ".parquet": _read_parquet}


def _check_columns(path: Path, found: list[str]) -> None:
    for name in _COLUMNS:
        if found.count(name) != 1:
            raise OnlineRetailError(
                f"{path}: expected the column {name!r} once, got {found.count(name)} of it among "
                f"{', '.join(map(repr, found))}"
            )


def _numbers(path: Path, column: pd.Series, *, whole: bool) -> pd.Series:
    """Return the numbers of a column as floats, NaN where there is none."""
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    sound = numbers.abs() < _EXACT
    if whole:
        sound &= numbers % 1 == 0
    expected = "a whole number" if whole else "a number"
    _require(path, column, sound | column.isna(), expected)
    return numbers


def _times(path: Path, column: pd.Series) -> pd.Series:
    """Return the times of a column, without a zone, NaT where there is none."""
    if pd.api.types.is_datetime64_dtype(column.dtype):
        return column
    text = column.astype("str")
    first, second = (pd.to_datetime(text, format=form, errors="coerce") for form in _TIMES)
    times: pd.Series = first.fillna(second)
    _require(path, column, column.isna() | times.notna(), "a time such as 2010-12-01 08:26:00")
    return times


def _require(path: Path, column: pd.Series, holds: pd.Series, expected: str) -> None:
    """Raise, with the row, where a column does not hold what is expected."""
    if not holds.all():
        row = int(np.argmin(holds.to_numpy()))
        found = "nothing" if pd.isna(column.iloc[row]) else repr(column.iloc[row])
        number = row + (1 if path.suffix == ".parquet" else 2)
        raise OnlineRetailError(
            f"{path}: row {number}: expected {expected} in {column.name}, got {found}"
        )
