"""This file is how held-out users are ranked piece by piece: several pieces at once, each in a
process of its own, and each kept on the disk, so that after a kill it is not ranked again.

Processes are forked, see all that this one has in memory, and write into one block that they share.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.evaluation.held_out import HeldOutSegment
from reclora.files import make_folder, read_parquet, write_parquet
from reclora.workers import run_tasks

PIECE_USERS = 16_384
"""Users that are ranked between two looks at the clock: some seconds of work."""
LEAST_USERS = 4096
"""Fewer users are ranked before processes have begun."""

Span = tuple[int, ...]
"""Positions of consecutive pieces that are ranked one after the other."""


@dataclass(frozen=True)
class KeptLists:
    """Where the lists of one model are kept as they are made, for a run that may be killed.

    Args:
        folder: it is made.
        of: whose lists they are: everything that decides them, and a part of the files' names.
    """

    folder: Path
    of: str

    def read(self, task: Span, users: int, width: int) -> Tensor | None:
        """The lists of a task's users; None where there are none, or only damaged ones."""
        try:
            column = read_parquet(self._path(task)).column("item_row")
        except (OSError, pa.ArrowInvalid, KeyError):
            return None
        if len(column) != users * width:
            return None
        return torch.from_numpy(column.to_numpy().astype(np.int64)).reshape(users, width)

    def write(self, task: Span, rows_UW: Tensor) -> None:
        """Keep them, whole or not at all.

        Raises:
            OSError: the disk refused.
        """
        make_folder(self.folder)
        rows = pa.array(rows_UW.reshape(-1).numpy(), pa.int64()).cast(pa.int32())
        write_parquet(self._path(task), pa.table({"item_row": rows}))

    def _path(self, task: Span) -> Path:
        return self.folder / f"{self.of}-{task[0]}-{len(task)}.parquet"


def rank_pieces(
    pieces: Sequence[HeldOutSegment],
    rank: Callable[[HeldOutSegment], Tensor],
    width: int,
    *,
    processes: int = 1,
    kept: KeptLists | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """The lists of every piece, int64, shape (U, width).

    Args:
        pieces: see `HeldOutSegment.pieces`; those of a segment one after the other.
        rank: the lists of one piece; where one fails in a process, it is asked again here, for its
            error.
        processes: that rank at once; lists do not depend on it.
        progress: called with (users done, users in all).

    Raises:
        KeyboardInterrupt: this process was told to stop; the others have stopped too.
        OSError: lists cannot be kept.
    """
    sizes = [piece.num_users for piece in pieces]
    ends = np.cumsum([0, *sizes])
    tasks = tasks_of(sizes)
    rows_UW, is_done = _shared(int(ends[-1]), width, len(tasks))
    users_of = [sum(sizes[at] for at in task) for task in tasks]

    def lists_of(task: Span) -> Tensor:
        return rows_UW[int(ends[task[0]]) : int(ends[task[-1] + 1])]

    def tell(done: int = 0, of: int = 0) -> None:
        if progress is not None:
            progress(int(np.dot(is_done, users_of)), len(rows_UW))

    def work(numbers: tuple[int, ...]) -> None:
        for number in numbers:
            for at in tasks[number]:
                rows_UW[int(ends[at]) : int(ends[at + 1])] = rank(pieces[at])
            if kept is not None:
                kept.write(tasks[number], lists_of(tasks[number]))
            is_done[number] = 1

    for number, task in enumerate(tasks):
        found = None if kept is None else kept.read(task, users_of[number], width)
        if found is not None:
            lists_of(task).copy_(found)
            is_done[number] = 1
    missing = np.flatnonzero(is_done == 0).tolist()
    if processes > 1 and len(missing) > 1 and np.dot(1 - is_done, users_of) >= LEAST_USERS:
        run_tasks([(number,) for number in missing], work, processes, tell)
    for number in np.flatnonzero(is_done == 0).tolist():
        work((number,))
        tell()
    return [rows_UW[int(a) : int(b)] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _shared(users: int, width: int, tasks: int) -> tuple[Tensor, NDArray[np.uint8]]:
    """Memory that forked processes write into: lists, and a byte for each task that is done."""
    block = mmap.mmap(-1, max(1, users * width * 8 + tasks))
    rows = np.frombuffer(block, np.int64, users * width)
    is_done = np.frombuffer(block, np.uint8, tasks, offset=users * width * 8)
    return torch.from_numpy(rows).reshape(users, width), is_done


def tasks_of(sizes: Sequence[int]) -> list[Span]:
    """Consecutive pieces of at most `PIECE_USERS` users together, but one piece at least."""
    tasks: list[list[int]] = []
    users = 0
    for at, size in enumerate(sizes):
        if not tasks or users + size > PIECE_USERS:
            tasks.append([])
            users = 0
        tasks[-1].append(at)
        users += size
    return [tuple(task) for task in tasks]
