"""A rank that trains its segments of the planted world over a sharded base, beside one process that
has the whole: a process of its own, writes JSON and its adapters.

    python -m torch.distributed.run --nproc-per-node N -m tests.benchmarks.distributed FOLDER OUT
    python -m tests.benchmarks.distributed FOLDER OUT

Without torchrun it is the one process: the base mapped from its file, the same chunks, the same
loop. FOLDER is the world of `training_memory`, made where it is not there yet. The peak is the
kernel's high-water mark of the resident set over what the process held, with TorchRec loaded and
all loops compiled, before it opened the base.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.distributed import ShardedBase, divide, save_adapters, train_sharded
from reclora.distributed.division import Codes
from reclora.interactions import IdMap, Interactions
from reclora.training import HeldOutLoss, train

from .training_memory import CONFIG, DIM, RANK, SEGMENTS, _status, make, warm_up

CHUNK_ROWS = 40_000
Logs = tuple[Interactions, Interactions]


def logs_of(base: BaseModel, folder: Path, codes: Codes) -> Logs:
    """The rows of some segments, and every tenth of them held out."""
    arrays = np.load(folder / "log.npz")
    segments = arrays["segments"]
    place = np.full(SEGMENTS, -1)
    place[list(codes)] = np.arange(len(codes))
    own = place[segments] >= 0
    log = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=[str(code) for code in codes],
        **{name: arrays[name][own] for name in arrays.files if name != "segments"},
        segments=place[segments[own]],
    )
    is_held_out = np.arange(len(log)) % 10 == 9
    return log.select(~is_held_out), log.select(is_held_out)


def bank_of(base: BaseModel, log: Interactions, codes: Codes) -> AdapterBank:
    return AdapterBank.for_log(base, log, AdapterConfig(rank=RANK))


def sizes(folder: Path) -> np.ndarray:
    return np.bincount(np.load(folder / "log.npz")["segments"], minlength=SEGMENTS)


def alone(folder: Path) -> tuple[list[Adapter], int, float]:
    """Every chunk by this process: adapters, steps, and CPU seconds without opening the base."""
    base = BaseModel.load(folder / "base")
    adapters, steps, began = list[Adapter](), 0, time.process_time()
    for codes in divide(sizes(folder), CHUNK_ROWS, 1)[0]:
        log, held_out = logs_of(base, folder, codes)
        bank = bank_of(base, log, codes)
        training = train(bank, log, CONFIG, judge=HeldOutLoss(held_out, CONFIG))
        adapters += bank.adapters()
        steps += training.steps
    return adapters, steps, time.process_time() - began


def among_others(folder: Path) -> tuple[list[Adapter], int, float]:
    """The chunks of this rank."""
    base = ShardedBase.load(folder / "base")
    began = time.process_time()
    done = train_sharded(
        base,
        divide(sizes(folder), CHUNK_ROWS, base.num_ranks)[base.rank],
        lambda codes: (*logs_of(base.without_rows, folder, codes), None),
        bank_of,
        CONFIG,
    )
    adapters = [adapter for chunk in done for adapter in chunk.adapters]
    steps = sum(chunk.training.steps for chunk in done)
    return adapters, steps, time.process_time() - began


def warm_up_ranks(folder: Path) -> None:
    """Bring a few rows once, so that TorchRec's and gloo's own buffers are in memory before."""
    if dist.get_rank() == 0:
        ids = IdMap(range(20_000))
        tables = torch.randn(len(ids), DIM), torch.randn(len(ids), DIM)
        BaseModel.of(ids, ids, *tables).save(folder)
    dist.barrier()
    base, rows = ShardedBase.load(folder), torch.arange(20_000)
    base.part(rows, rows)


def main(folder: Path, out: Path) -> None:
    import torchrec  # noqa: F401  # what it takes is no part of the ratio
    from torchrec.distributed import DistributedModelParallel  # noqa: F401

    torch.set_num_threads(1)
    warm_up()
    is_rank = "RANK" in os.environ
    if is_rank:
        dist.init_process_group("gloo")
        warm_up_ranks(out / "warm")
    number = dist.get_rank() if is_rank else 0
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    adapters, steps, cpu = among_others(folder) if is_rank else alone(folder)
    peak = _status("VmHWM") - before
    save_adapters(out, adapters)
    found = {"peak": peak, "cpu": cpu, "steps": steps}
    (out / f"rank-{number}.json").write_text(json.dumps(found))
    if is_rank:
        dist.barrier()
        dist.destroy_process_group()


def make_world(folder: Path, num_users: int, num_rows: int) -> None:
    """Write the world where it is not yet there."""
    if not (folder / "base").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, num_users, num_rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
