"""Tasks divided among worker processes, each of which may die without harm to the others.

Workers are forked: they see all that this process has in memory, and are sent only the numbers of
parts. What they make is written to files or shared memory by themselves. A worker does one task
after the other: what it has compiled and read stays warm. A task whose worker dies is tried again,
then its parts each alone; a part that dies again is given up. An error is no death: the task has
failed, and would fail again.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

TRIES = 3
INTERRUPTED = 130
DONE, FAILED = "done", "failed"
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
    failed: list[tuple[Part, ...]] = field(default_factory=list)
    """Those that ended with an error: whoever does them in this process is given it."""
    given_up: dict[Part, str] = field(default_factory=dict)
    """Part -> why."""


def run_tasks(
    tasks: Sequence[tuple[Part, ...]],
    work: Work,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Finished:
    """Do every task in one of `workers` processes.

    Args:
        work: does one task and writes down what it makes; a task that is done already ends at once.
        progress: told (tasks ended, tasks) after each.

    Raises:
        KeyboardInterrupt: this process was told to stop; its workers have stopped too.
    """
    waiting = deque(Task(parts) for parts in tasks)
    finished, ended = Finished(), 0
    staff, busy = list[_Worker](), dict[Connection, _Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                if len(staff) == len(busy):
                    staff.append(_Worker.started(work))
                worker = next(worker for worker in staff if worker.line not in busy)
                busy[worker.line] = worker
                worker.begin(waiting.popleft())
            for line in wait(list(busy)):
                worker = busy.pop(line)  # type: ignore[call-overload]
                outcome = worker.outcome()
                if outcome not in (DONE, FAILED):
                    staff.remove(worker)
                again = _ended(worker.task, outcome, finished)
                waiting.extendleft(reversed(again))
                ended += not again
                if progress is not None:
                    progress(ended, ended + len(waiting) + len(busy))
        for worker in staff:
            worker.dismiss()
    except BaseException:
        _stop([worker.process for worker in staff])
        raise
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
        process = context.Process(target=_work, args=(work, its_line, os.getpid()), daemon=True)
        process.start()
        # Nobody else holds its end, so that the line ends when it does.
        its_line.close()
        return cls(process, line)

    def begin(self, task: Task) -> None:
        self.task = task
        self._say(task.parts)

    def outcome(self) -> str | int:
        """What it says of its task, or how the process ended."""
        try:
            return str(self.line.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            # One that leaves without a word has not done its task.
            return self.process.exitcode or 1

    def dismiss(self) -> None:
        self._say(None)
        self.process.join()
        self.line.close()

    def _say(self, what: tuple[Part, ...] | None) -> None:
        # One that was killed while it had nothing to do is found out by its outcome.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.line.send(what)


def _work(work: Work, line: Connection, parent: int) -> None:
    """Do tasks until there are no more. The first signal interrupts, so that a task keeps what it
    has reached; a second one does nothing, while it does so.
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
            try:
                work(parts)
            except Exception:  # noqa: BLE001
                line.send(FAILED)
            else:
                line.send(DONE)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except BaseException:
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _ended(task: Task, outcome: str | int, finished: Finished) -> list[Task]:
    """What is to be tried again."""
    if isinstance(outcome, str):
        (finished.done if outcome == DONE else finished.failed).append(task.parts)
        return []
    if outcome == INTERRUPTED:
        # Told to stop by somebody else than this process, which is told so as well.
        return [task]
    tries = task.tries + 1
    if tries < TRIES:
        if tries + 1 < TRIES:
            return [Task(task.parts, tries)]
        # The last try is alone, so that one poisoned part takes no other with it.
        return [Task((part,), tries) for part in task.parts]
    how = f"signal {-outcome}" if outcome < 0 else f"exit code {outcome}"
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
