"""This file is how a base model comes in from elsewhere: tables in Parquet or safetensors files.

    score(user, item) = u . v + b_i

Nothing is unpickled: a `.pt`, `.pkl` or `.npy` file is refused with the way to convert it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reclora.base import BaseModel
from reclora.interactions import IdMap
from reclora.tables import BaseError

BATCH_ROWS = 1 << 13
UNSAFE_SUFFIXES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NOT_FINITE = "holds NaN, infinity or a number beyond float32; a frozen table must be finite"


def import_base(users: Path, items: Path, tables: Path | None = None) -> BaseModel:
    """A base model without a tower from tables that were made elsewhere.

        import_base(Path("users.parquet"), Path("items.parquet"))
        import_base(Path("users.parquet"), Path("items.parquet"), Path("tables.safetensors"))

    Without `tables` the two Parquet files hold the vectors:

        users.parquet   user_id (strings or integers), vector (a list of D floats)
        items.parquet   item_id, vector and, if there is one, bias (a float)

    With `tables` they hold only `user_id` and only `item_id`, the id of row i at position i; the
    safetensors file holds `user_table` (users, D), `item_table` (items, D) and, if there is one,
    `item_bias` (items,).

    Names are exact, and no other column or tensor may be there. Numbers of 16 or 64 bits (float16,
    float64, in safetensors bfloat16) become float32, rounded to the nearest. A safetensors table
    that is float32 already stays mapped from its file: leave that as it is until the base is saved.

    Raises:
        BaseError: a file is missing, damaged or may hold pickles; a name or type is another; an id
            is null or occurs twice; a number is null, NaN, infinite or beyond float32; vectors
            differ in length; rows and ids differ in number. It names file, column or tensor, and
            row (from 0).
    """
    for path in (users, items, tables):
        if path is not None:
            _check_file(path)
    if tables is not None:
        return _from_safetensors(users, items, tables)
    with _parquet(users) as file:
        file.check_columns(["user_id", "vector"])
        user_ids = file.ids("user_id")
        user_table_ND = file.vectors(len(user_ids))
    with _parquet(items) as file:
        file.check_columns(["item_id", "vector"], ["bias"])
        item_ids = file.ids("item_id")
        item_table_ND = file.vectors(len(item_ids))
        item_bias_N = file.bias()
    _check_lengths(users, user_table_ND, items, item_table_ND)
    return BaseModel.of(user_ids, item_ids, user_table_ND, item_table_ND, item_bias_N)


def _from_safetensors(users: Path, items: Path, tables: Path) -> BaseModel:
    with _parquet(users) as file:
        file.check_columns(["user_id"])
        user_ids = file.ids("user_id")
    with _parquet(items) as file:
        file.check_columns(["item_id"])
        item_ids = file.ids("item_id")
    tensors = _read_tensors(tables)
    user_table_ND = _float32(tables, tensors, "user_table", 2, users, len(user_ids))
    item_table_ND = _float32(tables, tensors, "item_table", 2, items, len(item_ids))
    item_bias_N = None
    if "item_bias" in tensors:
        item_bias_N = _float32(tables, tensors, "item_bias", 1, items, len(item_ids))
    _check_lengths(tables, user_table_ND, tables, item_table_ND)
    return BaseModel.of(user_ids, item_ids, user_table_ND, item_table_ND, item_bias_N)


@dataclass(frozen=True)
class _Parquet:
    """One open Parquet file; its errors name it, the column and the row."""

    path: Path
    file: pq.ParquetFile

    def check_columns(self, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
        _check_names(self.path, "columns", self.file.schema_arrow.names, needed, optional)
        if self.file.metadata.num_rows == 0:
            raise BaseError(f"{self.path} holds no rows; a base model needs at least one")

    def ids(self, name: str) -> IdMap:
        column = self._read(name)
        try:
            return IdMap(column)
        except TypeError as error:
            raise self._error(name, str(error)) from error
        except ValueError as error:
            counts = pc.value_counts(column)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))
            if len(twice) == 0:
                raise self._error(name, str(error)) from error
            one = twice[0].as_py()
            raise self._error(
                name, f"{one['values']!r} occurs {one['counts']} times; keep one row of each id"
            ) from error

    def bias(self) -> Tensor | None:
        """The column `bias` in float32, shape (N,); None if there is none."""
        if "bias" not in self.file.schema_arrow.names:
            return None
        column = self._read("bias")
        if not pa.types.is_floating(column.type):
            raise self._error("bias", f"expected floats, got {column.type}")
        bias_N = torch.empty(len(column))
        _assign(bias_N, column)
        self._check_finite("bias", bias_N.view(-1, 1), 0)
        return bias_N

    def vectors(self, num_rows: int) -> Tensor:
        """The column `vector` in float32, shape (num_rows, D), read in batches."""
        kind = self.file.schema_arrow.field("vector").type
        lists = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
        if not any(is_kind(kind) for is_kind in lists) or not pa.types.is_floating(kind.value_type):
            raise self._error("vector", f"expected lists of floats, got {kind}")
        table_ND = torch.empty(num_rows, 0)
        start = 0
        for batch in self.file.iter_batches(BATCH_ROWS, columns=["vector"]):
            vectors = batch.column(0)
            self._check_no_nulls("vector", vectors, start)
            if start == 0:
                table_ND = torch.empty(num_rows, len(vectors[0]))
            if start + len(vectors) <= num_rows:
                self._add(table_ND, vectors, start)
            start += len(vectors)
        if start != num_rows:
            raise self._error("vector", f"expected {num_rows} rows as there are ids, got {start}")
        return table_ND

    def _add(self, table_ND: Tensor, vectors: pa.Array, start: int) -> None:
        """Write vectors, none null, to the rows from `start` on."""
        dim = table_ND.shape[1]
        lengths = np.asarray(pc.list_value_length(vectors))
        wrong = np.flatnonzero((lengths != dim) | (lengths == 0))
        if wrong.size:
            expected = f"{dim} numbers as in row 0" if dim else "at least one number"
            found = f"expected {expected}, got {lengths[wrong[0]]}"
            raise self._error("vector", found, start + int(wrong[0]))
        flat = vectors.flatten()
        self._check_no_nulls("vector", flat, start, dim)
        rows_BD = table_ND[start : start + len(vectors)]
        _assign(rows_BD, flat)
        self._check_finite("vector", rows_BD, start)

    def _read(self, name: str) -> pa.ChunkedArray:
        """A whole column without nulls, its text proper UTF-8."""
        column = self.file.read(columns=[name]).column(0)
        column.validate(full=True)
        self._check_no_nulls(name, column, 0)
        return column

    def _check_no_nulls(self, name: str, values: pa.Array, start: int, dim: int = 1) -> None:
        if values.null_count:
            position = pc.index(values.is_null(), True).as_py()
            raise self._error(name, "expected no nulls, got one", start + position // dim)

    def _check_finite(self, name: str, rows_BD: Tensor, start: int) -> None:
        row = _first_not_finite(rows_BD)
        if row is not None:
            raise self._error(name, NOT_FINITE, start + row)

    def _error(self, name: str, what: str, row: int | None = None) -> BaseError:
        where = f"{self.path}, column {name!r}" + ("" if row is None else f", row {row}")
        return BaseError(f"{where}: {what}")


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[_Parquet]:
    try:
        # Without pre-buffering a row group is read in pieces: it may be the whole file.
        with pq.ParquetFile(
            path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        ) as file:
            yield _Parquet(path, file)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise BaseError(f"{path} cannot be read as Parquet; write it again: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_names(path, "tensors", names, ["user_table", "item_table"], ["item_bias"])
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise BaseError(f"{path} cannot be read as safetensors; write it again: {error}") from error


def _float32(
    path: Path, tensors: dict[str, Tensor], name: str, dims: int, ids: Path, num_ids: int
) -> Tensor:
    """The tensor `name` of the file at `path`, one row for each of the ids in the file `ids`."""
    tensor, where = tensors[name], f"{path}, tensor {name!r}"
    if tensor.dtype not in FLOATS:
        raise BaseError(f"{where}: expected floats of 16, 32 or 64 bits, got {tensor.dtype}")
    if tensor.dim() != dims or len(tensor) != num_ids or tensor.shape[-1] == 0:
        expected = f"({num_ids}, D)" if dims == 2 else f"({num_ids},)"
        raise BaseError(
            f"{where}: expected shape {expected}, a row for each of the ids in {ids}, "
            f"got {tuple(tensor.shape)}"
        )
    tensor = tensor.float()
    for start in range(0, num_ids, BATCH_ROWS):
        row = _first_not_finite(tensor.view(num_ids, -1)[start : start + BATCH_ROWS])
        if row is not None:
            raise BaseError(f"{where}, row {start + row}: {NOT_FINITE}")
    return tensor


def _check_file(path: Path) -> None:
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        raise BaseError(
            f"{path}: a {path.suffix} file may hold pickled code and is not opened; load it where "
            "you trust it and write its tensors with safetensors.torch.save_file("
            "{'user_table': ..., 'item_table': ..., 'item_bias': ...}, 'tables.safetensors')"
        )
    if not path.is_file():
        found = "a folder" if path.is_dir() else "something else" if path.exists() else "nothing"
        raise BaseError(f"{path}: expected a file, found {found}")


def _check_names(
    path: Path, kind: str, found: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> None:
    allowed = [*needed, *optional]
    unknown = [name for name in found if name not in allowed]
    if not unknown and set(needed) <= set(found) and len(set(found)) == len(found):
        return
    hints = []
    missing = [name for name in needed if name not in found]
    for name in unknown[:10]:
        near = get_close_matches(name.lower(), allowed, n=1)
        if not near and len(missing) == len(unknown) == 1:
            near = missing
        hints.append(f"rename {name!r} to {near[0]!r}" if near else f"drop {name!r}")
    got = ", ".join(map(repr, found[:10])) + (f" and {len(found) - 10} more" * (len(found) > 10))
    raise BaseError(
        f"{path}: expected the {kind} {list(needed)}"
        + (f" and possibly {list(optional)}" if optional else "")
        + f", got {got or 'none'}"
        + "".join(f"; {hint}" for hint in hints)
    )


def _check_lengths(users: Path, user_table_ND: Tensor, items: Path, item_table_ND: Tensor) -> None:
    dims = user_table_ND.shape[1], item_table_ND.shape[1]
    if dims[0] != dims[1]:
        raise BaseError(
            f"user and item vectors must be of one length, got {dims[0]} in {users} "
            f"and {dims[1]} in {items}"
        )


def _assign(target: Tensor, values: Any) -> None:
    """Write Arrow floats to a float32 tensor; what is beyond float32 becomes infinite."""
    with np.errstate(over="ignore"):
        target.numpy()[...] = np.asarray(values).reshape(target.shape)


def _first_not_finite(rows_BD: Tensor) -> int | None:
    wrong_B = ~torch.isfinite(rows_BD).all(1)
    return int(wrong_B.nonzero()[0]) if wrong_B.any() else None
