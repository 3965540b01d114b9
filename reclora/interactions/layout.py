"""This file is how a log is laid out on disk: one sorted Parquet file, its id maps, its summary."""

import glob
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reclora.files import fsync, make_folder, sha256_of, write_text
from reclora.interactions.contract import LogContract, LogError, LogFile, check_files
from reclora.interactions.ids import IdMap
from reclora.interactions.reading import BATCH_ROWS, Quarantine, read_rows
from reclora.interactions.summary import SUMMARY, LogSummary
from reclora.interactions.workplace import locked, sorting_database, workplace

LOG = "log.parquet"
DECLINED = "declined.parquet"
USER_IDS = "user_ids.parquet"
ITEM_IDS = "item_ids.parquet"
QUARANTINE = "quarantine.parquet"
REFUSED = "refused.parquet"
STAGED = "staged.parquet"

GROUP_ROWS = 1 << 20
SORT_KEYS = ("segment", "timestamp", "user_id", "item_id", "label", "weight")

Progress = Callable[[int, int], None]


def prepare_log(
    files: Path | str | Sequence[Path | str],
    folder: Path | str,
    contract: LogContract,
    *,
    memory_limit: str = "2GB",
    progress: Progress | None = None,
) -> LogSummary:
    """Check a log, drop duplicates and lay it out by segment and time in `folder`.

    Writes log.parquet (sorted by segment, timestamp, user_id, item_id, label, weight, attributes),
    user_ids.parquet and item_ids.parquet (the distinct ids, ascending), quarantine.parquet (rows
    that break the contract: file, row, column, reason, value) and, last, summary.json, whose
    presence says that all is complete. With the contract's `declined = "keep"` also
    declined.parquet: the rows below `min_label` of users and items that the log has, in its order
    and by its rule for duplicates; the log and the id maps are what they are without it. Neither
    the order of files nor that of rows changes a byte of them. Logs larger than memory are sorted
    on disk, inside `folder`: about three times the log's size must be free there.

    Where `folder` already holds the result for inputs of the same sha256s and the same contract,
    that is returned and nothing is written; remove summary.json to have it made anew.

    Args:
        files: Parquet files that keep the contract (see `reclora.interactions.contract`), or one.
        folder: made if missing. A run that fails leaves the result that is there as it is.
        contract: what is declared about the log.
        memory_limit: what the sort may use, such as "500MB"; beside it a row group is held.
        progress: called with (done, total), both in rows: each is read, then written.

    Raises:
        LogError: a file, or too many rows, break the contract. In the latter case refused.parquet
            lists the rows, as quarantine.parquet does. Or another run is at work in `folder`.
        OSError: the disk is full, or a file cannot be written; what was there before still is.
    """
    now = time.time()
    # One path is not a sequence of files, though a string is one of letters.
    paths = [Path(file) for file in ([files] if isinstance(files, Path | str) else files)]
    folder = Path(folder)
    checked = check_files(paths, contract, now=now)
    inputs = {str(file.path): sha256_of(file.path) for file in checked}
    make_folder(folder)
    with locked(folder):
        stored = _reusable(folder, contract, inputs)
        if stored is not None:
            return stored
        with workplace(folder) as work, sorting_database(work, memory_limit) as database:
            report = progress or _silent
            staged = _stage(checked, work, contract, now, report)
            written = _write_log(checked, work, contract, database, report)
            users = _write_ids("user_id", work, USER_IDS, database)
            items = _write_ids("item_id", work, ITEM_IDS, database)
            declined = 0
            if contract.declined == "keep":
                declined = _write_declined(checked, work, contract, database)
            summary = LogSummary(
                contract=contract,
                rows_read=sum(file.rows for file in checked),
                rows_kept=written.rows,
                quarantined=dict(staged.quarantined),
                duplicates=staged.rows - written.rows,
                below_min_label=staged.below,
                users=users,
                items=items,
                segments={
                    name: written.segments[name] for name in sorted(staged.segments, key=str.encode)
                },
                first=written.first,
                last=written.last,
                inputs=inputs,
                declined=declined,
            )
            _publish(work, summary)
    return summary


@dataclass
class _Written:
    """What is known of the laid-out log once it is written."""

    rows: int = 0
    segments: Counter[str] = field(default_factory=Counter)
    first: str = ""
    last: str = ""

    def add(self, rows: pa.Table) -> None:
        """Count rows that follow, in the log's order, those counted before."""
        self.rows += rows.num_rows
        for count in pc.value_counts(rows["segment"]).to_pylist():
            self.segments[count["values"]] += count["counts"]
        times = pc.min_max(rows["timestamp"]).as_py()
        first, last = times["min"].isoformat(), times["max"].isoformat()
        self.first = min(self.first or first, first)
        self.last = max(self.last, last)


@dataclass
class _Staged:
    """What came of the rows that were read."""

    quarantined: Counter[str]
    below: int = 0
    """Rows below the minimal label."""
    rows: int = 0
    """Rows written that are not below it."""
    segments: set[str] = field(default_factory=set)
    """Also those of which every row is below the minimal label."""

    def add(self, batch: pa.RecordBatch, positive: pa.RecordBatch) -> None:
        """Count the rows of a batch that keep the contract, and those of them for the log."""
        self.below += batch.num_rows - positive.num_rows
        self.rows += positive.num_rows
        self.segments.update(pc.unique(batch["segment"]).to_pylist())


def _stage(
    files: Sequence[LogFile], work: Path, contract: LogContract, now: float, progress: Progress
) -> _Staged:
    """Write the rows that keep the contract to work/staged.parquet, as they come."""
    total = sum(file.rows for file in files)
    done = 0
    with (
        Quarantine(work / QUARANTINE) as quarantine,
        pq.ParquetWriter(work / STAGED, _schema(files[0], pa.int64()), compression="lz4") as writer,
    ):
        staged = _Staged(quarantine.counts)
        for file in files:
            for rows, batch in read_rows(file, quarantine, now=now):
                positive = batch
                if contract.min_label is not None:
                    positive = batch.filter(pc.greater_equal(batch["label"], contract.min_label))
                writer.write_batch(batch if contract.declined == "keep" else positive)
                staged.add(batch, positive)
                done += rows
                progress(done, 2 * total)
    try:
        quarantine.check(contract.max_quarantined, total, work.parent / REFUSED, now)
    except LogError:
        fsync(work / QUARANTINE)
        os.replace(work / QUARANTINE, work.parent / REFUSED)
        fsync(work.parent)
        raise
    return staged


def _schema(file: LogFile, time: pa.DataType) -> pa.Schema:
    kinds = {"string": pa.large_string(), "integer": pa.int64(), "number": pa.float64()}
    types = {
        name: kinds.get(file.kinds[name]) if name in SORT_KEYS else pa.large_string()
        for name in file.columns
    }
    return pa.schema({**types, "timestamp": time})


def _write_log(
    files: Sequence[LogFile],
    work: Path,
    contract: LogContract,
    database: duckdb.DuckDBPyConnection,
    progress: Progress,
) -> _Written:
    """Merge duplicates of the staged rows, sort them and write work/log.parquet."""
    total = sum(file.rows for file in files)
    written = _Written()
    chosen = f"label >= {_number(contract)}" if contract.declined == "keep" else "true"
    for rows in _write_sorted(work / LOG, chosen, files[0], contract, database):
        written.add(rows)
        progress(total + written.rows, 2 * total)
    progress(2 * total, 2 * total)
    return written


def _write_declined(
    files: Sequence[LogFile],
    work: Path,
    contract: LogContract,
    database: duckdb.DuckDBPyConnection,
) -> int:
    """Write those of the staged rows that were declined, of users and items that the log has."""
    chosen = f"label < {_number(contract)}" + "".join(
        f" and {column} in (select {column} from {_parquet(work / LOG)})"
        for column in ("user_id", "item_id")
    )
    parts = _write_sorted(work / DECLINED, chosen, files[0], contract, database)
    return sum(rows.num_rows for rows in parts)


def _number(contract: LogContract) -> str:
    """Return the minimal label as SQL writes it, to the last bit."""
    return f"'{contract.min_label!r}'::double"


def _write_sorted(
    path: Path,
    chosen: str,
    file: LogFile,
    contract: LogContract,
    database: duckdb.DuckDBPyConnection,
) -> Iterator[pa.Table]:
    """Write the staged rows that are `chosen`, without duplicates and sorted; yield each group."""
    schema = _schema(file, pa.timestamp("us", "UTC"))
    query = _sorting(schema.names, contract, path.parent, chosen)
    sorted_rows = database.sql(query).to_arrow_reader(BATCH_ROWS)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for rows in _groups(sorted_rows):
            rows = rows.cast(schema).combine_chunks()
            writer.write_table(rows, row_group_size=GROUP_ROWS)
            yield rows


def _sorting(columns: Sequence[str], contract: LogContract, work: Path, chosen: str) -> str:
    """Return the query for some staged rows: one of each set of duplicates, in the log's order."""
    keys = ["segment", "user_id", "item_id"]
    if contract.duplicates == "exact":
        keys.append("timestamp")
    ordered = [name for name in (*SORT_KEYS, *contract.attributes) if name in columns]
    rest = [name for name in ordered if name not in keys]
    # The least of a struct is least by its first field, then by its second: the earliest row.
    fields = ", ".join(f"{_quoted(name)}: {_quoted(name)}" for name in rest)
    least = f", unnest(min({{{fields}}}))" if rest else ""
    grouped = (
        f"select {', '.join(keys)}{least} from {_parquet(work / STAGED)} where {chosen} "
        f"group by {', '.join(keys)}"
    )
    names, order = (", ".join(map(_quoted, each)) for each in (columns, ordered))
    return f"select {names} from ({grouped}) order by {order}"


def _quoted(name: str) -> str:
    """Return the name of a column as SQL writes it, whatever characters are in it."""
    return '"' + name.replace('"', '""') + '"'


def _parquet(path: Path) -> str:
    """Return the SQL that reads exactly the file at `path`, whatever characters are in it."""
    return "read_parquet('" + glob.escape(str(path)).replace("'", "''") + "')"


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Cut a stream into row groups of one size, so that the file does not depend on its batches."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= GROUP_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table[:GROUP_ROWS]
            waiting = table[GROUP_ROWS:].to_batches()
            rows -= GROUP_ROWS
    if rows:
        yield pa.Table.from_batches(waiting)


def _write_ids(column: str, work: Path, name: str, database: duckdb.DuckDBPyConnection) -> int:
    """Write the distinct ids of the laid-out log in ascending order; return how many they are."""
    query = f"select distinct {column} from {_parquet(work / LOG)} order by {column}"
    ids = IdMap(database.sql(query).to_arrow_table()[column])
    ids.write(work / name)
    return len(ids)


def _publish(work: Path, summary: LogSummary) -> None:
    """Move the finished files to their names; the old summary goes first, the new comes last."""
    folder = work.parent
    write_text(work / SUMMARY, summary.to_json())
    (folder / SUMMARY).unlink(missing_ok=True)
    fsync(folder)
    for name in _files(summary.contract):
        fsync(work / name)
        os.replace(work / name, folder / name)
    if summary.contract.declined == "drop":
        (folder / DECLINED).unlink(missing_ok=True)
    (folder / REFUSED).unlink(missing_ok=True)
    fsync(folder)
    os.replace(work / SUMMARY, folder / SUMMARY)
    fsync(folder)


def _reusable(folder: Path, contract: LogContract, inputs: dict[str, str]) -> LogSummary | None:
    try:
        stored = LogSummary.read(folder)
    except LogError:
        return None
    same = sorted(stored.inputs.values()) == sorted(inputs.values())
    whole = all((folder / name).is_file() for name in _files(contract))
    return stored if same and whole and stored.contract == contract else None


def _files(contract: LogContract) -> tuple[str, ...]:
    kept = (DECLINED,) if contract.declined == "keep" else ()
    return (LOG, *kept, USER_IDS, ITEM_IDS, QUARANTINE)


def _silent(done: int, total: int) -> None:
    pass
