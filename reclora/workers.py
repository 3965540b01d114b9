"""Tasks divided among worker processes, each of which may die without harm to the others.

Workers are forked: they see all that this process has in memory, and are sent only the numbers of
parts. What they make is written to files or shared memory by themselves. A worker does one task
after the other: what it has compiled and read stays warm. A task whose worker dies is tried again,
then its parts each alone; a part that dies again is given up.
"""

from __future__ import annotations

import contextlib
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
from multiprocessing.connection import Connection, wait
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
    """Do every task in one of `workers` processes.

    A task that ends with an error (and not by a signal) is not tried again: it would end so again.
    Its parts are given up, with the error as the reason.

    Args:
        work: does one task and writes down what it makes; a task that is done already ends at once.
        progress: told (tasks ended, tasks) after each.

    Raises:
        KeyboardInterrupt: this process was told to stop; its workers have stopped too.
    """
    waiting = deque(Task(parts) for parts in tasks)
    finished, ended = Finished(), 0
    idle, busy = list[_Worker](), dict[Connection, _Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker.started(work)
                worker.begin(waiting.popleft())
                busy[worker.line] = worker
            for line in wait(list(busy)):
                worker = busy.pop(line)  # type: ignore[arg-type]
                again = _ended(worker.task, code := worker.outcome(), finished)
                if code == 0:
                    idle.append(worker)
                waiting.extendleft(reversed(again))
                ended += not again
                if progress is not None:
                    progress(ended, ended + len(waiting) + len(busy))
    except BaseException:
        _stop([worker.process for worker in (*busy.values(), *idle)])
        raise
    for worker in idle:
        worker.dismiss()
    return finished


@dataclass
class _Worker:
    """A process that does one task after the other, and what it is doing."""

    process: BaseProcess
    line: Connection
    task: Task = Task(())

    @classmethod
    def started(cls, work: Work) -> _Worker:
        sys.stdout.flush()
        sys.stderr.flush()
        context = multiprocessing.get_context("fork")
        line, its_line = context.Pipe()
        process = context.Process(target=_work, args=(work, its_line, os.getpid()))
        process.start()
        # Nobody else holds its end, so that the line ends when it does.
        its_line.close()
        return cls(process, line)

    def begin(self, task: Task) -> None:
        self.task = task
        self._say(task.parts)

    def outcome(self) -> int:
        """0 where the task is done; else how the process ended."""
        try:
            self.line.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            # One that leaves without a word has not done its task.
            return self.process.exitcode or 1
        return 0

    def dismiss(self) -> None:
        self._say(None)
        self.process.join()
        self.line.close()

    def _say(self, what: tuple[Part, ...] | None) -> None:
        # One that was killed while it had nothing to do is found out by its outcome.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.line.send(what)


def _work(work: Work, line: Connection, parent: int) -> None:
    """Do tasks until there are no more; whoever is told to stop twice has kept what it could at the
    first time.
    """
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
        while (parts := line.recv()) is not None:
            work(parts)
            line.send("done")
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
