"""Where the rows of the tables go: the planner's numbers are the bytes that ranks really hold.

Run as a program this file is the ranks: one process loads TorchRec and forks groups of 1, 2 and 3.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from small_ranks import start_ranks
from small_worlds import make_base

from reclora.distributed.placement import (
    FETCH_ROWS,
    DistributedError,
    Placement,
    Sharding,
    TableSizes,
    free_memory,
    place,
)
from reclora.distributed.shards import ShardedBase

# TorchRec warns of itself as it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WORLDS = (1, 2, 3)
SHARDINGS: tuple[Sharding, ...] = ("row_wise", "table_wise")
SIZES = TableSizes(700, 1001, 10)
"""Neither rows nor widths are multiples of anything."""
PLENTY = 1 << 50
HUGE = TableSizes(10**9, 10**8, 64)


# The ranks.


def be_rank(number: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world)
    found = {}
    for sharding in SHARDINGS:
        base = ShardedBase.load(folder / "base", sharding=sharding)
        found[sharding] = {
            name.removesuffix("_table"): [first, rows.untyped_storage().nbytes()]
            for name, first, rows in base.local_rows()
            if name != "item_bias"  # it lies in the rows of the items
        }
    (folder / f"{world}-{number}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_base(SIZES.users, SIZES.items, SIZES.embedding_dim).save(folder / "base")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("world", WORLDS)
def test_a_plan_without_a_group_is_what_ranks_hold(
    folder: Path, world: int, sharding: Sharding
) -> None:
    placed = place(SIZES, world, PLENTY, sharding)
    for number in range(world):
        found = json.loads((folder / f"{world}-{number}.json").read_text())[sharding]
        planned = {s.table: [s.first, s.bytes] for s in placed.shards if s.rank == number}
        assert found == planned
        counted = placed.bytes_of(number)
        assert all(counted[table] > held for table, (_, held) in planned.items()), (
            "rows on their way are counted, too"
        )


# What the planner says of machines that are not there.


def need(placed: Placement) -> int:
    return sum(placed.bytes_of(placed.fullest).values())


def test_rows_of_1e9_users_on_64_ranks() -> None:
    placed = place(HUGE, 64, PLENTY)
    assert placed.num_ranks == 64 and len(placed.shards) == 128
    last = placed.shards[-1]
    assert (last.table, last.rank, last.rows, last.width) == ("user", 63, 10**9 // 64, 64)
    assert last.bytes == 4 * 64 * 10**9 // 64 and last.first == 10**9 - 10**9 // 64
    items = placed.shards[0]
    assert items.width == 68, "65 numbers, the bias among them, padded to a multiple of 4"
    assert 8 * FETCH_ROWS < items.bringing < 64 * FETCH_ROWS * 68


@given(
    users=st.integers(1, 10**9),
    items=st.integers(1, 10**8),
    dim=st.integers(1, 200),
    ranks=st.integers(1, 12),
)
@settings(max_examples=30, deadline=None)
def test_every_row_has_its_place_and_exactly_enough_memory_is_enough(
    users: int, items: int, dim: int, ranks: int
) -> None:
    sizes = TableSizes(users, items, dim)
    placed = place(sizes, ranks, PLENTY)
    for table, number, width in (("user", users, dim), ("item", items, dim + 1)):
        shards = [shard for shard in placed.shards if shard.table == table]
        assert [shard.rank for shard in shards] == list(range(ranks))
        share = -(-number // ranks)
        assert all(shard.rows == share and shard.first == share * shard.rank for shard in shards)
        assert all(width <= shard.width < width + 4 and not shard.width % 4 for shard in shards)
    assert place(sizes, ranks, need(placed)) == placed
    with pytest.raises(DistributedError, match="do not fit"):
        place(sizes, ranks, need(placed) - 1)


def test_what_does_not_fit_says_which_table_and_what_to_change() -> None:
    with pytest.raises(DistributedError) as told:
        place(HUGE, 8, 16 * 10**9)
    assert str(told.value) == (
        "the tables do not fit on 8 ranks, row_wise: rank 0 would hold table 'item' 3.401 GB and "
        "table 'user' 32 GB, 35.4 GB in all, and has 16 GB for them: take 18 ranks or more; or a "
        "base of embedding_dim 28 or less; or 35.4 GB of memory a rank"
    )
    place(HUGE, 18, 16 * 10**9)
    with pytest.raises(DistributedError):
        place(HUGE, 17, 16 * 10**9)
    place(TableSizes(10**9, 10**8, 28), 8, 16 * 10**9)
    with pytest.raises(DistributedError):
        place(TableSizes(10**9, 10**8, 29), 8, 16 * 10**9)


def test_a_whole_table_that_fits_on_no_rank_is_to_be_sharded_by_rows() -> None:
    with pytest.raises(DistributedError) as told:
        place(HUGE, 8, 128 * 10**9, "table_wise")
    assert "table 'user' 256 GB" in str(told.value), "the items lie on another rank"
    assert "take sharding row_wise on 8 ranks or more; or" in str(told.value)
    with pytest.raises(DistributedError, match="take sharding row_wise on 24 ranks or more; or"):
        place(HUGE, 8, 12 * 10**9, "table_wise")


def test_memory_that_no_number_of_ranks_is_enough_for() -> None:
    with pytest.raises(DistributedError) as told:
        place(SIZES, 2, 10)
    found = re.fullmatch(
        r".* has 1e-05 MB for them: take ([\d.]+) MB of memory a rank", *told.value.args
    )
    assert found and float(found[1]) * 10**6 == pytest.approx(
        need(place(SIZES, 2, PLENTY)), rel=1e-3
    )


def test_a_table_without_rows_has_one_on_every_rank() -> None:
    assert [shard.rows for shard in place(TableSizes(0, 5, 4), 2, PLENTY).shards] == [3, 3, 1, 1]


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="users and items must be 0 or more, got -1 and 1"):
        place(TableSizes(-1, 1, 1), 1, PLENTY)
    with pytest.raises(ValueError, match="must be at least 1, got 1, 0, 1"):
        place(TableSizes(1, 1, 1), 0, PLENTY)


def test_ranks_share_what_the_machine_has_free(tmp_path: Path) -> None:
    whole = free_memory(1)
    assert 0 < whole <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Others take and give back memory meanwhile.
    assert free_memory(4) == pytest.approx(whole / 4, rel=0.3)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(1, tmp_path) == pytest.approx(whole, rel=0.3)


def test_ranks_share_what_a_container_has_left(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")
    assert free_memory(2, tmp_path) == (1_000_000 - 700_000 + 100_000) // 2
    (tmp_path / "memory.current").write_text("1200000\n")
    assert free_memory(2, tmp_path) == 0


if __name__ == "__main__":
    start_ranks(WORLDS, be_rank, Path(sys.argv[1]))
