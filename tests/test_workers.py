"""Tasks in processes that are really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reclora.workers import run_tasks

TASKS = [(0, 1, 2), (3, 4), (5,), (6, 7)]


def tries_of(folder: Path, parts: tuple[int, ...]) -> int:
    """How often these parts were begun, this time included."""
    log = folder / "-".join(map(str, parts))
    with log.open("a") as file:
        file.write("x")
    return len(log.read_text())


def test_every_task_is_done(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    finished = run_tasks(
        TASKS,
        lambda parts: (tmp_path / str(parts)).touch(),
        2,
        lambda *n: told.append(n),
    )
    assert sorted(finished.done) == sorted(TASKS) and not finished.given_up
    assert {path.name for path in tmp_path.iterdir()} == {str(parts) for parts in TASKS}
    assert told[-1] == (4, 4)


def test_row_09_a_killed_worker_is_replaced_and_no_other_is_touched(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        if tries_of(tmp_path, parts) == 1 and parts == (3, 4):
            os.kill(os.getpid(), signal.SIGKILL)

    finished = run_tasks(TASKS, work, 2)
    assert sorted(finished.done) == sorted(TASKS) and not finished.given_up
    assert {path.name: len(path.read_text()) for path in tmp_path.iterdir()} == {
        "0-1-2": 1,
        "3-4": 2,
        "5": 1,
        "6-7": 1,
    }


def test_row_10_a_part_that_always_kills_its_worker_is_given_up_alone(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        tries_of(tmp_path, parts)
        if 1 in parts:
            os.kill(os.getpid(), signal.SIGKILL)

    finished = run_tasks(TASKS, work, 2)
    assert list(finished.given_up) == [1]
    assert "signal 9, tried 3 times" in finished.given_up[1]
    assert sorted(finished.done) == [(0,), (2,), (3, 4), (5,), (6, 7)]
    tries = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert tries["0-1-2"] == 2 and tries["1"] == 1


def test_a_worker_does_one_task_after_the_other(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        (tmp_path / f"{parts[0]}").write_text(str(os.getpid()))

    run_tasks([(number,) for number in range(20)], work, 2)
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 2


def test_a_worker_that_is_killed_between_two_tasks_costs_only_time(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        if tries_of(tmp_path, parts) == 1 and parts == (1,):
            # It dies when it has said that it is done and has nothing to do.
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if parts == (0,):
            time.sleep(0.6)

    finished = run_tasks([(0,), (1,)], work, 2)
    assert sorted(finished.done) == [(0,), (1,)] and not finished.given_up


def test_a_task_with_an_error_has_failed_and_costs_no_other(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        tries_of(tmp_path, parts)
        if 4 in parts:
            raise ValueError("part 4 is no good")

    finished = run_tasks(TASKS, work, 2)
    assert finished.failed == [(3, 4)] and not finished.given_up
    assert sorted(finished.done) == [(0, 1, 2), (5,), (6, 7)]
    assert len((tmp_path / "3-4").read_text()) == 1


def test_a_worker_that_leaves_without_a_word_has_died(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        if 4 in parts:
            os._exit(0)

    finished = run_tasks(TASKS, work, 2)
    assert finished.given_up == {4: "its worker ended by exit code 1, tried 3 times"}
    assert (3,) in finished.done


def test_an_interrupt_stops_the_workers(tmp_path: Path) -> None:
    def work(parts: tuple[int, ...]) -> None:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (tmp_path / f"kept {parts[0]}").touch()
            raise

    def interrupt() -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(TASKS, work, 2)
    assert time.monotonic() - began < 10
    assert len(list(tmp_path.glob("kept *"))) == 2


def test_workers_of_a_killed_process_die_with_it(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from reclora.workers import run_tasks\n"
        "def work(parts):\n"
        "    open(os.path.join(sys.argv[1], str(os.getpid())), 'w').close()\n"
        "    time.sleep(60)\n"
        "run_tasks([(0,), (1,)], work, 2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path])
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(0.3)
    for path in tmp_path.iterdir():
        state = Path(f"/proc/{path.name}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"
