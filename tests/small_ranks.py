"""Groups of processes that are ranks, for the tests that run as a program of their own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def start_ranks(
    worlds: Sequence[int], be_rank: Callable[[int, int, Path], None], folder: Path
) -> None:
    """Fork a group of each size, one after the other; the program ends where a rank fails."""
    import torchrec  # noqa: F401  # once, and not in every process

    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for world in worlds:
        ranks = [context.Process(target=be_rank, args=(n, world, folder)) for n in range(world)]
        for each in ranks:
            each.start()
        for each in ranks:
            each.join()
        if any(each.exitcode for each in ranks):
            sys.exit(f"of {world} ranks some failed: {[each.exitcode for each in ranks]}")
