"""This file is the id map: the only place where a caller's ids and the rows of a table meet."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from reclora.files import read_parquet, write_parquet

Ids: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str] | Sequence[int] | NDArray[Any]

STRING = pa.large_string()
INTEGER = pa.int64()
BLOCK = 1 << 20
"""Ids of a map that are looked at together: what is made of them stays small."""
FEW = 4
"""Less than the map's number of ids over this is few: those that are asked are hashed."""


class IdMap:
    """Identifiers <-> rows of a table: the id at position i is the id of row i.

    Ids are strings, compared byte for byte in UTF-8, or integers of 64 bits.

        >>> users = IdMap(["u7", "u3"])
        >>> users.rows_of(["u3", "nobody"])
        array([ 1, -1])
        >>> users.ids_of([0]).to_pylist()
        ['u7']
    """

    def __init__(self, ids: Ids) -> None:
        """Take ids in their order: the row of an id is its position.

        Args:
            ids: N unique ids, none null: strings or any integers (a dictionary of them too).

        Raises:
            TypeError: ids are neither strings nor integers, or an untyped empty sequence.
            ValueError: an id occurs twice, is null, or is beyond 64 bits with a sign.
        """
        array = _canonical(ids)
        if array.null_count:
            position = pc.index(array.is_null(), True).as_py()
            raise ValueError(f"ids must not be null, got null at position {position}")
        self._hold(array)
        # Sorted they take their memory once more; in a hash table ten times and up.
        if not self._ascends and (twin := _first_fall(_sorted(array), len(array))) is not None:
            times = pc.sum(pc.equal(array, twin)).as_py()
            raise ValueError(
                f"ids must be unique, got {twin.as_py()!r} {times} times; "
                "use IdMap.of for the distinct ones"
            )

    def _hold(self, ids: pa.Array) -> None:
        self._ids = ids
        # Ids that ascend are unique, and lie ready for a binary search.
        self._ascends = _first_fall(ids.slice, len(ids)) is None

    @classmethod
    def of(cls, ids: Ids) -> "IdMap":
        """Return the map of the distinct ids in ascending order (strings by UTF-8 bytes)."""
        distinct = pc.unique(_canonical(ids))
        return cls(distinct.take(pc.array_sort_indices(distinct)))

    @property
    def ids(self) -> pa.Array:
        """The N ids in row order: `large_string` or `int64`."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self._ids.equals(other._ids)

    def __repr__(self) -> str:
        kind = "strings" if self._ids.type == STRING else "integers"
        head = ", ".join(repr(one) for one in self._ids[:3].to_pylist())
        return f"IdMap({len(self):,} {kind}: {head}{', ...' if len(self) > 3 else ''})"

    def rows_of(self, ids: Ids) -> NDArray[np.int64]:
        """Return the row of each id, -1 for one that is null or not in the map.

        Integers that ascend in the map are found by binary search, in memory of a few times those
        that are asked. Else the asked ones are hashed where they are few, and the map where not.

        Raises:
            TypeError: strings were asked of a map of integers, or the reverse.
        """
        if len(ids) == 0:
            return np.empty(0, np.int64)
        asked = self._same_kind(ids)
        if self._ascends and self._ids.type == INTEGER:
            return _searched(asked, self._ids)
        if len(asked) < len(self) // FEW:
            return _passed_by(asked, self._ids)
        rows = pc.index_in(asked, value_set=self._ids, skip_nulls=True)
        return np.asarray(rows.fill_null(-1)).astype(np.int64)

    def ids_of(self, rows: ArrayLike) -> pa.Array:
        """Return the id of each row.

        Args:
            rows: integers in 0..N-1.

        Raises:
            IndexError: a row is out of range; a negative one too, it never counts from the end.
        """
        asked = np.asarray(rows, dtype=None if np.size(rows) else np.int64)
        if asked.dtype.kind not in "iu":
            raise TypeError(f"rows must be integers, got {asked.dtype}")
        wrong = np.flatnonzero((asked < 0) | (asked >= len(self)))
        if wrong.size:
            raise IndexError(
                f"rows must be in 0..{len(self) - 1}, got {asked[wrong[0]]} at position {wrong[0]}"
            )
        return self._ids.take(pa.array(asked, pa.int64()))

    def extended(self, ids: Ids) -> "IdMap":
        """Return a map with the unknown ones of `ids` after the rows there are, in ascending order.

        Old rows keep their numbers.

        Raises:
            TypeError: as `rows_of`.
            ValueError: an id is null.
        """
        if len(ids) == 0:
            return self
        new = IdMap.of(self._same_kind(ids)).ids
        unknown = new.filter(pa.array(self.rows_of(new) < 0))
        grown = object.__new__(IdMap)  # unique as it is made: nothing is to be checked
        grown._hold(pa.concat_arrays([self._ids, unknown]))
        return grown

    def digest(self) -> str:
        """Return the sha256, in hex, of type, count and ids in row order.

        It depends on nothing else: not on how the ids were chunked, sliced or typed when given.
        """
        hashed = sha256(f"{self._ids.type} {len(self)}\n".encode())
        _, *buffers = self._ids.buffers()
        if self._ids.type == INTEGER:
            hashed.update(_numbers(buffers[0], self._ids.offset, len(self)).data)
        else:
            bounds = _numbers(buffers[0], self._ids.offset, len(self) + 1)
            hashed.update(np.diff(bounds).data)
            if len(self):
                hashed.update(memoryview(buffers[1])[bounds[0] : bounds[-1]])
        return hashed.hexdigest()

    def write(self, path: Path) -> None:
        """Write Parquet with one column `id` and page checksums to `path`, whole or not at all."""
        write_parquet(path, pa.table({"id": self._ids}))

    @classmethod
    def read(cls, path: Path) -> "IdMap":
        """Read what `write` wrote, verifying the page checksums.

        Raises:
            ValueError: the file holds other columns, or ids that are not unique.
            OSError: the file cannot be read, or a page differs from its checksum.
        """
        table = read_parquet(path)
        if table.column_names != ["id"]:
            raise ValueError(f"{path}: expected one column 'id', got {table.column_names}")
        try:
            return cls(table["id"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def _same_kind(self, ids: Ids) -> pa.Array:
        array = _canonical(ids)
        if array.type != self._ids.type:
            raise TypeError(f"this map holds {self._ids.type} ids, got {array.type} ids")
        return array


def _canonical(ids: Ids) -> pa.Array:
    """Return ids as one `large_string` or `int64` array."""
    if isinstance(ids, str | bytes):
        raise TypeError(f"ids must be a sequence of ids, got the one {type(ids).__name__} {ids!r}")
    try:
        array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        array = array.cast(_canonical_type(array.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"ids must be all strings or all 64-bit integers: {error}") from error
    if isinstance(array, pa.ChunkedArray):
        # A file is read as one chunk: that is not copied.
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    return array


def _canonical_type(found: pa.DataType) -> pa.DataType:
    if pa.types.is_integer(found):
        return INTEGER
    if pa.types.is_string(found) or pa.types.is_large_string(found) or found == pa.string_view():
        return STRING
    if pa.types.is_null(found):
        raise TypeError("ids have no type; give a typed array, such as pa.array([], pa.string())")
    raise TypeError(f"ids must be strings or integers, got {found}")


def _first_fall(block_of: Callable[[int, int], pa.Array], count: int) -> pa.Scalar | None:
    """Return the first of `count` ids that is not below the next one, if there is one.

    Args:
        block_of: (position, length) -> ids from there, so many or as many as there are.
    """
    for start in range(0, count - 1, BLOCK):
        block = block_of(start, BLOCK + 1)
        rises = pc.less(block[:-1], block[1:])
        if not pc.all(rises).as_py():
            return block[pc.index(rises, False).as_py()]
    return None


def _sorted(ids: pa.Array) -> Callable[[int, int], pa.Array]:
    """Return blocks of the ids in ascending order, as `_first_fall` takes them."""
    if ids.type == INTEGER:
        ordered = pa.array(np.sort(ids.to_numpy()))
        return lambda start, length: ordered.slice(start, length)
    order = pc.array_sort_indices(ids)
    return lambda start, length: ids.take(order.slice(start, length))


def _searched(asked: pa.Array, ascending: pa.Array) -> NDArray[np.int64]:
    """`rows_of` by binary search, of integers."""
    held, wanted = ascending.to_numpy(), asked.fill_null(0).to_numpy()
    # One after the other in ascending order, searches stay where memory is still near.
    order = np.argsort(wanted)
    wanted = wanted[order]
    at = np.searchsorted(held, wanted)
    inside = at < len(held)
    inside[inside] = held[at[inside]] == wanted[inside]
    rows = np.empty(len(asked), np.int64)
    rows[order] = np.where(inside, at, -1)
    if asked.null_count:
        rows[asked.is_null().to_numpy(zero_copy_only=False)] = -1
    return rows


def _passed_by(asked: pa.Array, held: pa.Array) -> NDArray[np.int64]:
    """`rows_of` where few are asked: they are hashed, and the map passes by in blocks."""
    coded = asked.dictionary_encode()
    wanted, codes = coded.dictionary, coded.indices
    row_of = np.full(len(wanted) + 1, -1)  # the last is for null
    # Arrow hashes what is wanted once a block, so a block is much larger.
    block = max(BLOCK, 8 * len(wanted))
    for start in range(0, len(held), block):
        found = pc.index_in(held.slice(start, block), value_set=wanted)
        row_of[found.drop_null()] = start + np.flatnonzero(found.is_valid())
    rows: NDArray[np.int64] = row_of[codes.fill_null(len(wanted))]
    return rows


def _numbers(buffer: pa.Buffer | None, offset: int, count: int) -> NDArray[np.int64]:
    if buffer is None or buffer.size == 0:
        return np.zeros(count, np.int64)
    return np.frombuffer(buffer, np.int64)[offset : offset + count]
