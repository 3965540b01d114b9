"""Figures of training."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from .harness import Figure, measures, usage


@measures("training_memory_ratio")
def training_memory_ratio() -> Figure:
    """Peak memory over the base's while adapters train on the planted world of 1e6 users.

    The peer is the bound of `training_memory`'s docstring: base, touched rows, log and a batch.
    """
    folder = Path("build/benchmarks/planted-1e6")
    command = [sys.executable, "-m", "tests.benchmarks.training_memory", str(folder)]
    command += ["1000000", "300000"]
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    usage(command, env)  # makes the world where it is not yet there
    found = json.loads(usage(command, env).output)
    return Figure(
        "training_memory_ratio",
        found["peak"] / found["base"],
        "x base",
        target="<= 1",
        peer="base + touched rows + log + a batch",
        peer_value=found["bound"] / found["base"],
    )


@measures("demo_minutes")
def demo_minutes() -> Figure:
    """Minutes by the clock of a first `reclora demo` after the install, data included."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        usage(
            [str(Path(sys.executable).with_name("reclora")), "demo", "--folder", f"{folder}/demo"]
        )
        return Figure("demo_minutes", (time.monotonic() - began) / 60, "min", target="<= 5")
