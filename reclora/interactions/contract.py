"""This file is the contract of an interaction log, checked before a row is read.

| column | Parquet type | |
|---|---|---|
| `user_id`, `item_id` | string or any integer | not null, not empty |
| `timestamp` | timestamp (UTC if without zone), or integer with `time_unit` | 1990 to tomorrow |
| `segment` | string | not null, not empty |
| `label` (may be missing) | any float or integer | finite |
| `weight` (may be missing) | any float or integer | finite, not negative |

A weight counts in training, against the mean weight of its segment; evaluation ignores it.

A string may be stored as a dictionary of strings. Other columns are ignored, but for those that
the contract names as attributes: strings, integers or booleans, kept as strings, a null as
"(none)". All files of a log must agree in this.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

TimeUnit = Literal["s", "ms", "us", "ns"]
Duplicates = Literal["first", "exact"]
Declined = Literal["drop", "keep"]

REQUIRED = ("user_id", "item_id", "timestamp", "segment")
OPTIONAL = ("label", "weight")
NO_VALUE = "(none)"
"""What an attribute of a row is that has none."""

PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
EARLIEST = 631_152_000
"""1990-01-01 in seconds: no interaction log is older; times in a wrong unit nearly always are."""
TOLERANCE = 86_400
"""Seconds that a clock may be ahead of ours: a day, which also covers local time taken for UTC."""


class LogError(ValueError):
    """An interaction log breaks its contract; the message names file, column and row."""


@dataclass(frozen=True)
class LogContract:
    """What the caller declares about a log, and what shall be done with its rows."""

    time_unit: TimeUnit | None = None
    """Unit of an integer `timestamp`, counted from 1970-01-01 UTC; not set for Parquet
    timestamps."""
    duplicates: Duplicates = "first"
    """What is merged into the earliest row: "first" all rows of one (segment, user, item), "exact"
    only those of one (segment, user, item, timestamp). Of equal times the lowest label, then the
    lowest weight, stays."""
    min_label: float | None = None
    """Rows with a label below it are no positive interaction: dropped and counted. Not set, all
    rows are kept."""
    declined: Declined = "drop"
    """What becomes of the rows below `min_label`: "drop", or "keep" them beside the log, for
    pretraining with loss = "bce". They count for nothing else: not as seen, relevant or popular."""
    max_quarantined: float = 0.01
    """Share of the rows read, 0 to 1, that may break the contract; above it the run stops."""
    attributes: tuple[str, ...] = ()
    """Names of further columns that are kept: what results can be sliced by."""

    def __post_init__(self) -> None:
        if self.time_unit not in (None, *PER_SECOND):
            raise ValueError(
                f"time_unit must be one of s, ms, us, ns, or be left out, got {self.time_unit!r}"
            )
        if self.duplicates not in get_args(Duplicates):
            raise ValueError(f"duplicates must be 'first' or 'exact', got {self.duplicates!r}")
        if self.min_label is not None and not abs(self.min_label) < float("inf"):
            raise ValueError(
                f"min_label must be a finite number, or be left out, got {self.min_label}"
            )
        if self.declined not in get_args(Declined):
            raise ValueError(f"declined must be 'drop' or 'keep', got {self.declined!r}")
        if self.declined == "keep" and self.min_label is None:
            raise ValueError(
                "declined = 'keep' keeps the rows below min_label, and there is none: give "
                "min_label, such as 1"
            )
        if not 0 <= self.max_quarantined <= 1:
            raise ValueError(f"max_quarantined must be in 0..1, got {self.max_quarantined}")
        own, folded = {"", *REQUIRED, *OPTIONAL}, {name.casefold() for name in self.attributes}
        if own & folded or len(folded) < len(self.attributes):
            raise ValueError(
                "attributes must be names of columns that differ in more than case, beside "
                f"{', '.join((*REQUIRED, *OPTIONAL))}, got {list(self.attributes)}"
            )


@dataclass(frozen=True)
class LogFile:
    """One file that keeps the contract."""

    path: Path
    rows: int
    kinds: dict[str, str]
    """Column of the contract -> what must agree between files, such as "integer" or
    "timestamp[ms] with zone"; in the contract's order."""
    time_unit: str
    """Unit of its timestamps as stored."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the contract that the file has."""
        return tuple(self.kinds)


def check_files(files: Sequence[Path], contract: LogContract, *, now: float) -> list[LogFile]:
    """Read the footers of all files and check names and types of their columns.

    Args:
        files: Parquet files, each named once.
        contract: what they must keep.
        now: seconds since 1970, by which a missing time unit is guessed for the error.

    Raises:
        LogError: naming every bad file at once, what was found and what was wanted.
    """
    if not files:
        raise LogError("no files were given; expected at least one Parquet file")
    problems = [f"{path}: given twice" for path in sorted({p for p in files if files.count(p) > 1})]
    good = []
    for path in files:
        try:
            good.append(_check_file(path, contract, now))
        except LogError as error:
            problems.append(str(error))
    problems += [line for file in good for line in _disagreements(file, good[0])]
    if problems:
        raise LogError("\n".join(["the log breaks its contract:", *problems]))
    return good


def plausible_unit(value: int, now: float) -> str | None:
    """Return the unit in which an integer time lies between 1990 and `now`, or None."""
    for unit, per_second in PER_SECOND.items():
        if EARLIEST <= value / per_second <= now + TOLERANCE:
            return unit
    return None


def _check_file(path: Path, contract: LogContract, now: float) -> LogFile:
    if path.is_symlink():
        raise LogError(f"{path}: is a symbolic link; name the file that it points to")
    if not path.is_file():
        raise LogError(
            f"{path}: expected a Parquet file, got {'a folder' if path.is_dir() else 'nothing'}"
        )
    try:
        with path.open("rb") as begun:
            # Of a file that lost its beginning the footer alone would still be right.
            if begun.read(4) not in (b"", b"PAR1"):
                raise pa.ArrowInvalid("it does not begin as one")
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except PermissionError:
        raise LogError(f"{path}: it may not be read: permission denied") from None
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"{path}: not a whole Parquet file: {error}") from error
    problems = _name_problems(schema.names, contract)
    kinds = {}
    for name in (*REQUIRED, *OPTIONAL, *contract.attributes):
        if schema.names.count(name) == 1:
            try:
                kinds[name] = _kind(name, schema.field(name).type)
            except LogError as error:
                problems.append(str(error))
    if "timestamp" in kinds:
        problems += _unit_problems(kinds["timestamp"], metadata, contract, now)
    if problems:
        raise LogError("\n".join(f"{path}: {problem}" for problem in problems))
    kind = schema.field("timestamp").type
    time_unit = kind.unit if pa.types.is_timestamp(kind) else str(contract.time_unit)
    return LogFile(path, metadata.num_rows, kinds, time_unit)


def _name_problems(names: Sequence[str], contract: LogContract) -> list[str]:
    problems = []
    wanted = {*REQUIRED, "label"} if contract.min_label is not None else {*REQUIRED}
    for name in (*REQUIRED, *OPTIONAL):
        variants = [one for one in names if one != name and one.strip().casefold() == name]
        if variants:
            problems.append(f"column {variants[0]!r}: rename it to {name!r}")
        elif names.count(name) > 1:
            problems.append(f"column {name!r}: expected once, got {names.count(name)} times")
        elif name in wanted and name not in names:
            found = ", ".join(map(repr, names))
            reason = " (min_label is set)" if name == "label" else ""
            problems.append(f"column {name!r}: missing{reason}; got {found}")
    for name in contract.attributes:
        if names.count(name) != 1:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and name not in names else ""
            problems.append(
                f"column {name!r}, an attribute: expected once, got {names.count(name)} times{hint}"
            )
    return problems


def _kind(name: str, found: pa.DataType) -> str:
    value = found.value_type if pa.types.is_dictionary(found) else found
    string = pa.types.is_string(value) or pa.types.is_large_string(value)
    if name == "segment":
        wanted, kind = "a string", "string" if string else None
    elif name in ("user_id", "item_id"):
        wanted = "a string or an integer"
        kind = "string" if string else "integer" if pa.types.is_integer(found) else None
    elif name not in (*REQUIRED, *OPTIONAL):
        wanted = "a string, an integer or a boolean"
        kind = "string" if string else "integer" if pa.types.is_integer(found) else None
        kind = "boolean" if pa.types.is_boolean(found) else kind
    elif name == "timestamp":
        wanted = "a timestamp or an integer"
        kind = "integer" if pa.types.is_integer(found) else None
        if pa.types.is_timestamp(found):
            kind = f"timestamp[{found.unit}] {'without' if found.tz is None else 'with'} zone"
    else:
        wanted = "a float or an integer"
        kind = "number" if pa.types.is_integer(found) or pa.types.is_floating(found) else None
    if kind is None:
        raise LogError(f"column {name!r}: expected {wanted}, got {found}; {_remedy(name, found)}")
    return kind


def _remedy(name: str, found: pa.DataType) -> str:
    """How a column of a wrong type becomes one of the contract; as pandas says it, where it can."""
    column, whole = f"log[{name!r}]", "astype('int64')"
    if name == "timestamp":
        if pa.types.is_floating(found):
            return f"write whole numbers, {column}.{whole}, and set time_unit"
        return f"write moments, such as pd.to_datetime({column}, utc=True)"
    if name in OPTIONAL:
        if pa.types.is_boolean(found):
            return f"write 1 and 0, {column}.astype('int8')"
        return f"write numbers, such as pd.to_numeric({column})"
    if name in ("user_id", "item_id") and pa.types.is_floating(found):
        return f"write whole numbers as integers, {column}.{whole}, or strings"
    return f"write strings, such as {column}.astype('string')"


def _unit_problems(
    kind: str, metadata: pq.FileMetaData, contract: LogContract, now: float
) -> list[str]:
    if kind == "integer" and contract.time_unit is None:
        likely = _likely_unit(metadata, now)
        hint = f"; its values look like {likely!r}" if likely else ""
        return [
            f"column 'timestamp': an integer without a unit; set time_unit of the "
            f"log's contract{hint} (in a settings file: [log.contract] time_unit)"
        ]
    if kind != "integer" and contract.time_unit is not None:
        return [
            f"column 'timestamp': expected integers of time_unit={contract.time_unit!r}, got "
            f"{kind}, which carries its own unit; leave time_unit out"
        ]
    return []


def _likely_unit(metadata: pq.FileMetaData, now: float) -> str | None:
    """Return the unit that the column statistics suggest, where the file has them."""
    if metadata.num_row_groups == 0:
        return None
    group = metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        statistics = column.statistics if column.path_in_schema == "timestamp" else None
        if statistics is not None and statistics.has_min_max:
            return plausible_unit(statistics.max, now)
    return None


def _disagreements(file: LogFile, first: LogFile) -> list[str]:
    return [
        f"{file.path}: column {name!r}: expected {first.kinds.get(name, 'no such column')} as in "
        f"{first.path}, got {file.kinds.get(name, 'no such column')}; write all files alike"
        for name in dict.fromkeys((*REQUIRED, *OPTIONAL, *file.kinds))
        if file.kinds.get(name) != first.kinds.get(name)
    ]
