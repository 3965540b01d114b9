"""Tasks divided among worker processes, each of which may die without harm to the others.

Workers are forked: they see all that this process has in memory, and nothing is sent to them. What
they make is written to files by themselves. A task whose worker dies is tried again, then its parts
each in a worker of their own; a part that dies again is given up.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch

TRIES = 3
INTERRUPTED = 130
GRACE = 8.0
"""Seconds in which a worker that is told to stop keeps what it has reached."""

Part = int
Work = Callable[[tuple[Part, ...]], None]


@dataclass(frozen=True)
class Task:
    """Some parts, done together; how often it was tried."""

    parts: tuple[Part, ...]
    tries: int = 0


@dataclass
class Finished:
    """How tasks ended."""

    done: list[tuple[Part, ...]] = field(default_factory=list)
    given_up: dict[Part, str] = field(default_factory=dict)
    """Part -> why."""


def run_tasks(
    tasks: Sequence[tuple[Part, ...]],
    work: Work,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Finished:
    """Do every task in one of `workers` processes at a time.

    A task that ends with an error (and not by a signal) is not tried again: it would end so again.
    Its parts are given up, with the error as the reason.

    Args:
        work: does one task and writes down what it makes; a task that is done already ends at once.
        progress: told (tasks ended, tasks) after each.

    Raises:
        KeyboardInterrupt: this process was told to stop; its workers have stopped too.
    """
    waiting = deque(Task(parts) for parts in tasks)
    running: dict[int, tuple[BaseProcess, Task]] = {}
    finished, ended = Finished(), 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                process = _started(work, task := waiting.popleft())
                running[process.sentinel] = process, task
            for sentinel in wait(list(running)):
                process, task = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                again = _ended(task, process.exitcode or 0, finished)
                waiting.extendleft(reversed(again))
                ended += not again
                if progress is not None:
                    progress(ended, ended + len(waiting) + len(running))
    except BaseException:
        _stop([process for process, _ in running.values()])
        raise
    return finished


def _started(work: Work, task: Task) -> BaseProcess:
    sys.stdout.flush()
    sys.stderr.flush()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_worker, args=(work, task.parts, os.getpid()))
    process.start()
    return process


def _worker(work: Work, parts: tuple[Part, ...], parent: int) -> None:
    """Do one task; whoever is told to stop twice has kept what it could at the first time."""
    # A worker whose parent was killed must not go on beside the next run. Linux alone has this.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(INTERRUPTED)
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        if len(told) == 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    torch.set_num_threads(1)
    try:
        work(parts)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _ended(task: Task, code: int, finished: Finished) -> list[Task]:
    """What is to be tried again."""
    if code == 0:
        finished.done.append(task.parts)
        return []
    if code == INTERRUPTED:
        # Told to stop by somebody else than this process, which is told so as well.
        return [task]
    how = f"signal {-code}" if code < 0 else "an error, which is printed above"
    tries = task.tries + 1
    if code < 0 and tries < TRIES:
        if tries + 1 < TRIES:
            return [Task(task.parts, tries)]
        # The last try is alone, so that one poisoned part takes no other with it.
        return [Task((part,), tries) for part in task.parts]
    if code > 0 and len(task.parts) > 1:
        return [Task((part,), TRIES - 1) for part in task.parts]
    for part in task.parts:
        finished.given_up[part] = f"its worker ended by {how}, tried {tries} times"
    return []


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
