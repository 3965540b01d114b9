"""The memory that training adapters takes beside a large base: a process of its own, prints JSON.

    python -m tests.benchmarks.training_memory FOLDER NUM_USERS NUM_ROWS

FOLDER keeps the planted world's base and log between runs. The peak is the kernel's high-water
mark of the resident set (VmHWM), reset when base and log are there, over what the process held
before them. Pages of the memory-mapped base that were touched count in it.

The bound is, in bytes, with T slots (touched rows of all segments, of users or of items), S
segments and a step of B rows and J negatives for each of G segments:

    base      tables, item bias and identifiers
    log       rows x 10 numbers of 8 bytes: the rows twice, an epoch's keys and order
    touched   T x (R trained + R kept of the best epoch + 1 of Adagrad, of 4 bytes; 3 x 8 bytes of
              row, key and slot), the bias likewise, and 2 x 2 x S x R x D of the common factors
    batch     FACTOR x 4 bytes x G x ((2 B + J) x D of vectors + B x J of scores)
    slack     what does not scale
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.datasets.planted import PlantedConfig, plant
from reclora.interactions import IdMap, Interactions
from reclora.training import HeldOutLoss, TrainingConfig, train

DIM, RANK, SEGMENTS, ITEMS = 64, 8, 16, 100_000
CONFIG = TrainingConfig(epochs=2, batch_rows=256, num_negatives=64, step_rows=4096)
FACTOR = 12
"""Copies of a batch's vectors and scores alive at once: rows, adapted rows, changes, products,
gradients.
"""
SLACK = 16 << 20
"""Bytes that do not scale: code paged in by the first step, allocator rounding, threads' buffers.
"""


def make(folder: Path, num_users: int, num_rows: int) -> None:
    """Write the base and the adapt period's rows."""
    world = plant(
        PlantedConfig(
            num_users=num_users,
            num_items=ITEMS,
            dim=DIM,
            num_segments=SEGMENTS,
            num_base_interactions=1000,
            num_interactions=num_rows,
        )
    )
    users, items = IdMap(world.user_ids), IdMap(world.item_ids)
    vectors = [torch.from_numpy(v) for v in (world.user_vectors, world.item_vectors)]
    base = BaseModel.of(users, items, *vectors, torch.from_numpy(world.item_bias))
    chunks = list(world.chunks())[1:]  # the first is the base period
    rows = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks]).astype(np.int64)
        for name in ("user_rows", "item_rows", "timestamps")
    }
    np.savez(folder / "log.npz", segments=world.user_segment[rows["user_rows"]], **rows)
    base.save(folder / "base")


def warm_up() -> None:
    """Train a handful of rows, so that the code itself and its buffers are in memory before."""
    ids = IdMap(range(20))
    base = BaseModel.of(ids, ids, torch.randn(20, DIM), torch.randn(20, DIM))
    rows = np.arange(20)
    log = Interactions.from_arrays(
        users=ids,
        items=ids,
        segment_names=["0"],
        segments=np.zeros(20, np.int64),
        user_rows=rows,
        item_rows=rows,
        timestamps=rows,
    )
    train(
        AdapterBank.for_log(base, log, AdapterConfig(rank=RANK)),
        log,
        CONFIG,
        judge=HeldOutLoss(log, CONFIG),
    )


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main(folder: Path, num_users: int, num_rows: int) -> dict[str, float]:
    """Train and return bytes: base, peak over what was resident before the base, bound."""
    if not (folder / "base").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, num_users, num_rows)
    torch.set_num_threads(1)
    warm_up()
    before = _status("VmRSS")
    base = BaseModel.load(folder / "base")
    arrays = np.load(folder / "log.npz")
    log = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=[str(s) for s in range(SEGMENTS)],
        **{name: arrays[name] for name in arrays.files},
    )
    is_held_out = np.arange(len(log)) % 10 == 9
    held_out, log = log.select(is_held_out), log.select(~is_held_out)
    Path("/proc/self/clear_refs").write_text("5")
    bank = AdapterBank.for_log(base, log, AdapterConfig(rank=RANK))
    train(bank, log, CONFIG, judge=HeldOutLoss(held_out, CONFIG))
    peak = _status("VmHWM") - before
    return {"base": base_bytes(base, folder), "peak": peak, "bound": bound(bank, log, folder)}


def base_bytes(base: BaseModel, folder: Path) -> int:
    """The base's tables and id maps, as they lie in memory."""
    tables = (folder / "base" / "tables.safetensors").stat().st_size
    return tables + int(base.users.ids.nbytes) + int(base.items.ids.nbytes)


def bound(bank: AdapterBank, log: Interactions, folder: Path) -> int:
    """The formula of the module's docstring."""
    slots = len(bank.touched_users) + len(bank.touched_items)
    touched = slots * (4 * (2 * RANK + 1) + 24) + len(bank.touched_items) * 4 * 3
    common = 2 * SEGMENTS * RANK * DIM * 4 * 2
    rows = len(log) * 10 // 9 * 8 * (2 * 3 + 4)
    G = CONFIG.step_rows // CONFIG.batch_rows
    vectors = G * (2 * CONFIG.batch_rows + CONFIG.num_negatives) * DIM
    scores = G * CONFIG.batch_rows * CONFIG.num_negatives
    base = base_bytes(bank.base, folder)
    return base + touched + common + rows + FACTOR * 4 * (vectors + scores) + SLACK


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
