"""A plain Parquet table of any other system, column by column; errors name file, column and row."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reclora.files import read_parquet
from reclora.interactions import IdMap
from reclora.interactions.contract import TimeUnit
from reclora.interactions.reading import microseconds

EVERYBODY = "all"
"""The segment of tables without one."""


class ForeignError(ValueError):
    """A table that cannot be read as lists or as a log; the message names file, column and row."""


def parts_of(path: Path) -> list[Path]:
    """The files of a table: itself, or the Parquet files of a folder in the order of their names.

    Raises:
        ForeignError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    parts = sorted(path.glob("*.parquet"))
    if not parts:
        raise ForeignError(f"{path} is a folder without a file *.parquet in it")
    return parts


@dataclass(frozen=True)
class PlainTable:
    """The columns of a file that are asked for; `segment` too where there is one."""

    path: Path
    table: pa.Table

    @classmethod
    def read(
        cls,
        path: Path,
        required: Sequence[str],
        optional: Sequence[str] = (),
        chosen: Sequence[str] = (),
    ) -> PlainTable:
        """Read the columns that are required, and of the optional ones those that are there.

        Args:
            path: a file, or a folder of the parts of one table, as `reclora recommend` writes them.
            chosen: columns whose names are the caller's, not the table's contract: required too,
                but a near name in the table is what was meant, not one to rename.

        Raises:
            ForeignError: it is no Parquet file, has no rows, or lacks a required column or has one
                twice.
            OSError: it cannot be read.
        """
        try:
            table = pa.concat_tables([read_parquet(part) for part in parts_of(path)])
        except pa.ArrowException as error:
            raise ForeignError(f"{path} is no Parquet file: {error}") from error
        if not len(table):
            raise ForeignError(f"{path} has no rows")
        for name in table.column_names:
            if (
                name in (*required, *optional, *chosen, "segment")
                and table.column_names.count(name) > 1
            ):
                raise ForeignError(f"{path} has the column {name!r} twice; keep one")
        for name in (*required, *chosen):
            if name not in table.column_names:
                near = difflib.get_close_matches(name, table.column_names, n=1)
                remedy = "did you mean {!r}?" if name in chosen else "rename {!r}"
                hint = "; " + remedy.format(near[0]) if near else ""
                raise ForeignError(
                    f"{path} has no column {name!r}, it has {table.column_names}{hint}"
                )
        wanted = {*required, *optional, *chosen, "segment"}
        return cls(path, table.select([n for n in table.column_names if n in wanted]))

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def __len__(self) -> int:
        return len(self.table)

    def error(self, column: str, what: str, row: int) -> ForeignError:
        """What is wrong in a row, counted from 0."""
        return ForeignError(f"{self.path}, column {column}, row {row:,} (from 0): {what}")

    def whole(self, name: str) -> pa.ChunkedArray:
        """A column without nulls.

        Raises:
            ForeignError: a value is null.
        """
        column = self.table[name]
        if column.null_count:
            raise self.error(name, "null", pc.index(pc.is_null(column), True).as_py())
        return column

    def ids(self, name: str) -> IdMap:
        """The distinct identifiers of a column, ascending.

        Raises:
            ForeignError: they are neither strings nor integers, or one is null.
        """
        column = self.whole(name)
        try:
            return IdMap.of(column)
        except (TypeError, ValueError) as error:
            raise ForeignError(f"{self.path}, column {name}: {error}") from error

    def rows(self, name: str, ids: IdMap) -> NDArray[np.int64]:
        """The row of each identifier of a column in a map; -1 for one that is not in it.

        Raises:
            ForeignError: one is null, or they are strings where the map holds integers, or so.
        """
        column = self.whole(name)
        try:
            return ids.rows_of(column)
        except (TypeError, ValueError) as error:
            raise ForeignError(f"{self.path}, column {name}: {error}") from error

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers, integers as integers.

        Raises:
            ForeignError: it holds something else, a null or a NaN.
        """
        column = self.whole(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise ForeignError(f"{self.path}: column {name} must be numbers, got {column.type}")
        values: NDArray[Any] = column.to_numpy()
        wrong = np.flatnonzero(np.isnan(values))
        if wrong.size:
            raise self.error(name, "NaN", int(wrong[0]))
        return values

    @property
    def has_integer_times(self) -> bool:
        """Whether there is a timestamp that does not know its unit."""
        return "timestamp" in self and pa.types.is_integer(self.table["timestamp"].type)

    def timestamps(self, unit: TimeUnit | None = None) -> NDArray[np.int64] | None:
        """Microseconds; integers as they are where no unit is given. None without the column.

        Raises:
            ForeignError: it holds something else, or a null.
        """
        if "timestamp" not in self:
            return None
        column = self.whole("timestamp")
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        if not pa.types.is_integer(column.type):
            raise ForeignError(
                f"{self.path}: column timestamp must be Parquet timestamps or integers, "
                f"got {column.type}"
            )
        if self.has_integer_times and unit is not None:
            column = microseconds(column.cast(pa.int64()), unit)
        return np.asarray(column.to_numpy(), np.int64)

    @property
    def segments(self) -> list[str]:
        """The distinct segments; that of everybody where there is no such column."""
        if "segment" not in self:
            return [EVERYBODY]
        return [str(name) for name in pc.unique(self._segment_column()).to_pylist()]

    def strings(self, name: str) -> list[str | None]:
        """A column as strings; None where it has no value.

        Raises:
            ForeignError: its values cannot be written as strings.
        """
        column = self.table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        try:
            values: list[str | None] = column.cast(pa.large_string()).to_pylist()
        except pa.ArrowException as error:
            raise ForeignError(f"{self.path}, column {name}: {error}") from error
        return values

    def codes(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The position in `names` of the segment of each row; -1 for one that is not in them."""
        if "segment" not in self:
            return np.full(len(self), names.index(EVERYBODY))
        return IdMap(list(names)).rows_of(self._segment_column())

    def _segment_column(self) -> pa.ChunkedArray:
        column = self.whole("segment")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ForeignError(f"{self.path}: column segment must be strings, got {column.type}")
        return column


def ids_of_all(tables: Sequence[PlainTable], name: str) -> IdMap:
    """The map of all identifiers of some tables, ascending.

    Raises:
        ForeignError: as `PlainTable.ids`; or they are strings here and integers there.
    """
    maps = [table.ids(name) for table in tables]
    for table, ids in zip(tables, maps, strict=True):
        if ids.ids.type != maps[0].ids.type:
            raise ForeignError(
                f"{name} is {maps[0].ids.type} in {tables[0].path} and {ids.ids.type} in "
                f"{table.path}; write both as strings or both as integers"
            )
    return IdMap.of(pa.concat_arrays([ids.ids for ids in maps]))
