"""What a rank really takes, beside what `reclora.distributed.costs` counts: a process of its own,
writes JSON.

    python -m torch.distributed.run --nproc-per-node N -m tests.benchmarks.costs FOLDER OUT

FOLDER is the world of `tests.benchmarks.distributed`. A rank opens the base, trains its chunks,
ranks the catalogue for some users of each of its segments, and brings many rows and few. Peaks are
the kernel's high-water marks over what the process held before it opened the base; bytes on the
network are those of the loopback device, of all ranks.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from reclora.distributed import Request, ShardedBase, divide, rank_sharded, train_sharded
from reclora.distributed.placement import FETCH_ROWS
from reclora.interactions import IdMap

from .distributed import CHUNK_ROWS, bank_of, logs_of, sizes, warm_up_ranks
from .training_memory import CONFIG, _status, warm_up

USERS, K = 1000, 100
"""Of each segment who get lists, and their length."""
FETCHED = 16 * FETCH_ROWS
"""Rows of either table that every rank brings for the time that it takes."""


class Watch:
    """Peak of memory, seconds and bytes of the network since it was made."""

    def __init__(self, before: int) -> None:
        dist.barrier()
        self._before, self._network = before, _loopback()
        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")
        self._cpu, self._began = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        peak = _status("VmHWM") - self._before
        dist.barrier()
        network = _loopback() - self._network
        dist.barrier()
        return {"peak": peak, "cpu": cpu, "seconds": seconds, "network": network}


def opened(path: str) -> int:
    """Bytes that opening an id map takes at most, over what the process held before."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    IdMap.read(Path(path))
    return _status("VmHWM") - before


def _loopback() -> int:
    """Bytes that the loopback device has sent."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[9])


def main(folder: Path, out: Path) -> None:
    import torchrec  # noqa: F401  # what it takes is no part of the plan
    from torchrec.distributed import DistributedModelParallel  # noqa: F401

    torch.set_num_threads(1)
    warm_up()
    dist.init_process_group("gloo")
    warm_up_ranks(out / "warm")
    before, said = _status("VmRSS"), {}

    watch = Watch(before)
    base = ShardedBase.load(folder / "base")
    said["opening"] = watch.read()
    held = sum(
        rows.untyped_storage().nbytes()
        for name, _, rows in base.local_rows()
        if name != "item_bias"
    )
    said["tables"] = {"bytes": held}

    watch = Watch(before)
    done = train_sharded(
        base,
        divide(sizes(folder), CHUNK_ROWS, base.num_ranks)[base.rank],
        lambda codes: (*logs_of(base.without_rows, folder, codes), None),
        bank_of,
        CONFIG,
    )
    said["training"] = watch.read() | {
        "step_cpu": sum(chunk.training.seconds for chunk in done),
        "steps": sum(chunk.training.steps for chunk in done),
    }

    adapters = [adapter for chunk in done for adapter in chunk.adapters]
    requests = [
        Request(adapter, torch.arange(USERS) + USERS * at) for at, adapter in enumerate(adapters)
    ]
    watch = Watch(before)
    rank_sharded(base, requests, K)
    said["ranking"] = watch.read() | {"users": USERS * len(requests), "segments": len(requests)}

    said["many"] = brought(base, before, FETCHED, rounds=FETCHED // FETCH_ROWS)
    said["few"] = brought(base, before, 1, rounds=1)
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


def brought(base: ShardedBase, before: int, number: int, rounds: int) -> dict[str, float]:
    """The median of five fetches of so many random rows of either table; `rounds` of each."""
    generator = torch.Generator().manual_seed(base.rank)
    found = []
    for _ in range(5):
        users, items = (
            torch.randperm(rows, generator=generator)[:number] for rows in (1_000_000, 100_000)
        )
        watch = Watch(before)
        base.part(users, items)
        found.append(watch.read())
    middle = sorted(found, key=lambda one: one["seconds"])[2]
    return middle | {"rounds": 2 * rounds}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
