"""Figures of many ranks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from reclora.adapters import Adapter
from reclora.distributed import load_adapters

from .distributed import make_world
from .harness import Figure, measures, usage
from .nightly_world import WorldSize
from .nightly_world import make_world as make_night
from .training_memory import SEGMENTS

WORLD = Path("build/benchmarks/planted-1e6")


@dataclass(frozen=True)
class Ranks:
    """What the ranks of a group took and made."""

    peaks: list[int]
    cpu: float
    steps: int
    adapters: dict[str, Adapter]


@cache
def ranks(number: int) -> Ranks:
    """Train the planted world of 1e6 users on so many ranks; on none: in one process that has the
    whole base.
    """
    make_world(WORLD, 1_000_000, 300_000)
    module = "tests.benchmarks.distributed"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(launcher if number else []), "-m", module, str(WORLD), folder]
        usage(command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
        said = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
        adapters = load_adapters(Path(folder), [str(code) for code in range(SEGMENTS)])
    assert len(said) == max(1, number) and len(adapters) == SEGMENTS
    return Ranks(
        [each["peak"] for each in said],
        sum(each["cpu"] for each in said),
        sum(each["steps"] for each in said),
        adapters,
    )


@measures("sharded_equals_whole")
def sharded_equals_whole() -> Figure:
    """The largest difference of an adapter's number, trained on 2 and on 3 ranks over a sharded
    base, from what one process with the whole base trains.
    """
    whole = ranks(0).adapters
    largest = max(
        float((tensor - found.adapters[name].tensors[key]).abs().max())
        for found in (ranks(2), ranks(3))
        for name, adapter in whole.items()
        for key, tensor in adapter.tensors.items()
        if torch.is_floating_point(tensor)
    )
    return Figure("sharded_equals_whole", largest, "of a number", target="<= 0.000001")


@measures("peak_memory_per_rank_ratio_2")
def peak_memory_per_rank_ratio_2() -> Figure:
    """The memory of the larger of 2 ranks, base included, over that of one process with it all."""
    return Figure(
        "peak_memory_per_rank_ratio_2",
        max(ranks(2).peaks) / 2**20,
        "MiB",
        target="<= 0.6",
        peer="one process",
        peer_value=max(ranks(0).peaks) / 2**20,
    )


NIGHT = Path("build/benchmarks/night-2e6")


def night(number: int) -> list[int]:
    """The peaks of the ranks of a run of 2 M rows in 500 segments, over their imports."""
    if not (NIGHT / "run.toml").exists():
        make_night(NIGHT, WorldSize(2_000_000, 100_000, 20_000, 500))
    for left in ("runs", "work"):
        shutil.rmtree(NIGHT / left, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    words = ["retrain", str(NIGHT / "run.toml"), "--set", "workers=1"]
    with tempfile.TemporaryDirectory() as folder:
        module = ["-m", "tests.benchmarks.night_on_ranks", folder, *words]
        command = [sys.executable, *(launcher if number > 1 else []), *module]
        usage(command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
        said = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    assert len(said) == number
    return [each["peak"] for each in said]


@measures("night_memory_first_of_2", "night_memory_second_of_2")
def night_memory() -> list[Figure]:
    """The memory of the first of 2 ranks, which reads the log, and of the second one, which is sent
    the rows and users of its share, over that of one process.
    """
    (one,), (first, second) = night(1), night(2)
    peer = {"peer": "one process", "peer_value": one / 2**20}
    return [
        Figure("night_memory_first_of_2", first / 2**20, "MiB", "<= 1.1", **peer),
        Figure("night_memory_second_of_2", second / 2**20, "MiB", "<= 0.5", **peer),
    ]


@measures("step_cpu_ratio_2")
def step_cpu_ratio_2() -> Figure:
    """CPU time that a step costs 2 ranks, drawing and fetching beforehand and judging included,
    over that of one process; neither with opening the base.

    Ranks that share a machine's caches cost each other about a tenth.
    """
    two, one = ranks(2), ranks(0)
    return Figure(
        "step_cpu_ratio_2",
        1e3 * two.cpu / two.steps,
        "CPU-ms a step",
        target="<= 1.5",
        peer="one process",
        peer_value=1e3 * one.cpu / one.steps,
    )
