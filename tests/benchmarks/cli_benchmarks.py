"""Figures of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from .harness import Figure, measures, median, usage


@measures("help_seconds")
def help_seconds() -> Figure:
    """Process-CPU seconds of `reclora --help`, the median of 5 runs: it imports no torch."""
    command = [str(Path(sys.executable).with_name("reclora")), "--help"]
    seconds = median(5, lambda: usage(command).cpu_seconds)
    return Figure("help_seconds", seconds, "CPU-s", target="<= 0.4")
