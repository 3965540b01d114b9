"""Who gets lists in a batch, and what they have seen."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from reclora.base import BaseModel
from reclora.evaluation import ForeignError
from reclora.evaluation.plain import PlainTable
from reclora.interactions import IdMap, Interactions
from reclora.ranking import UserItems
from reclora.splits import WINDOWS
from reclora.store import Release

from .prepare import check_same_ids
from .run import RunSettings

Rows = NDArray[np.int64]
_SHOWN = 5


@dataclass(frozen=True)
class History:
    """The n rows of a log whose user the base knows."""

    segments: tuple[str, ...]
    """S names, ascending."""
    codes: Rows
    """n positions in `segments`."""
    user_rows: Rows
    item_rows: Rows
    """-1 for an item that the base does not know."""
    unknown_users: int
    """Users of the log that the base does not know."""

    @classmethod
    def read(cls, settings: RunSettings, base: BaseModel) -> History:
        """Read the log that `prepare` laid out, every row of it.

        Raises:
            LogError: the log is damaged.
            ValueError: ids of the log and of the base are of two types.
        """
        folders = [settings.log_folder]
        if settings.log.windows is not None:
            folders = [settings.log_folder / window for window in WINDOWS]
        logs = [Interactions.read(folder) for folder in folders]
        names = tuple(sorted({name for log in logs for name in log.segment_names}))
        code_of = {name: code for code, name in enumerate(names)}
        parts, unknown = [], list[pa.Array]()
        for log in logs:
            check_same_ids("user_id", log.users, base.users)
            check_same_ids("item_id", log.items, base.items)
            users, items = base.users.rows_of(log.users.ids), base.items.rows_of(log.items.ids)
            codes = np.array([code_of[name] for name in log.segment_names], np.int64)
            rows = codes[log.segment_rows], users[log.user_rows], items[log.item_rows]
            known = rows[1] >= 0
            parts.append([column[known] for column in rows])
            unknown.append(log.users.ids.filter(pa.array(users < 0)))
        codes, user_rows, item_rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        strangers = len(pa.concat_arrays(unknown).unique())
        return cls(names, codes, user_rows, item_rows, strangers)

    def seen(self, num_users: int) -> UserItems:
        """The items that each user of the base has a row with, in whichever segment."""
        known = self.item_rows >= 0
        users, items = (torch.from_numpy(rows[known]) for rows in (self.user_rows, self.item_rows))
        return UserItems.from_pairs(users, items, num_users)


@dataclass(frozen=True)
class Wanted:
    """L lists to make, sorted by segment and user row; those of no segment last."""

    segments: tuple[str, ...]
    """S names, ascending; code S is that of no segment."""
    codes_L: Rows
    user_rows_L: Rows
    dropped: Mapping[str, int]
    """Rows of the users' list that are left out, and why."""

    def __len__(self) -> int:
        return len(self.codes_L)

    @property
    def num_users(self) -> int:
        return len(np.unique(self.user_rows_L))

    @property
    def num_without_segment(self) -> int:
        return int(np.count_nonzero(self.codes_L == len(self.segments)))

    def runs(self, lists: slice) -> Iterator[tuple[str | None, Rows]]:
        """(segment, the places of its lists) of consecutive lists; None: no segment."""
        codes = self.codes_L[lists]
        starts = np.flatnonzero(np.diff(codes)) + 1
        for places in np.split(np.arange(len(self))[lists], starts):
            code = self.codes_L[places[0]]
            yield None if code == len(self.segments) else self.segments[code], places


def wanted_of(
    users: Path | None,
    history: History,
    base: BaseModel,
    release: Release,
    unknown: Literal["fail", "drop"],
) -> Wanted:
    """The lists of all users, or of those in a Parquet file; without a column segment in it they
    are in the segments of the log.

    Raises:
        ForeignError: the file cannot be read, nobody in it is known, or unknown users or segments
            are to `fail`.
    """
    num_users = len(base.users)
    if users is None:
        return _in_the_log(history, np.ones(num_users, bool), {})
    table = PlainTable.read(users, ("user_id",))
    user_rows = known_rows(table, "user_id", base.users)
    strangers = np.flatnonzero(user_rows < 0)
    dropped = {"unknown users": len(strangers)}
    if len(strangers) and unknown == "fail":
        raise _unknown(table, "user_id", strangers)
    if len(strangers) == len(table):
        raise ForeignError(f"{users}: the base model knows none of its users")
    if "segment" not in table:
        is_asked = np.zeros(num_users, bool)
        is_asked[user_rows[user_rows >= 0]] = True
        return _in_the_log(history, is_asked, dropped)
    names = tuple(sorted(table.segments))
    codes = table.codes(names)
    known = {*history.segments, *(name for found in release.maps for name in found)}
    is_known = np.array([name in known for name in names])
    strange = np.flatnonzero((user_rows >= 0) & ~is_known[codes])
    if len(strange) and unknown == "fail":
        raise _unknown(table, "segment", strange, known)
    keep = (user_rows >= 0) & is_known[codes]
    if not keep.any():
        raise ForeignError(f"{users}: neither the log nor the release knows any of its segments")
    keys = np.unique(codes[keep] * num_users + user_rows[keep])
    return _of_keys(names, keys, num_users, dropped | {"unknown segments": len(strange)})


def known_rows(table: PlainTable, column: str, ids: IdMap) -> Rows:
    """The row in the base of each identifier of a column; -1 for one that the base does not know.

    Args:
        ids: the base's.

    Raises:
        ForeignError: one is null, or no identifier, or they are of another type than the base's.
    """
    try:
        return table.rows(column, ids)
    except ForeignError as error:
        found = table.ids(column).ids.type
        if found == ids.ids.type:
            raise
        raise ForeignError(
            f"{column} is {found} in {table.path} and {ids.ids.type} in the base model; write both "
            "as strings or both as integers"
        ) from error


def _unknown(
    table: PlainTable, column: str, places: Rows, known: Sequence[str] | set[str] = ()
) -> ForeignError:
    first = table.table[column].take(pa.array(places[:_SHOWN])).to_pylist()
    hints = difflib.get_close_matches(str(first[0]), known, n=3) if known else []
    near = f"; near names: {', '.join(map(repr, hints))}" if hints else ""
    return ForeignError(
        f"{table.path}, column {column}: {len(places):,} of {len(table):,} rows are unknown, such "
        f"as {', '.join(map(repr, first))}{near}; correct them, or leave them out with --unknown "
        "drop (in Python: unknown='drop')"
    )


def _in_the_log(
    history: History, is_asked: NDArray[np.bool_], dropped: Mapping[str, int]
) -> Wanted:
    """The lists of some users of the base, in each of their segments of the log, or in none."""
    num_users = len(is_asked)
    rows = is_asked[history.user_rows]
    keys = np.unique(history.codes[rows] * num_users + history.user_rows[rows])
    is_alone = is_asked.copy()
    is_alone[keys % num_users] = False
    alone = len(history.segments) * num_users + np.flatnonzero(is_alone)
    return _of_keys(history.segments, np.concatenate([keys, alone]), num_users, dropped)


def _of_keys(
    names: tuple[str, ...], keys: Rows, num_users: int, dropped: Mapping[str, int]
) -> Wanted:
    return Wanted(names, keys // num_users, keys % num_users, dropped)
