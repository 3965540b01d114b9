"""Lists and logs of any other system, from plain Parquet tables.

| table | columns | a row is |
|---|---|---|
| lists | `user_id`, `item_id`, `rank` (1 is best) or `score` (greatest best) | a place in a list |
| held out | `user_id`, `item_id` | an item relevant to the user |
| seen | `user_id`, `item_id` | an interaction before those |

Identifiers are strings or integers, the same kind everywhere. All may have `segment` (strings):
lists without it are shown in every segment. The two logs may have `timestamp` (Parquet timestamps,
or integers of one unit); then leakage is looked for. Further columns of the held-out table may be
asked for as slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reclora.evaluation.lists import Lists, SegmentLists
from reclora.evaluation.plain import ForeignError, PlainTable, ids_of_all
from reclora.interactions import IdMap, Interactions
from reclora.splits import refuse_leaks


@dataclass(frozen=True)
class Foreign:
    """What other systems recommended, and what it is held against, on common id maps."""

    heldout: Interactions
    seen: Interactions
    """Without rows where no table was given."""
    lists: Mapping[str, Lists]
    """Model -> lists, cut at k places."""


def read_foreign(
    recommendations: Mapping[str, Path],
    holdout: Path,
    seen: Path | None,
    k: int,
    attributes: Sequence[str] = (),
) -> Foreign:
    """Read the lists of some models and the logs they are held against.

    Places of a list are by rank, or by score descending; of equal ranks or scores by item: in
    ascending order of identifiers, strings by their bytes.

    Args:
        recommendations: model -> file.
        k: how many places are kept.
        attributes: further columns of the held-out table, for slices.

    Raises:
        ForeignError: a column is missing or of another kind; a value is null; a score is NaN; an
            item is twice in a list; two files identify by strings and by integers.
        LeakageError: both logs have times, and a held-out row is a seen one, or earlier than what
            its user was seen with; they are named.
        OSError: a file cannot be read.
    """
    files = {
        model: PlainTable.read(path, ("user_id", "item_id"), ("rank", "score"))
        for model, path in recommendations.items()
    }
    logs = [PlainTable.read(holdout, ("user_id", "item_id"), ("timestamp",), attributes)]
    if seen is not None:
        logs.append(PlainTable.read(seen, ("user_id", "item_id"), ("timestamp",)))
    users, items = (ids_of_all([*files.values(), *logs], name) for name in ("user_id", "item_id"))
    names = _segment_names(logs)
    heldout = _log(logs[0], users, items, names, attributes)
    before = heldout.select(np.zeros(len(heldout), bool))
    if len(logs) > 1:
        before = _log(logs[1], users, items, names, ())
        if len({log.has_integer_times for log in logs}) > 1 and all("timestamp" in x for x in logs):
            raise ForeignError(
                f"{holdout} and {seen}: timestamps are integers in one and Parquet timestamps in "
                "the other, so that none can be said to be later; write both alike"
            )
        if all("timestamp" in log for log in logs):
            refuse_leaks(heldout, "held-out", before, "seen", "user_time")
    k = min(k, len(items))
    lists = {model: _lists_of(file, users, items, names, k) for model, file in files.items()}
    return Foreign(heldout, before, lists)


def _segment_names(logs: Sequence[PlainTable]) -> list[str]:
    """The segments of the held-out log; and of the seen one, which may be of everybody."""
    return sorted({name for log in logs for name in log.segments})


def _log(
    table: PlainTable, users: IdMap, items: IdMap, names: Sequence[str], attributes: Sequence[str]
) -> Interactions:
    timestamps = table.timestamps()
    return Interactions.from_arrays(
        users=users,
        items=items,
        segment_names=names,
        segments=table.codes(names),
        user_rows=users.rows_of(table.table["user_id"]),
        item_rows=items.rows_of(table.table["item_id"]),
        timestamps=np.zeros(len(table), np.int64) if timestamps is None else timestamps,
        attributes={name: table.strings(name) for name in attributes},
    )


def _lists_of(table: PlainTable, users: IdMap, items: IdMap, names: Sequence[str], k: int) -> Lists:
    rows = _Places(
        table,
        users.rows_of(table.table["user_id"]),
        items.rows_of(table.table["item_id"]),
        _order(table),
    )
    if "segment" not in table:
        return Lists(dict.fromkeys(names, rows.lists(np.arange(len(table)), k)))
    codes = table.codes(names)
    if (codes < 0).all():
        raise ForeignError(
            f"{table.path}: column segment has {table.segments[:5]}, the held-out log has "
            f"{list(names)[:5]}: name segments alike in both, or leave the column out of the lists"
        )
    return Lists({n: rows.lists(np.flatnonzero(codes == c), k) for c, n in enumerate(names)})


def _order(table: PlainTable) -> NDArray[np.int64]:
    """What lists ascend by: dense ranks, which are exact also for integers that floats are not."""
    for name, sign in (("rank", 1), ("score", -1)):
        if name in table:
            return sign * np.unique(table.numbers(name), return_inverse=True)[1]
    raise ForeignError(
        f"{table.path} has neither a column 'rank' (1 is best) nor 'score' (greatest best); give "
        "the order of the lists"
    )


@dataclass(frozen=True)
class _Places:
    """The rows of a table of lists."""

    table: PlainTable
    user_rows: NDArray[np.int64]
    item_rows: NDArray[np.int64]
    order: NDArray[np.int64]

    def lists(self, chosen: NDArray[np.int64], k: int) -> SegmentLists:
        """The lists of some of the rows, cut at k places."""
        self._check_distinct(chosen)
        keys = self.item_rows[chosen], self.order[chosen], self.user_rows[chosen]
        rows = chosen[np.lexsort(keys)]
        users_U, starts_U, positions = np.unique(
            self.user_rows[rows], return_index=True, return_inverse=True
        )
        places = np.arange(len(rows)) - starts_U[positions]
        kept = places < k
        item_rows_UK = np.full((len(users_U), k), -1)
        item_rows_UK[positions[kept], places[kept]] = self.item_rows[rows][kept]
        return SegmentLists(torch.from_numpy(users_U), torch.from_numpy(item_rows_UK))

    def _check_distinct(self, chosen: NDArray[np.int64]) -> None:
        pairs = chosen[np.lexsort((self.item_rows[chosen], self.user_rows[chosen]))]
        same = (np.diff(self.user_rows[pairs]) == 0) & (np.diff(self.item_rows[pairs]) == 0)
        if same.any():
            row = int(pairs[np.flatnonzero(same)[0] + 1])
            user, item = (self.table.table[name][row].as_py() for name in ("user_id", "item_id"))
            raise self.table.error(
                "item_id", f"{item!r} is twice in the list of user {user!r}", row
            )
