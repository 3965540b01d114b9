"""What a night on many hosts takes: counts worked out by hand, and how they grow."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.distributed.costs import (
    OPENED_ID,
    Cluster,
    Memory,
    Night,
    Work,
    bringing,
    catalogue,
    chunk,
    memory,
    plan,
    step,
)
from reclora.distributed.placement import GB, DistributedError, Placement, TableSizes, place
from reclora.training import TrainingConfig
from tests.blocks import blocks

DOCS = Path(__file__).parent.parent / "docs"
# TorchRec warns of itself as it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIG = TrainingConfig(epochs=3, batch_rows=8, num_negatives=5, step_rows=16)
SMALL = Night(
    TableSizes(users=100, items=40, embedding_dim=6),
    segments=5,
    segment_rows=30,
    rank=2,
    chunk_rows=70,
    listed=50,
    distinct=0.5,
    held_out=0.1,
    k=10,
    config=CONFIG,
)
HUGE = Night(
    TableSizes(users=10**9, items=10**8, embedding_dim=64),
    segments=10_000,
    segment_rows=100_000,
    rank=8,
    chunk_rows=10**6,
    listed=10**6,
    distinct=0.5,
)
HOSTS = Cluster(
    hosts=8,
    ranks_per_host=1,
    memory=512 * GB,
    network=3 * GB,
    step_flops=4e9,
    rank_flops=1e12,
    round_seconds=0.003,
)


def nothing_placed(ranks: int) -> Placement:
    return Placement((), ranks)


# By hand.


def test_a_chunk_by_hand() -> None:
    assert (SMALL.chunk_segments, SMALL.step_segments) == (2, 2)
    assert [SMALL.chunks(ranks) for ranks in (1, 2, 3, 4)] == [3, 2, 1, 1]
    assert SMALL.chunk_steps == 3 * 1 * 4
    assert SMALL.chunk_users == 30
    # 2 segments x 3 uniform x (3 epochs of 4 steps + 1 to judge by) = 78 draws of 400 items.
    many = replace(SMALL, tables=replace(SMALL.tables, items=400))
    assert many.chunk_items == 30 + math.ceil(400 * (1 - math.exp(-78 / 400)))
    assert SMALL.chunk_items == 40, "no more than there are"
    bpr = replace(many, config=replace(CONFIG, loss="bpr"))
    assert bpr.chunk_items == 30 + math.ceil(400 * (1 - math.exp(-130 / 400)))


def test_work_by_hand() -> None:
    # A segment's step: 8 rows x 6 scores, 21 rows adapted by 2 factors, 6 numbers each, 3 x 2.
    assert step(SMALL) == Work(2 * 6 * 6 * (8 * 6 + 2 * 21), 0.0, 0)
    assert chunk(SMALL, 4) == Work(2 * 12 * 3240, 0.75 * 70 * (8 * 4 + 8), 2)
    assert chunk(SMALL, 1).network == 0
    assert bringing(SMALL, 2, 4097, 1) == Work(0.0, 0.5 * 4098 * 40, 3)
    assert catalogue(SMALL, 4, 10, 2) == Work(2 * 6 * 40 * (10 + 2 * 2), 0.75 * 50 * 40, 2)
    assert catalogue(SMALL, 4, 0, 2) == Work(0.0, 0.0, 0)
    # A block of 65,536 items is 16 rounds; of 70,000 the rest is two.
    wide = replace(SMALL, tables=replace(SMALL.tables, items=70_000))
    assert catalogue(wide, 4, 10, 2).rounds == 1 + 16 + 2


def test_memory_by_hand() -> None:
    placement = place(SMALL.tables, 2, 1 << 40)
    found = memory(SMALL, placement)
    assert found == Memory(
        identifiers=140 * 8,
        opening=math.ceil(OPENED_ID * 8 * 100),
        tables=sum(placement.bytes_of(0).values()),
        adapters=2 * (4 * (5 * 30 + 2 * 2 * 2 * 6) + 16 * 30),
        trains=4 * (30 * 6 + 40 * 7)
        + (8 * 30 + 4 * 100)
        + (8 * 40 + 4 * 40)
        + (2 * 30 * (4 * 5 + 24) + 12 * 30 + 16 * 2 * 2 * 6)
        + 80 * 66
        + 4 * 12 * 2 * (21 * 6 + 8 * 5)
        + 4 * 40,
        ranks=4 * 25 * 6 + (8 * 25 + 4 * 100) + 12 * 25 * 10 + 4 * 7 * 40 * 7,
    )
    assert found.beside_tables == found.identifiers + found.adapters + found.trains
    assert found.peak == found.beside_tables + found.tables
    # Where few rows of a table are here, they are hashed.
    few = replace(SMALL, tables=replace(SMALL.tables, users=1000), listed=50)
    grown = memory(few, placement).trains - found.trains
    assert grown == 32 * 30 - 4 * 100


def test_identifiers_are_opened_before_anything_else_is_there() -> None:
    found = memory(HUGE, place(HUGE.tables, 64, 1 << 40))
    assert found.peak == found.identifiers + found.opening == 8 * (11 * 10**8 + OPENED_ID * 10**9)
    letters = memory(replace(HUGE, id_bytes=20.0), nothing_placed(64))
    assert (letters.identifiers, letters.opening) == (20 * 11 * 10**8, OPENED_ID * 20 * 10**9)


def test_seconds_are_those_of_the_slower() -> None:
    work = Work(flops=8e12, network=6e9, rounds=1000)
    assert work.seconds(HOSTS, 1e12) == 8.0
    assert work.seconds(HOSTS, 1e13) == 2.0 + 3.0
    assert work.seconds(replace(HOSTS, ranks_per_host=2), 1e13) == 4.0 + 3.0


def test_a_plan_by_hand() -> None:
    of = replace(SMALL, judged=30)
    cluster = replace(HOSTS, hosts=2, ranks_per_host=1)
    found = plan(of, cluster)
    assert found.training == chunk(of, 2).times(2)
    # 3 epochs of 2 chunks of 2 ranks: 30 / 4 users each time, of 2 segments.
    assert found.judging == catalogue(of, 2, 8, 2).times(6)
    assert found.ranking == catalogue(of, 2, 25, 3)
    assert found.memory == memory(of, found.placement)
    assert found.seconds["training"] == found.training.seconds(cluster, 4e9)
    assert found.seconds["judging"] == found.judging.seconds(cluster, 1e12)
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()))


# How they grow.

NIGHTS = st.builds(
    Night,
    st.builds(TableSizes, st.integers(50, 10**9), st.integers(1, 10**8), st.integers(1, 200)),
    segments=st.integers(1, 20_000),
    segment_rows=st.integers(1, 10**6),
    rank=st.integers(1, 64),
    chunk_rows=st.integers(1, 10**7),
    listed=st.integers(0, 50),
    judged=st.integers(0, 50),
    distinct=st.floats(0.01, 1),
    held_out=st.floats(0, 1),
    k=st.integers(1, 1000),
    config=st.builds(
        TrainingConfig,
        loss=st.sampled_from(["softmax", "bpr"]),
        epochs=st.integers(1, 50),
        batch_rows=st.integers(1, 1000),
        num_negatives=st.integers(1, 1000),
        step_rows=st.integers(1, 10**5),
    ),
)


def work_of(night: Night, ranks: int) -> tuple[float, float]:
    """Flops of training, and of ranking, of the busiest rank of so many hosts."""
    own, segments = -(-night.listed // ranks), -(-night.segments // ranks)
    return (
        chunk(night, ranks).flops * night.chunks(ranks),
        catalogue(night, ranks, own, min(own, segments)).flops,
    )


@given(NIGHTS, st.integers(1, 64), st.integers(1, 64))
def test_more_ranks_hold_and_do_no_more_each(night: Night, ranks: int, more: int) -> None:
    few, many = memory(night, nothing_placed(ranks)), memory(night, nothing_placed(ranks + more))
    assert all(getattr(many, each.name) <= getattr(few, each.name) for each in fields(Memory))
    assert all(
        a <= b for a, b in zip(work_of(night, ranks + more), work_of(night, ranks), strict=True)
    )
    assert bringing(night, ranks + more, 7, 9).network >= bringing(night, ranks, 7, 9).network


@given(NIGHTS, st.integers(1, 64), st.integers(1, 1000), st.data())
def test_a_larger_night_takes_no_less(
    night: Night, ranks: int, more: int, data: st.DataObject
) -> None:
    owners = {
        "users": night.tables,
        "items": night.tables,
        "embedding_dim": night.tables,
        "epochs": night.config,
        "num_negatives": night.config,
        "segments": night,
        "rank": night,
        "k": night,
    }
    name = data.draw(st.sampled_from(list(owners)))
    owner = owners[name]
    grown = replace(owner, **{name: getattr(owner, name) + more})
    larger = {
        night.tables: lambda: replace(night, tables=grown),
        night.config: lambda: replace(night, config=grown),
        night: lambda: grown,
    }[owner]()
    before, after = memory(night, nothing_placed(ranks)), memory(larger, nothing_placed(ranks))
    assert all(getattr(after, each.name) >= getattr(before, each.name) for each in fields(Memory))
    assert all(a >= b for a, b in zip(work_of(larger, ranks), work_of(night, ranks), strict=True))


@given(st.sampled_from(["network", "step_flops", "rank_flops"]), st.floats(1, 100))
@settings(max_examples=10, deadline=None)
def test_a_faster_cluster_is_no_slower(name: str, times: float) -> None:
    slow = plan(HUGE, replace(HOSTS, hosts=64))
    fast = plan(HUGE, replace(HOSTS, hosts=64, **{name: getattr(HOSTS, name) * times}))
    assert all(fast.seconds[stage] <= slow.seconds[stage] for stage in slow.seconds)
    assert fast.memory == slow.memory


# What does not fit.


def test_a_plan_that_does_not_fit_says_what_and_what_to_change() -> None:
    plan(HUGE, HOSTS)
    with pytest.raises(
        DistributedError, match=r"each of 32 ranks of a host has 16 GB, but opening"
    ):
        plan(HUGE, replace(HOSTS, ranks_per_host=32))
    smaller = replace(HUGE, tables=replace(HUGE.tables, users=10**8), listed=10**7)
    cluster = replace(HOSTS, memory=64 * GB)
    plan(smaller, cluster)
    with pytest.raises(DistributedError, match="most of it training a chunk.*smaller chunks"):
        plan(replace(smaller, chunk_rows=10**9), cluster)
    with pytest.raises(DistributedError, match="most of it users and their lists.*fewer users"):
        plan(replace(smaller, listed=10**8, k=1000), cluster)
    with pytest.raises(DistributedError, match="most of it the adapters.*smaller rank"):
        plan(replace(smaller, segments=10**6), cluster)
    with pytest.raises(DistributedError, match="tables do not fit on 8 ranks, row_wise"):
        plan(replace(smaller, tables=replace(smaller.tables, embedding_dim=1024)), cluster)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tables": TableSizes(1, 0, 4)}, "items must be at least 1, got 0"),
        ({"segments": 0}, "segments must be at least 1, got 0"),
        ({"k": 0}, "k must be at least 1"),
        ({"listed": 101}, "listed must be from 0 to the 100 users, got 101"),
        ({"judged": -1}, "judged must be from 0"),
        ({"distinct": 0.0}, "distinct must be above 0 and at most 1, got 0.0"),
        ({"held_out": -0.1}, "held_out must be 0 or more"),
        ({"id_bytes": math.inf}, "id_bytes above 0"),
    ],
)
def test_a_night_out_of_range_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(SMALL, **change)


def test_a_cluster_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="hosts must be positive, got 0"):
        replace(HOSTS, hosts=0)
    with pytest.raises(ValueError, match="network must be positive, got inf"):
        replace(HOSTS, network=math.inf)


def test_the_table_of_the_page_is_what_its_block_makes() -> None:
    page = (DOCS / "distributed.md").read_text(encoding="utf-8")
    (block,) = (one for one in blocks(page, "python") if "distributed.costs" in one)
    made: dict[str, Any] = {}
    exec(block, made)
    assert made["table"] in page, f"docs/distributed.md: write\n{made['table']}"
    assert made["too_large"] in page, f"docs/distributed.md: write {made['too_large']}"
