"""Progress of long steps on stderr: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Step = Callable[[int, int], None]
"""Told (done, total)."""
EVERY_SECONDS: Final = 10.0
"""How often there is a line, at the most."""


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show one long step while the block runs; the block is given the function to tell."""
    console = Console(stderr=True)
    # A bar is drawn with codes that a dumb terminal, or a person with NO_COLOR, does not want.
    if not console.is_terminal or console.is_dumb_terminal:
        with _lines(title) as tell:
            yield tell
        return
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        _DoneColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _DoneColumn(ProgressColumn):
    """How much is done, of how much, and how much a second."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        speed = task.finished_speed or task.speed
        rate = f"  {per_second(speed)}" if speed else ""
        return Text(f"{int(task.completed):,}/{int(task.total):,}{rate}")


def per_second(rate: float) -> str:
    """A rate with about three digits and its unit: `0.25/s`, `3.4/s`, `12k/s`, `120M/s`."""
    units = ["G", "M", "k", ""]
    while rate >= 999.5 and len(units) > 1:
        rate /= 1000
        units.pop()
    return f"{rate:.{0 if rate >= 9.95 else 1 if rate >= 0.995 else 2}f}{units[-1]}/s"


@contextmanager
def _lines(title: str) -> Iterator[Step]:
    began = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_SECONDS:
            last = time.monotonic()
            left = (last - began) * (total - done) / done if done else None
            ahead = f", about {left:,.0f} s left" if left is not None else ""
            print(f"{title}: {done:,} of {total:,}, {last - began:,.0f} s{ahead}", file=sys.stderr)

    yield tell
    print(f"{title}: done in {time.monotonic() - began:.1f} s", file=sys.stderr)
