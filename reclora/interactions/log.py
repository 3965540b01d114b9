"""This file is the interaction log in memory: arrays of rows, laid out by segment and time."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas.api.types import union_categoricals

from reclora.interactions.contract import NO_VALUE
from reclora.interactions.ids import IdMap
from reclora.interactions.stored import read_log
from reclora.notebook import as_html

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class UnknownCounts:
    """What `Interactions.onto` dropped, because the other id maps do not know it."""

    users: int
    """Distinct users of the log that are unknown."""
    items: int
    """Distinct items of the log that are unknown."""
    rows: int
    """Rows dropped: those with an unknown user, an unknown item or both."""


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """n interactions in S segments; inside a segment they ascend by time, user row, item row."""

    users: IdMap
    """Ids of the user rows."""
    items: IdMap
    """Ids of the item rows."""
    segment_names: tuple[str, ...]
    """S names, unique."""
    offsets: Rows
    """S+1 positions: the rows of segment s are `offsets[s]:offsets[s + 1]`."""
    user_rows: Rows
    """n rows of `users`."""
    item_rows: Rows
    """n rows of `items`."""
    timestamps: Rows
    """n times in microseconds since 1970-01-01 UTC, ascending inside a segment."""
    weights: NDArray[np.float32] | None = None
    """n weights, or None where the log has none."""
    attributes: Mapping[str, pd.Categorical] = field(default_factory=dict)
    """Further columns of the log, n strings each: what results can be sliced by."""

    def __post_init__(self) -> None:
        _check_columns(self)
        _check_attributes(self.attributes, len(self.timestamps))
        _check_offsets(self)
        _check_rows("user_rows", self.user_rows, len(self.users))
        _check_rows("item_rows", self.item_rows, len(self.items))
        steps = np.flatnonzero(np.diff(self.timestamps) < 0) + 1
        if not np.isin(steps, self.offsets).all():
            raise ValueError(
                "timestamps must ascend inside a segment; Interactions.from_arrays sorts them"
            )

    @classmethod
    def from_arrays(
        cls,
        *,
        users: IdMap,
        items: IdMap,
        segment_names: Sequence[str],
        segments: ArrayLike,
        user_rows: ArrayLike,
        item_rows: ArrayLike,
        timestamps: ArrayLike,
        weights: ArrayLike | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> "Interactions":
        """Sort n rows, given in any order, by (segment, timestamp, user row, item row, weight).

        Args:
            users, items: the id maps that the rows are of.
            segment_names: S unique names.
            segments: n codes in 0..S-1, positions in `segment_names`.
            user_rows, item_rows: n rows of `users` and of `items`.
            timestamps: n integers, microseconds since 1970-01-01 UTC.
            weights: n numbers, or None.
            attributes: n values each, kept as strings; a missing one as "(none)".

        Raises:
            IndexError: a row or code is out of range; names the column and the position.
            TypeError: a column that must be integers is not.
            ValueError: columns of different lengths, or a name twice.
        """
        columns = {
            "segments": _integers("segments", segments),
            "user_rows": _integers("user_rows", user_rows),
            "item_rows": _integers("item_rows", item_rows),
            "timestamps": _integers("timestamps", timestamps),
        }
        lengths = {name: column.shape for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns must be of one length, got {lengths}")
        codes = columns.pop("segments")
        # Before the sort, so that an error names the position that the caller knows.
        _check_rows("segments", codes, len(segment_names))
        _check_rows("user_rows", columns["user_rows"], len(users))
        _check_rows("item_rows", columns["item_rows"], len(items))
        keys = [codes, columns["timestamps"], columns["user_rows"], columns["item_rows"]]
        if weights is not None:
            weights = np.asarray(weights, np.float32)
            if weights.shape != codes.shape:
                raise ValueError(f"weights must be of shape {codes.shape}, got {weights.shape}")
            keys.append(weights)
        order = _order(keys)
        further = {name: _categorical(values) for name, values in (attributes or {}).items()}
        _check_attributes(further, len(codes))
        return cls(
            users,
            items,
            tuple(segment_names),
            _offsets(codes, len(segment_names)),
            **{name: column[order] for name, column in columns.items()},
            weights=None if weights is None else weights[order],
            attributes={name: values[order] for name, values in further.items()},
        )

    @classmethod
    def read(
        cls, folder: Path | str, *, declined: bool = False, only: Collection[str] | None = None
    ) -> "Interactions":
        """Read the log that `prepare_log` laid out in `folder`, verifying page checksums.

        It streams: beside the arrays and the id maps it holds one row group.

        Args:
            declined: read the rows below `min_label` instead, which the contract's
                `declined = "keep"` keeps; they are on the same id maps and segments.
            only: the segments to read, in the log's order; of the file nothing but the row groups
                with a row of theirs is read. None: all.

        Raises:
            LogError: the folder holds no complete log; or a file is damaged, or of another log; or
                the declined rows were dropped.
            KeyError: a segment that the log does not have.
            ValueError: some segments alone are asked for of the declined rows.
        """
        return cls(**read_log(folder, declined=declined, only=only))

    def __len__(self) -> int:
        """The number of interactions, n."""
        return len(self.timestamps)

    def __repr__(self) -> str:
        counts = [
            (len(self), "row"),
            (len(self.users), "user"),
            (len(self.items), "item"),
            (self.num_segments, "segment"),
        ]
        parts = [f"{count:,} {word}{'s' if count != 1 else ''}" for count, word in counts]
        if len(self):
            first, last = np.array(
                [self.timestamps.min(), self.timestamps.max()], "datetime64[us]"
            ).astype("datetime64[D]")
            parts.append(f"{first} to {last}")
        return f"Interactions({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [slice(a, b) for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]
        distinct = {
            name: [len(np.unique(getattr(self, of)[its])) for its in rows]
            for name, of in (("users", "user_rows"), ("items", "item_rows"))
        }
        sizes = np.diff(self.offsets)
        return as_html(self, {"segment": self.segment_names, "rows": sizes, **distinct})

    @property
    def num_segments(self) -> int:
        """The number of segments, S; some may have no row."""
        return len(self.segment_names)

    @property
    def segment_rows(self) -> Rows:
        """The segment of each of the n rows: its position in `segment_names`."""
        return np.repeat(np.arange(self.num_segments), np.diff(self.offsets))

    def select(self, chosen: NDArray[np.bool_] | Rows) -> "Interactions":
        """Return some of the rows; id maps and segment names stay, also of segments left empty.

        Args:
            chosen: a mask of n, or ascending positions in 0..n-1, each at most once.

        Raises:
            IndexError: a mask of another length, or a position out of range.
            ValueError: positions that do not ascend.
        """
        positions = self._positions(chosen)
        return Interactions(
            self.users,
            self.items,
            self.segment_names,
            np.searchsorted(positions, self.offsets),
            self.user_rows[positions],
            self.item_rows[positions],
            self.timestamps[positions],
            None if self.weights is None else self.weights[positions],
            self._attributes_of(positions),
        )

    def only(self, name: str) -> "Interactions":
        """Return the rows of one segment, as a log of that segment alone.

        Raises:
            KeyError: no segment has that name; near names are offered.
        """
        if name not in self.segment_names:
            near = difflib.get_close_matches(name, self.segment_names) or self.segment_names[:5]
            raise KeyError(
                f"no segment {name!r} in the log; near names: {', '.join(map(repr, near))}"
            )
        segment = self.segment_names.index(name)
        rows = slice(self.offsets[segment], self.offsets[segment + 1])
        return Interactions(
            self.users,
            self.items,
            (name,),
            self.offsets[segment : segment + 2] - self.offsets[segment],
            self.user_rows[rows],
            self.item_rows[rows],
            self.timestamps[rows],
            None if self.weights is None else self.weights[rows],
            self._attributes_of(rows),
        )

    def part(self, segments: Sequence[int]) -> "Interactions":
        """Return the rows of some segments, as a log of those alone, in the order given.

        Args:
            segments: positions in `segment_names`, each at most once.
        """
        sizes = np.diff(self.offsets)[list(segments)]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        starts = self.offsets[list(segments)]
        rows = np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Interactions(
            self.users,
            self.items,
            tuple(self.segment_names[segment] for segment in segments),
            offsets,
            self.user_rows[rows],
            self.item_rows[rows],
            self.timestamps[rows],
            None if self.weights is None else self.weights[rows],
            {name: column[rows] for name, column in self.attributes.items()},
        )

    def pooled(self, name: str = "pooled") -> "Interactions":
        """Return all rows as one segment, sorted by (timestamp, user row, item row)."""
        return self.in_segments((name,), np.zeros(len(self), np.int64))

    def in_segments(self, names: Sequence[str], segments: ArrayLike) -> "Interactions":
        """Return the same rows in other segments, sorted anew; arguments and errors as
        `segment_names` and `segments` of `from_arrays`.
        """
        return Interactions.from_arrays(
            users=self.users,
            items=self.items,
            segment_names=names,
            segments=segments,
            user_rows=self.user_rows,
            item_rows=self.item_rows,
            timestamps=self.timestamps,
            weights=self.weights,
            attributes=self.attributes,
        )

    def joined(self, other: "Interactions") -> "Interactions":
        """Return the rows of both logs, which are on the same id maps and segments.

        Raises:
            ValueError: they are not, only one has weights, or their attributes are other ones.
        """
        mine, its = (self.users, self.items), (other.users, other.items)
        if mine != its or self.segment_names != other.segment_names:
            raise ValueError(f"{self!r} and {other!r} must be on the same id maps and segments")
        if (self.weights is None) != (other.weights is None):
            raise ValueError("logs to join must both have weights or both have none")
        if self.attributes.keys() != other.attributes.keys():
            raise ValueError(
                "logs to join must have the same attributes, got "
                f"{[*self.attributes]} and {[*other.attributes]}"
            )
        weights = None
        if self.weights is not None and other.weights is not None:
            weights = np.concatenate([self.weights, other.weights])
        return Interactions.from_arrays(
            users=self.users,
            items=self.items,
            segment_names=self.segment_names,
            segments=np.concatenate([self.segment_rows, other.segment_rows]),
            user_rows=np.concatenate([self.user_rows, other.user_rows]),
            item_rows=np.concatenate([self.item_rows, other.item_rows]),
            timestamps=np.concatenate([self.timestamps, other.timestamps]),
            weights=weights,
            attributes={
                name: union_categoricals([values, other.attributes[name]], sort_categories=True)
                for name, values in self.attributes.items()
            },
        )

    def onto(self, users: IdMap, items: IdMap) -> tuple["Interactions", UnknownCounts]:
        """Return the log on other id maps, such as a base model's, and what they do not know.

        Rows whose user or item is unknown there are dropped and counted; segments stay, also empty.

        Raises:
            TypeError: one map holds strings, the other integers.
        """
        user_rows = users.rows_of(self.users.ids)[self.user_rows]
        item_rows = items.rows_of(self.items.ids)[self.item_rows]
        known = (user_rows >= 0) & (item_rows >= 0)
        log = Interactions.from_arrays(
            users=users,
            items=items,
            segment_names=self.segment_names,
            segments=self.segment_rows[known],
            user_rows=user_rows[known],
            item_rows=item_rows[known],
            timestamps=self.timestamps[known],
            weights=None if self.weights is None else self.weights[known],
            attributes=self._attributes_of(known),
        )
        return log, UnknownCounts(
            users=np.unique(self.user_rows[user_rows < 0]).size,
            items=np.unique(self.item_rows[item_rows < 0]).size,
            rows=int(np.count_nonzero(~known)),
        )

    def _attributes_of(self, rows: Rows | NDArray[np.bool_] | slice) -> dict[str, pd.Categorical]:
        return {name: values[rows] for name, values in self.attributes.items()}

    def _positions(self, chosen: NDArray[np.bool_] | Rows) -> Rows:
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise IndexError(f"a mask must be of shape ({len(self)},), got {chosen.shape}")
            return np.flatnonzero(chosen)
        positions = _integers("chosen", chosen)
        _check_rows("chosen", positions, len(self))
        if (np.diff(positions) <= 0).any():
            raise ValueError("positions must ascend, each at most once; np.unique makes them so")
        return positions


def _order(keys: Sequence[NDArray[Any]]) -> Rows:
    """The positions of n rows in ascending order of the keys: segment and time, then the others.

    As `np.lexsort`, but rows mostly come as runs that are in order but for rows of one moment, and
    a sort by all keys would begin with the keys that say least.
    """
    segments, times = keys[:2]
    order = np.argsort(segments, kind="stable")
    segments, times = segments[order], times[order]
    is_same = segments[1:] == segments[:-1]
    if (is_same & (times[1:] < times[:-1])).any():
        return np.lexsort(keys[::-1])
    begins = np.ones(len(order), bool)
    begins[1:] = ~is_same | (times[1:] != times[:-1])
    is_tied = ~begins
    is_tied[:-1] |= ~begins[1:]
    tied = np.flatnonzero(is_tied)
    moments = np.cumsum(begins)[tied]
    rows = order[tied]
    order[tied] = rows[np.lexsort((*(key[rows] for key in keys[:1:-1]), moments))]
    return order


def _offsets(segments: Rows, num_segments: int) -> Rows:
    counts = np.bincount(segments, minlength=num_segments)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _integers(name: str, values: ArrayLike) -> Rows:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64, copy=False)


def _check_rows(name: str, rows: Rows, count: int) -> None:
    wrong = np.flatnonzero((rows < 0) | (rows >= count))
    if wrong.size:
        raise IndexError(
            f"{name} must be in 0..{count - 1}, got {rows[wrong[0]]} at position {wrong[0]}"
        )


def _categorical(values: Any) -> pd.Categorical:
    """Values as categories that are strings; one that is missing as a category of its own."""
    if isinstance(values, pd.Categorical) and (values.codes >= 0).all():
        names = pd.Index([str(name) for name in values.categories], dtype="str")
        kept: pd.Categorical = pd.Categorical.from_codes(values.codes, names)
        return values if values.categories.equals(names) else kept
    column = pd.Series(values, dtype=object)
    strings = column.where(column.notna(), NO_VALUE).astype("str")
    found: pd.Categorical = pd.Categorical(strings.array)
    return found


def _check_attributes(attributes: Mapping[str, pd.Categorical], length: int) -> None:
    for name, values in attributes.items():
        if len(values) != length:
            raise ValueError(f"attribute {name!r} must have {length} values, got {len(values)}")
        if (values.codes < 0).any():
            raise ValueError(f"attribute {name!r} must have no missing value; {NO_VALUE!r} is one")


def _check_columns(log: Interactions) -> None:
    shape = (len(log.timestamps),)
    for name in ("user_rows", "item_rows", "timestamps"):
        column = getattr(log, name)
        if column.dtype != np.int64 or column.shape != shape:
            raise ValueError(
                f"{name} must be int64 of shape {shape}, got {column.dtype} of {column.shape}"
            )
    weights = log.weights
    if weights is not None:
        if weights.dtype != np.float32 or weights.shape != shape:
            raise ValueError(
                f"weights must be float32 of shape {shape}, got {weights.dtype} of {weights.shape}"
            )
        wrong = np.flatnonzero(~(weights >= 0) | np.isinf(weights))
        if wrong.size:
            raise ValueError(
                "weights must be finite and not negative, "
                f"got {weights[wrong[0]]} at position {wrong[0]}"
            )


def _check_offsets(log: Interactions) -> None:
    names = log.segment_names
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"segment names must be unique, got {twice!r} twice")
    offsets = log.offsets
    if offsets.dtype != np.int64 or offsets.shape != (len(names) + 1,):
        raise ValueError(
            f"offsets must be {len(names) + 1} int64, got {offsets.dtype} of {offsets.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != len(log) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must ascend from 0 to {len(log)}, got {offsets[:10]}...")
