"""The ranks of a run: one process, or as many as torchrun has started.

    torchrun --nproc-per-node 4 --no-python reclora retrain run.toml

They hold the base's tables together, train each its own chunks of segments and rank each its own
users. The first one runs it, and tells the others what to do (`.orders`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta


def num_ranks() -> int:
    """How many ranks torchrun has started; 1 where there is none."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this process speaks for all."""
    return num_ranks() == 1 or os.environ["RANK"] == "0"


def is_restarted() -> bool:
    """Whether torchrun has started the same command again, after a rank was lost."""
    return num_ranks() > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def together(deadline_minutes: float) -> Iterator[None]:
    """Join the ranks to a group, and part at the end; nothing where there is one.

    Args:
        deadline_minutes: how long a rank waits for another.
    """
    if num_ranks() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(minutes=deadline_minutes))
    yield
    # Not where it failed: whoever waits for this rank learns it from the end of the process.
    dist.destroy_process_group()
