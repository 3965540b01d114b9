"""A process that waits to be told to go, traced: what strace does to it is part of a test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def go_traced(pid: int, strace: Sequence[str], go: Callable[[], int]) -> int:
    """Attach `strace` with these options to a process, then let it go; returns how that ended.

    Skips the test where it cannot attach.
    """
    command = ["strace", "-qq", *strace, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            if tracer.poll() is not None:
                go()
                pytest.skip(f"strace cannot attach here: {tracer.communicate()[1]}")
            time.sleep(0.001)
        return go()
