"""Progress of long steps on stderr: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Step = Callable[[int, int], None]
"""Told (done, total)."""


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show one long step while the block runs; the block is given the function to tell."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(title) as tell:
            yield tell
        return
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _lines(title: str) -> Iterator[Step]:
    began = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            print(f"{title}: {done:,} of {total:,}, {last - began:.0f} s", file=sys.stderr)

    yield tell
    print(f"{title}: done in {time.monotonic() - began:.1f} s", file=sys.stderr)
