"""This file is the reading of a log in batches: a row is kept, or quarantined with a reason."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reclora.interactions.contract import (
    EARLIEST,
    NO_VALUE,
    OPTIONAL,
    PER_SECOND,
    REQUIRED,
    TOLERANCE,
    LogError,
    LogFile,
    plausible_unit,
)

BATCH_ROWS = 1 << 17
QUARANTINE_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)
TOO_EARLY = "timestamp is before 1990"
TOO_LATE = "timestamp is more than a day in the future"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Fault:
    """Rows of one batch that break the contract in one way."""

    column: str
    reason: str
    rows: Mask


@dataclass
class OutOfRange:
    """Timestamps of one file that no log has; many of them mean that the unit is wrong."""

    file: LogFile
    typical: int
    rows: int = 0

    def hint(self, now: float) -> str:
        """Say what is wrong, with the unit that would fit."""
        unit = plausible_unit(self.typical, now)
        remedy = "they fit no unit: write moments of 1990 and later"
        if unit:
            is_declared = self.file.kinds["timestamp"] == "integer"
            remedy = f"they look like {unit!r}: " + (
                f"set time_unit = {unit!r}" if is_declared else "write them in that unit"
            )
        return (
            f"{self.file.path}: {self.rows:,} of {self.file.rows:,} timestamps are out of range in "
            f"{self.file.time_unit!r}; {remedy}"
        )


class Quarantine:
    """The rows that break the contract: counted by reason, and listed in a Parquet file.

    The file has the columns file, row (from 0 in that file), column, reason, value.
    """

    def __init__(self, path: Path) -> None:
        """Open the list at `path`; leaving the `with` block closes it."""
        self.counts: Counter[str] = Counter()
        self._first = ""
        self._times: dict[Path, OutOfRange] = {}
        self._writer = pq.ParquetWriter(
            path, QUARANTINE_SCHEMA, compression="zstd", write_page_checksum=True
        )

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def add(self, file: LogFile, start: int, batch: pa.RecordBatch, faults: list[Fault]) -> Mask:
        """List the faulty rows of a batch, each with its first fault; return which they are.

        Args:
            file: the file that the batch is of.
            start: position in it of the batch's first row.
            batch: the rows, decoded.
            faults: masks over its rows, in the order of the contract's columns.
        """
        faulty = np.zeros(batch.num_rows, np.bool_)
        parts = []
        for fault in faults:
            rows = np.flatnonzero(fault.rows & ~faulty)
            faulty |= fault.rows
            if not rows.size:
                continue
            self.counts[fault.reason] += rows.size
            values = batch[fault.column].take(pa.array(rows))
            parts.append(_listed(file, start + rows, fault, values))
            if fault.reason in (TOO_EARLY, TOO_LATE):
                typical = int(np.median(np.asarray(values)))
                self._times.setdefault(file.path, OutOfRange(file, typical)).rows += rows.size
        if parts:
            table = pa.concat_tables(parts).sort_by("row")
            self._writer.write_table(table)
            self._first = self._first or _in_words(table.slice(0, 1).to_pylist()[0])
        return faulty

    def check(self, limit: float, rows: int, path: Path, now: float) -> None:
        """Stop the run where more than the share `limit` of all `rows` is quarantined.

        Raises:
            LogError: naming the first faulty row, the counts by reason and the list's `path`.
        """
        if self.counts.total() <= limit * rows:
            return
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in self.counts.most_common())
        mostly = [times for times in self._times.values() if times.rows > times.file.rows / 2]
        lines = [
            f"{self.counts.total():,} of {rows:,} rows break the log's contract; "
            f"max_quarantined={limit:g} allows {int(limit * rows):,}",
            f"first: {self._first}",
            f"by reason: {counts}",
            *(times.hint(now) for times in mostly),
            f"all are listed in {path}; mend them, or raise max_quarantined of the log's contract",
        ]
        raise LogError("\n".join(lines))


def read_rows(
    file: LogFile, quarantine: Quarantine, *, now: float
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches of the rows that keep the contract, each after the number of rows read for it.

    Their columns: user_id and item_id (`large_string` or `int64`), timestamp (`int64`, microseconds
    since 1970-01-01 UTC), segment (`large_string`), label and weight (`float64`) where the file has
    them, attributes (`large_string`). At no time more than a batch is held.

    Args:
        file: a file that `check_files` passed.
        quarantine: takes the other rows.
        now: seconds since 1970, by which a time is in the future.

    Raises:
        LogError: the file is damaged; where it holds page checksums, they are verified.
    """
    start = 0
    for stored in _stored_batches(file):
        batch = _decoded(stored)
        faults = [fault for name in file.columns for fault in _faults(batch, name, file, now)]
        faulty = quarantine.add(file, start, batch, faults)
        start += batch.num_rows
        yield batch.num_rows, _canonical(batch.filter(pa.array(~faulty)), file)


def _stored_batches(file: LogFile) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(
            file.path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False
        ) as parquet:
            rows = 0
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(file.columns)):
                yield batch
                rows += batch.num_rows
        # Page headers have no checksum: a flipped bit there can hide rows.
        if rows != file.rows:
            raise LogError(f"{file.path}: damaged: expected {file.rows:,} rows, got {rows:,}")
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"{file.path}: damaged: {error}") from error


def _decoded(stored: pa.RecordBatch) -> pa.RecordBatch:
    """Return strings as `large_string`, times as integers, numbers as `float64`; nulls stay."""
    columns = {}
    for name, column in zip(stored.schema.names, stored.columns, strict=True):
        if name in ("label", "weight"):
            column = column.cast(pa.float64(), safe=False)
        elif name not in (*REQUIRED, *OPTIONAL):
            column = column.cast(pa.large_string()).fill_null(NO_VALUE)
        elif pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        elif not pa.types.is_integer(column.type):
            column = column.cast(pa.large_string())
        columns[name] = column
    return pa.record_batch(columns)


def _faults(batch: pa.RecordBatch, name: str, file: LogFile, now: float) -> Iterator[Fault]:
    """Yield what can be wrong with the column `name`, and in which rows it is."""
    column = batch[name]
    yield Fault(name, f"{name} is null", _mask(column.is_null()))
    if name == "timestamp":
        per_second = PER_SECOND[file.time_unit]
        yield Fault(name, TOO_EARLY, _mask(pc.less(column, EARLIEST * per_second)))
        latest = int((now + TOLERANCE) * per_second)
        yield Fault(name, TOO_LATE, _mask(pc.greater(column, latest)))
    elif pa.types.is_floating(column.type):
        yield Fault(name, f"{name} is NaN", _mask(pc.is_nan(column)))
        yield Fault(name, f"{name} is infinite", _mask(pc.is_inf(column)))
        if name == "weight":
            yield Fault(name, "weight is negative", _mask(pc.less(column, 0.0)))
    elif pa.types.is_integer(column.type):
        beyond = pc.greater(column, pa.scalar(2**63 - 1, pa.uint64()))
        yield Fault(name, f"{name} is above 2**63 - 1", _mask(beyond))
    else:
        if name in REQUIRED:
            yield Fault(name, f"{name} is empty", _mask(pc.equal(pc.binary_length(column), 0)))
        yield Fault(name, f"{name} is not UTF-8", _not_utf8(column))


def _mask(condition: pa.BooleanArray) -> Mask:
    return np.asarray(condition.fill_null(False))


def _not_utf8(column: pa.LargeStringArray) -> Mask:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.view(pa.large_binary()).to_pylist()
        return np.array([not _is_utf8(value or b"") for value in values], np.bool_)
    return np.zeros(len(column), np.bool_)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _canonical(batch: pa.RecordBatch, file: LogFile) -> pa.RecordBatch:
    columns = {}
    for name in file.columns:
        column = batch[name]
        if pa.types.is_integer(column.type):
            column = column.cast(pa.int64())
        if name == "timestamp":
            column = microseconds(column, file.time_unit)
        if pa.types.is_floating(column.type):
            # -0.0 equals 0.0, so which of two duplicates stays would be left to chance.
            column = pc.add(column, 0.0)
        columns[name] = column
    return pa.record_batch(columns)


def microseconds(times: pa.Int64Array, unit: str) -> pa.Int64Array:
    """Times of a unit of `PER_SECOND` as microseconds; parts of one are cut off."""
    per_second = PER_SECOND[unit]
    if per_second > 10**6:
        return pc.divide(times, per_second // 10**6)
    return pc.multiply(times, 10**6 // per_second)


def _listed(file: LogFile, rows: NDArray[np.int64], fault: Fault, values: pa.Array) -> pa.Table:
    if pa.types.is_large_string(values.type):
        stored = values.view(pa.large_binary()).to_pylist()
        values = pa.array(
            [None if one is None else one.decode(errors="replace") for one in stored], pa.string()
        )
    columns = [
        pa.repeat(str(file.path), len(rows)),
        pa.array(rows),
        pa.repeat(fault.column, len(rows)),
        pa.repeat(fault.reason, len(rows)),
        values.cast(pa.string()),
    ]
    return pa.table(columns, schema=QUARANTINE_SCHEMA)


def _in_words(row: dict[str, str | int | None]) -> str:
    value = "" if row["value"] is None else f" ({row['value']!r})"
    return f"{row['file']}, row {row['row']:,}, column {row['column']!r}: {row['reason']}{value}"
