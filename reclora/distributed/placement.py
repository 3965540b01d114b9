"""This file is where the rows of the tables go: TorchRec's planner, asked before anything starts.

Of W ranks one holds, of a table of N rows of width X (D for users, D + 1 for items),

    row_wise      ceil(N / W) rows of ceil(X / 4) x 4 numbers of 4 bytes
    table_wise    all W ceil(N / W) of them, or none

and the planner adds what bringing rows takes. Tables on the `meta` device have no numbers, and a
plan for 64 ranks needs no process but this one.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

Sharding = Literal["row_wise", "table_wise"]
FETCH_ROWS = 1 << 12
"""Rows that a rank asks for at once: TorchRec copies what it brings several times."""
MOST_RANKS = 1024
"""Beyond it more ranks are no advice."""
GB = 10**9


class DistributedError(RuntimeError):
    """The ranks cannot work together; the message says why and what to do."""


@dataclass(frozen=True)
class TableSizes:
    """What is sharded: the users' rows and the items', each item's bias behind its vector."""

    users: int
    items: int
    embedding_dim: int
    """D."""

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Table -> its rows and its width, padded: FBGEMM wants multiples of 4."""
        widths = self.embedding_dim, self.embedding_dim + 1
        rows = self.users, self.items
        return {
            name: (number, -(-width // 4) * 4)
            for name, number, width in zip(("user", "item"), rows, widths, strict=True)
        }


@dataclass(frozen=True)
class Shard:
    """The rows of a table that lie on a rank."""

    table: str
    """`user` or `item`."""
    rank: int
    first: int
    """The first of its rows."""
    rows: int
    """Those that pad a table to a multiple of the ranks among them."""
    width: int
    bringing: int
    """Bytes that the planner counts for a round of rows on its way."""

    @property
    def bytes(self) -> int:
        """Of the rows themselves."""
        return 4 * self.rows * self.width


@dataclass(frozen=True)
class Placement:
    """Which rank holds which rows."""

    shards: tuple[Shard, ...]
    num_ranks: int

    def bytes_of(self, rank: int) -> dict[str, int]:
        """Table -> the bytes that the planner counts on a rank, those of bringing rows included."""
        return {s.table: s.bytes + s.bringing for s in self.shards if s.rank == rank}

    @property
    def fullest(self) -> int:
        """The rank with the most bytes, the first of equal ones."""
        return max(range(self.num_ranks), key=lambda rank: sum(self.bytes_of(rank).values()))


def place(
    sizes: TableSizes,
    num_ranks: int,
    memory: int,
    sharding: Sharding = "row_wise",
    ranks_per_host: int = 1,
) -> Placement:
    """Where TorchRec's planner puts the tables; no process group, and no table is made.

    Args:
        num_ranks: W, at least 1.
        memory: bytes that the tables may take on each rank.

    Raises:
        DistributedError: they do not fit; the message names the tables, what each needs, and what
            would fit.
        ValueError: a size or a number of ranks out of its range.
    """
    if min(sizes.users, sizes.items) < 0:
        raise ValueError(f"users and items must be 0 or more, got {sizes.users} and {sizes.items}")
    numbers = sizes.embedding_dim, num_ranks, ranks_per_host
    if min(numbers) < 1:
        raise ValueError(
            "embedding_dim, num_ranks and ranks_per_host must be at least 1, got "
            f"{', '.join(map(str, numbers))}"
        )
    from torchrec.distributed.planner.types import PlannerError

    try:
        return _placed(sizes, num_ranks, memory, sharding, ranks_per_host)
    except PlannerError as error:
        raise DistributedError(_does_not_fit(sizes, num_ranks, memory, sharding)) from error


def _placed(
    sizes: TableSizes, num_ranks: int, memory: int, sharding: Sharding, ranks_per_host: int
) -> Placement:
    options: list[Any] = []

    def keep(best: list[Any]) -> list[Any]:
        options.extend(best)
        return best

    planner = planner_of(num_ranks, memory, sharding, ranks_per_host, [keep])
    planner.plan(tables_of(sizes, num_ranks), sharders())
    shards = [
        Shard(
            option.name,
            shard.rank,
            first=shard.offset[0],
            rows=shard.size[0],
            width=shard.size[1],
            bringing=shard.storage.ddr - 4 * shard.size[0] * shard.size[1],
        )
        for option in options
        for shard in option.shards
    ]
    return Placement(tuple(sorted(shards, key=lambda s: (s.table, s.rank))), num_ranks)


def _does_not_fit(sizes: TableSizes, num_ranks: int, memory: int, sharding: Sharding) -> str:
    """What is asked of a rank and what it has; and what would fit, by the planner's own count."""
    wanted = _unbounded(sizes, num_ranks, sharding)
    each = wanted.bytes_of(wanted.fullest)
    tables = " and ".join(f"table {name!r} {_gb(number)}" for name, number in each.items())
    ways = []
    enough = _enough_ranks(sizes, num_ranks, memory)
    if enough and sharding == "table_wise":
        ways.append(f"sharding row_wise on {enough} ranks or more")
    elif enough:
        ways.append(f"{enough} ranks or more")
    for dim in range(-(-sizes.embedding_dim // 4) * 4 - 4, 3, -4):
        if _most_bytes(replace(sizes, embedding_dim=dim), num_ranks, sharding) <= memory:
            ways.append(f"a base of embedding_dim {dim} or less")
            break
    ways.append(f"{_gb(sum(each.values()))} of memory a rank")
    return (
        f"the tables do not fit on {num_ranks} ranks, {sharding}: rank {wanted.fullest} would hold "
        f"{tables}, {_gb(sum(each.values()))} in all, and has {_gb(memory)} for them: take "
        f"{'; or '.join(ways)}"
    )


def _enough_ranks(sizes: TableSizes, num_ranks: int, memory: int) -> int | None:
    """From how many ranks on the tables fit by rows; None where that is more than anyone has."""
    here = _unbounded(sizes, num_ranks, "row_wise")
    left = memory - sum(shard.bringing for shard in here.shards if shard.rank == 0)

    def shares(ranks: int) -> int:
        return sum(4 * -(-rows // ranks) * width for rows, width in sizes.shapes.values())

    enough = bisect_left(range(MOST_RANKS), -left, lo=num_ranks, key=lambda ranks: -shares(ranks))
    # What bringing rows takes depends on the ranks, a little.
    for ranks in range(enough, min(enough + 3, MOST_RANKS)):
        if _most_bytes(sizes, ranks, "row_wise") <= memory:
            return ranks
    return None


def _unbounded(sizes: TableSizes, num_ranks: int, sharding: Sharding) -> Placement:
    """The planner's placement on ranks that have memory enough for anything."""
    return _placed(sizes, num_ranks, 1 << 60, sharding, 1)


def _most_bytes(sizes: TableSizes, num_ranks: int, sharding: Sharding) -> int:
    """Of the fullest rank."""
    wanted = _unbounded(sizes, num_ranks, sharding)
    return sum(wanted.bytes_of(wanted.fullest).values())


def _gb(number: int) -> str:
    return f"{number / GB:,.4g} GB" if number >= GB // 10 else f"{number / 10**6:,.4g} MB"


def free_memory(ranks_here: int, group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that each of so many processes of this machine may still take: its share of what the
    kernel has available, or of what the container may take where that is less.

    Args:
        group: the container's control group; one without a limit bounds nothing.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    about, limit = Path("/proc/meminfo"), group / "memory.max"
    if about.exists():
        free = int(_numbers(about)["MemAvailable:"]) * 1024
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        # Pages of files that were read are given back when others want memory.
        taken = int((group / "memory.current").read_text())
        free = min(free, int(text) - taken + int(_numbers(group / "memory.stat")["inactive_file"]))
    return max(0, free) // ranks_here


def _numbers(path: Path) -> dict[str, str]:
    """Name -> number, of a file of the kernel's with one of each a line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: words[1] for words in lines}


# What the planner is asked, before anything starts and as ranks start.


class Tables(torch.nn.Module):
    """Both tables; TorchRec has a collection for each width."""

    def __init__(self, collections: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self.collections = torch.nn.ModuleDict(collections)

    def forward(self, name: str, wanted: Any) -> Any:
        return self.collections[name](wanted)


def tables_of(sizes: TableSizes, num_ranks: int) -> Tables:
    """TorchRec's tables on `meta`: no rank makes a whole one."""
    from torchrec import EmbeddingCollection, EmbeddingConfig

    return Tables(
        {
            name: EmbeddingCollection(
                device=torch.device("meta"),
                tables=[
                    EmbeddingConfig(
                        name=name,
                        # No rank may be without a row.
                        num_embeddings=max(1, -(-rows // num_ranks)) * num_ranks,
                        embedding_dim=width,
                        feature_names=[name],
                    )
                ],
            )
            for name, (rows, width) in sizes.shapes.items()
        }
    )


def sharders() -> list[Any]:
    """Plain SGD has no state, and never steps."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embedding import EmbeddingCollectionSharder

    fused = {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.0}
    return [EmbeddingCollectionSharder(fused_params=fused)]


def planner_of(
    num_ranks: int,
    memory: int,
    sharding: Sharding,
    ranks_per_host: int,
    callbacks: list[Any] | None = None,
) -> Any:
    """TorchRec's planner for ranks with so many bytes of memory for tables each."""
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import (
        KernelConfig,
        ParameterConstraints,
        TopologyFactory,
        TrainerConfig,
    )

    topology = TopologyFactory.create_topology(
        TrainerConfig(
            world_size=num_ranks,
            local_world_size=min(ranks_per_host, num_ranks),
            ddr_cap_bytes=memory,
        ),
        kernel_config=KernelConfig(compute_device="cpu"),
    )
    # The free planner copies small tables to every rank.
    constraints = {
        name: ParameterConstraints(sharding_types=[sharding], compute_kernels=["fused"])
        for name in ("user", "item")
    }
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=FETCH_ROWS,
        # `memory` is what the tables alone may take.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        constraints=constraints,
        callbacks=callbacks,
    )
