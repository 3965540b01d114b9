"""The ranks of a run: one process, or as many as torchrun has started.

    torchrun --nproc-per-node 4 --no-python reclora retrain run.toml

Every rank runs the same lines on the same log. They hold the base's tables together, train each its
own chunks of segments and rank each its own users; what one has made the others read from the run's
folder, which all of them see. So all of them choose and decide alike, and the first one alone
publishes, measures and writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from reclora.distributed import ShardedBase
    from reclora.evaluation import HeldOut, KeptLists, Lists, ScorerOf
    from reclora.evaluation.lists import Progress

Made = TypeVar("Made")


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


def in_turn(work: Callable[[], Made]) -> Made:
    """What `work` makes: on the first rank first, then on the others, which find it there."""
    if num_ranks() == 1:
        return work()
    import torch.distributed as dist

    if is_first():
        made = work()
        dist.barrier()
        return made
    dist.barrier()
    return work()


def check_same(what: str, text: str) -> None:
    """Refuse to go on where ranks see different things.

    Raises:
        DistributedError: what it is, and what this rank and the first one have of it.
    """
    if num_ranks() > 1:
        from reclora.distributed.shards import check_same

        check_same(what, text)


def recommend(
    held_out: HeldOut,
    scorer_of: ScorerOf,
    *,
    model: str,
    workers: int,
    shards: ShardedBase | None,
    kept: KeptLists | None,
    progress: Progress | None = None,
) -> dict[str, Lists]:
    """`reclora.evaluation.recommend`, by this process's workers or by all ranks."""
    if shards is None:
        from reclora.evaluation import recommend

        return recommend(
            held_out, scorer_of, model=model, progress=progress, processes=workers, kept=kept
        )
    from reclora.distributed import recommend_sharded

    assert kept is not None, "ranks find each other's lists in the run's folder"
    return {"": recommend_sharded(shards, held_out, scorer_of, kept)}
