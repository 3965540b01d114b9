"""Figures of the low-rank engine, each beside its peer: PEFT's LoRA, full fine-tuning, or our own
code one segment at a time.

One thread, process-CPU time. Each measurement is a process of its own (`alone`).
"""

from __future__ import annotations

from .engine_worlds import alone
from .harness import Figure, measures
from .ours import (
    memory,
    mixed_batch,
    open_one,
    peak_of_one_pass,
    save_load,
    seconds_in_one_pass,
    seconds_per_segment,
    step,
)
from .peers import (
    PEFT,
    TABLES,
    TOWER,
    full_sparse_step,
    peft_mixed_batch,
    peft_save_load,
    peft_seconds_per_segment,
    peft_step,
)

USERS = 4_000_000
MANY = 256
BATCH_ROWS, EPOCHS = 16, 1
"""Rows of a segment in a step of the pass over many; epochs."""


@measures(
    "step_growth_1e5_to_4e6",
    "step_vs_peft_adam_4e6",
    "step_vs_peft_fused_4e6",
    "step_vs_full_sparse_4e6",
)
def steps() -> list[Figure]:
    """A step at batch 4096, R = 8, D = 64, items 1e5, tower 128-64-1; speed in steps a CPU-s."""
    small, large = alone(step, 100_000), alone(step, USERS)
    peers = {
        "step_vs_peft_adam_4e6": (alone(peft_step, USERS, fused=False), f"{PEFT}, Adam", 45),
        "step_vs_peft_fused_4e6": (alone(peft_step, USERS, fused=True), f"{PEFT}, fused Adam", 20),
        "step_vs_full_sparse_4e6": (alone(full_sparse_step, USERS), "full, SparseAdam", 1.3),
    }
    growth = Figure(
        "step_growth_1e5_to_4e6", large, "CPU-ms", "<= 1.15", "the same at 1e5 users", small
    )
    return [
        growth,
        *(
            Figure(name, 1e3 / large, "steps/CPU-s", f">= {target}", peer, 1e3 / milliseconds)
            for name, (milliseconds, peer, target) in peers.items()
        ),
    ]


@measures("extra_memory_4e6_mb")
def extra_memory() -> Figure:
    """What the deltas of tables of 4e6 users and 1e5 items add to the peak, 1e5 users touched."""
    whole = alone(memory, USERS, [*TABLES, *TOWER])
    tower = alone(memory, USERS, [*TOWER])
    return Figure("extra_memory_4e6_mb", (whole - tower) / 1e6, "MB", "<= 60")


@measures("one_pass_256_vs_each", "one_pass_256_vs_peft")
def one_pass() -> list[Figure]:
    """256 segments of 2,000 rows, 16 rows of each in a step, one epoch; segments a CPU-s."""
    ours = MANY / alone(seconds_in_one_pass, MANY, BATCH_ROWS, EPOCHS)
    each = 1 / alone(seconds_per_segment, BATCH_ROWS, EPOCHS)
    peft = 1 / alone(peft_seconds_per_segment, BATCH_ROWS, EPOCHS, fused=False)
    unit = "segments/CPU-s"
    return [
        Figure("one_pass_256_vs_each", ours, unit, ">= 10", "ours, one by one", each),
        Figure("one_pass_256_vs_peft", ours, unit, ">= 50", f"{PEFT}, Adam, in a loop", peft),
    ]


@measures("one_pass_5000_memory_gb")
def one_pass_memory() -> Figure:
    """The peak of all of a pass over 5,000 such segments, base and log included."""
    peak = alone(peak_of_one_pass, 5_000, BATCH_ROWS)
    return Figure("one_pass_5000_memory_gb", peak / 1e9, "GB", "<= 4")


@measures("mixed_batch_2", "mixed_batch_16", "mixed_batch_64", "mixed_batch_256")
def mixed_batches() -> list[Figure]:
    """A forward of 4096 rows of mixed segments through four adapted layers of 64 x 64.

    The targets are 2.5, 4, 5 and 10 CPU-ms where PEFT takes 15, 30, 64 and 204.
    """
    targets = {2: 2.5 / 15, 16: 4 / 30, 64: 5 / 64, 256: 10 / 204}
    return [
        Figure(
            f"mixed_batch_{adapters}",
            alone(mixed_batch, adapters),
            "CPU-ms",
            f"<= {target:.3f}",
            PEFT,
            alone(peft_mixed_batch, adapters),
        )
        for adapters, target in targets.items()
    ]


@measures("save_load_256", "save_load_5000")
def saving() -> list[Figure]:
    """The slower of publishing and loading so many adapters of four layers.

    The target at 256 is 0.01 CPU-s where PEFT takes 9.3.
    """
    ours, peft = alone(save_load, MANY), alone(peft_save_load, MANY)
    return [
        Figure("save_load_256", ours, "CPU-s", "<= 0.0011", PEFT, peft),
        Figure("save_load_5000", alone(save_load, 5_000), "CPU-s", "<= 0.5"),
    ]


@measures("open_one_of_5000_ms")
def opening() -> Figure:
    """Opening one adapter of 5,000 by a store that has read nothing yet."""
    return Figure("open_one_of_5000_ms", alone(open_one, 5_000), "CPU-ms", "<= 1")
