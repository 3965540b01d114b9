"""This file is how the segments of a held-out log are divided among processes that rank at once.

They are forked, see all that this process has in memory, and write into one block that they share.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reclora.evaluation.held_out import HeldOutSegment

LEAST_USERS = 4096
"""Fewer users are ranked before processes have begun."""


def rank_in_processes(
    segments: Sequence[HeldOutSegment],
    rank: Callable[[HeldOutSegment], Tensor],
    k: int,
    processes: int,
) -> list[Tensor]:
    """The lists of every segment, shape (U, k), made by several processes.

    Args:
        rank: the lists of one segment; where one fails, it is asked again here, for its error.

    Raises:
        KeyboardInterrupt: this process was told to stop; the others have stopped too.
    """
    sizes = [segment.num_users for segment in segments]
    ends = np.cumsum([0, *sizes])
    block = mmap.mmap(-1, max(1, int(ends[-1]) * k * 8))
    shared = torch.from_numpy(np.frombuffer(block, np.int64)[: int(ends[-1]) * k].reshape(-1, k))
    # The largest first, each to whoever has least: all end at about the same time.
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for at in sorted(range(len(segments)), key=lambda at: -sizes[at]):
        least = loads.index(min(loads))
        shares[least].append(at)
        loads[least] += sizes[at]

    def work(share: Sequence[int]) -> None:
        for at in share:
            shared[int(ends[at]) : int(ends[at + 1])] = rank(segments[at])

    failed = _forked([partial(work, share) for share in shares])
    for share in (shares[at] for at in failed):
        work(share)
    return [shared[int(a) : int(b)].clone() for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _forked(tasks: Sequence[Callable[[], None]]) -> list[int]:
    """Do each task in a process of its own; return which of them failed."""
    context = multiprocessing.get_context("fork")
    sys.stdout.flush()
    sys.stderr.flush()
    processes = [context.Process(target=_quietly, args=(task,)) for task in tasks]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
        raise
    return [at for at, process in enumerate(processes) if process.exitcode]


def _quietly(task: Callable[[], None]) -> None:
    """The parent says what went wrong: it does again what failed here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        task()
    except BaseException:
        os._exit(1)
    os._exit(0)
