"""This file is how XMarket becomes an interaction log: one file a market, a market a segment.

Source: H. Bonab, M. Aliannejadi, A. Vardasbi, E. Kanoulas and J. Allan, "Cross-Market Product
Recommendation", CIKM 2021. Terms, sizes and caveats stand in the data card, README.md beside this
file.
"""

import gzip
import re
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from reclora.files import make_folder, write_parquet

_NAME = re.compile(r"(?P<market>.+)_5core\.txt(\.gz)?")
_HEADER = "userId itemId rate date"
_TYPES = {
    "userId": pa.string(),
    "itemId": pa.string(),
    "rate": pa.float64(),
    "date": pa.date32(),
}


class XMarketError(ValueError):
    """A file of XMarket is missing, damaged or malformed."""


def read(folder: Path) -> pa.Table:
    """Read all markets in `folder` as interactions, one row a review.

    A market is a file `MARKET_5core.txt`, plain or gzipped (`.gz`), as published: the header
    `userId itemId rate date`, then a line a review, separated by single spaces. Other files are
    left alone. The rate, 1 to 5 stars, is checked and not kept: who reviews has bought. A user may
    review an item again, on the same day too; all rows stay.

    Returns:
        Columns user_id (string), item_id (string), timestamp (microseconds; the date's midnight,
        UTC) and segment (string: the market, from the file's name, in lower case), sorted by
        timestamp, segment, user_id and item_id.

    Raises:
        XMarketError: there is no market, or one twice; a file is damaged, has another header or no
            reviews; or a line is malformed (its file and number are named).
    """
    markets = [_read_market(path, market) for market, path in _markets(folder).items()]
    return pa.concat_tables(markets).sort_by(
        [(name, "ascending") for name in ("timestamp", "segment", "user_id", "item_id")]
    )


def write_log(folder: Path, out: Path) -> Path:
    """Write what `read` gives to the Parquet file `out`, whole or not at all; return `out`.

    Raises:
        XMarketError: as `read`.
        OSError: `out` cannot be written.
    """
    table = read(folder)
    make_folder(out.parent)
    write_parquet(out, table)
    return out


def _markets(folder: Path) -> dict[str, Path]:
    """Return the file of each market, the markets in order of their names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*_5core.txt*")):
        name = _NAME.fullmatch(path.name)
        if name is None or not path.is_file():
            continue
        market = name["market"].lower()  # As published.
        twin = found.setdefault(market, path)
        if twin != path:
            raise XMarketError(
                f"expected one file a market in {folder}, found {twin.name} and {path.name}; "
                "leave one of them there"
            )
    if not found:
        raise XMarketError(
            f"expected files of markets in {folder}, such as de_5core.txt or de_5core.txt.gz, "
            "found none of them"
        )
    return found


def _read_market(path: Path, market: str) -> pa.Table:
    reviews = _read_lines(path)
    rate = reviews["rate"]
    _require(path, pc.not_equal(reviews["userId"], ""), "a user")
    _require(path, pc.not_equal(reviews["itemId"], ""), "an item")
    in_stars = pc.and_(pc.greater_equal(rate, 1), pc.less_equal(rate, 5))
    _require(path, in_stars, "a rate from 1 to 5")
    return pa.table(
        {
            "user_id": reviews["userId"],
            "item_id": reviews["itemId"],
            "timestamp": reviews["date"].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            "segment": pa.repeat(market, reviews.num_rows),
        }
    )


def _read_lines(path: Path) -> pa.Table:
    """Read one file strictly: every line has every column, and each value its type."""
    header, _, lines = _unpacked(path).partition(b"\n")
    found = header.rstrip(b"\r").decode("utf-8", "replace")
    if found != _HEADER:
        raise XMarketError(f"{path}:1: expected the header {_HEADER!r}, got {found!r}")
    if not lines:
        raise XMarketError(f"{path}: expected reviews, found none")
    try:
        return csv.read_csv(
            pa.py_buffer(lines),
            # One thread: only then do Arrow's messages number the row.
            csv.ReadOptions(use_threads=False, column_names=list(_TYPES)),
            csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types=_TYPES, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        row = re.search(r"Row #(\d+): (.*)", str(error), re.DOTALL)
        line, why = (int(row[1]) + 1, row[2]) if row else ("?", error)
        raise XMarketError(f"{path}:{line}: malformed line, expected {_HEADER!r}: {why}") from error


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise XMarketError(f"{path}: not a whole gzip file ({error}); get it anew") from error


def _require(path: Path, holds: pa.ChunkedArray, expected: str) -> None:
    """Raise, with the line's number, where a line of `path` does not hold what is expected."""
    row = pc.index(holds, False).as_py()
    if row >= 0:
        raise XMarketError(f"{path}:{row + 2}: malformed line, expected {expected}")
