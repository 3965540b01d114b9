"""Figures of the nightly pass: the store, the faults it survives, a night of 20 million rows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reclora.store import AdapterStore

from .harness import Figure, measures
from .nightly_world import WorldSize, make_world

ROOT = Path(__file__).resolve().parents[2]
ROWS_DUE = 38
"""Rows of the table of faults that a single run, store or group of ranks can have: all of them."""


@measures("publish_5000_s")
def publish_5000() -> Figure:
    """Seconds by the clock in which 5,000 adapters are published, fsyncs included."""
    from .ours import _many

    stack = _many(5_000).stack()
    with tempfile.TemporaryDirectory() as folder:
        AdapterStore(Path(folder) / "warm").publish(stack, reason="warm-up")
        began = time.monotonic()
        AdapterStore(Path(folder) / "store").publish(stack, reason="benchmark")
        return Figure("publish_5000_s", time.monotonic() - began, "s", "<= 5")


@measures("writers_8_lost_updates")
def writers_8() -> Figure:
    """Runs, of three, in which eight writers at once lost an update."""
    lost = sum(
        _pytest("tests/test_store.py", "racing_publishers")[0] != 0
        or _pytest("tests/test_pins.py", "eight_processes")[0] != 0
        for _ in range(3)
    )
    return Figure("writers_8_lost_updates", lost, "runs", "<= 0")


@measures("faults_survived", "resume_bit_identical")
def faults_survived() -> list[Figure]:
    """Rows of the table of faults all of whose tests pass."""
    code, output = _pytest("tests", "test_row_", "-rA")
    passed = set(re.findall(r"^PASSED .*::test_row_(\d\d)_", output, re.MULTILINE))
    failed = set(re.findall(r"^(?:FAILED|ERROR) .*::test_row_(\d\d)_", output, re.MULTILINE))
    resumed = code == 0 and {"07", "08"} <= passed
    return [
        Figure("faults_survived", len(passed - failed), f"of {ROWS_DUE}", f">= {ROWS_DUE}"),
        Figure("resume_bit_identical", float(resumed), "", ">= 1"),
    ]


@measures("kills_survived")
def kills_survived() -> Figure:
    """Runs on two ranks of which one was killed, at ten moments, that ended with the bytes of an
    unbroken one.
    """
    _, output = _pytest("tests/test_ranks.py", "test_row_13", "-rA")
    passed = len(re.findall(r"^PASSED .*::test_row_13_", output, re.MULTILINE))
    return Figure("kills_survived", passed, "of 10", ">= 10")


@measures("nightly_20m_minutes", "nightly_20m_peak_gb")
def nightly_20m() -> list[Figure]:
    """One `reclora retrain` of 20 M rows, 1 M users, 100,000 items and 5,000 segments, two workers.

    The peak is the sum over its processes of what each holds alone and its share of the rest.
    """
    folder = ROOT / "build" / "benchmarks" / "nightly"
    if not (folder / "run.toml").exists():
        make_world(folder, WorldSize())
    night = ["runs", "work"]
    subprocess.run(["rm", "-rf", *(str(folder / name) for name in night)], check=True)
    began, peak = time.monotonic(), 0
    command = [str(Path(sys.executable).with_name("reclora")), "retrain", str(folder / "run.toml")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    while process.poll() is None:
        peak = max(peak, _proportional_kb(process.pid))
        time.sleep(1)
    if process.returncode:
        raise RuntimeError(f"the night ended with {process.returncode}")
    minutes = (time.monotonic() - began) / 60
    return [
        Figure("nightly_20m_minutes", minutes, "min", "<= 45"),
        Figure("nightly_20m_peak_gb", peak / 1e6, "GB", "<= 8"),
    ]


def _proportional_kb(pid: int) -> int:
    """The proportional set size of a process and its children."""
    total = 0
    for each in [pid, *_children(pid)]:
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return total


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _pytest(where: str, names: str, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            where,
            "-k",
            names,
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout
