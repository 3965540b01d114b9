"""Figures of the plan past one machine: what it counts, beside what 1, 2 and 3 ranks take."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from reclora.batches import chunks_of
from reclora.distributed.costs import OPENED_ID, Night, bringing, catalogue, chunk, memory
from reclora.distributed.placement import Placement, TableSizes, place
from reclora.interactions import IdMap

from .costs import FETCHED, USERS, K
from .distributed import CHUNK_ROWS, make_world, sizes
from .distributed_benchmarks import WORLD
from .harness import Figure, measures, usage
from .training_memory import CONFIG, DIM, ITEMS, RANK, SEGMENTS, SLACK

NUM_USERS, NUM_ROWS = 1_000_000, 300_000
WORLDS = (1, 2, 3)
PEAKS = ("tables", "opening", "training", "ranking")
TABLES = TableSizes(NUM_USERS, ITEMS, DIM)
NUM_IDS = 10_000_000
"""Of the map that is opened alone."""
ARROW = 20 << 20
"""Bytes that do not scale, of a process that has read identifiers: what one of Arrow's threads
keeps of a row group of them.
"""
Said = list[dict[str, dict[str, float]]]


@cache
def said(number: int) -> Said:
    """What each of so many ranks took."""
    make_world(WORLD, NUM_USERS, NUM_ROWS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "tests.benchmarks.costs", str(WORLD), folder]
        usage(command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
        paths = sorted(Path(folder).glob("rank-*.json"))
        found: Said = [json.loads(path.read_text()) for path in paths]
    assert len(found) == number
    return found


@cache
def night() -> Night:
    """The planted world as the plan knows it: segments of the mean size, and the share of a chunk's
    rows whose user (or item, where that is more) is new in its segment.
    """
    maps = [IdMap.read(WORLD / "base" / f"{side}_ids.parquet") for side in ("user", "item")]
    arrays, of_segment = np.load(WORLD / "log.npz"), sizes(WORLD)
    place = np.empty(SEGMENTS, np.int64)
    for at, codes in enumerate(chunks_of(of_segment, CHUNK_ROWS)):
        place[list(codes)] = at
    pairs = [
        len(np.unique(place[arrays["segments"]] * NUM_USERS + arrays[f"{side}_rows"]))
        for side in ("user", "item")
    ]
    return Night(
        TABLES,
        segments=SEGMENTS,
        segment_rows=round(float(of_segment.mean()) * 0.9),
        rank=RANK,
        chunk_rows=CHUNK_ROWS,
        listed=USERS * SEGMENTS,
        distinct=max(pairs) / len(arrays["segments"]),
        held_out=1 / 9,
        k=K,
        id_bytes=sum(ids.ids.nbytes for ids in maps) / sum(map(len, maps)),
        config=CONFIG,
    )


def placed(number: int) -> Placement:
    return place(TABLES, number, 1 << 40)


def most(found: Said, stage: str, what: str) -> float:
    """Of the rank with most."""
    return max(each[stage][what] for each in found)


def total(found: Said, stage: str, what: str) -> float:
    return sum(each[stage][what] for each in found)


def beside(name: str, value: float, unit: str, counted: float, target: str) -> Figure:
    return Figure(name, value, unit, target, peer="the plan", peer_value=counted)


@measures(*(f"plan_{what}_{n}" for n in WORLDS for what in PEAKS))
def peaks() -> list[Figure]:
    """Memory of the rank with most: the tables alone, and the peaks of opening the base, of
    training and of ranking, over what the plan counts and what does not scale.
    """
    figures = []
    for number in WORLDS:
        found, counted = said(number), memory(night(), placed(number))
        there = counted.identifiers + counted.tables + counted.adapters + SLACK
        opening = counted.identifiers + max(counted.opening, counted.tables) + SLACK + ARROW
        shards = placed(number).shards
        exact = max(sum(s.bytes for s in shards if s.rank == rank) for rank in range(number))
        for what, value, by_plan, target in (
            ("tables", most(found, "tables", "bytes"), exact, "<= 1"),
            ("opening", most(found, "opening", "peak"), opening, "<= 1"),
            ("training", most(found, "training", "peak"), there + counted.trains, "<= 1"),
            ("ranking", most(found, "ranking", "peak"), there + counted.ranks, "<= 1"),
        ):
            name = f"plan_{what}_{number}"
            figures.append(beside(name, value / 2**20, "MiB", by_plan / 2**20, target))
    return figures


@measures("plan_identifiers")
def identifiers() -> Figure:
    """Memory of opening a map of integers that ascend by wide gaps, over what the plan counts and
    what does not scale.
    """
    ids = np.sort(np.random.default_rng(0).integers(2**62, size=NUM_IDS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.parquet"
        IdMap(ids).write(path)
        code = "import sys; from tests.benchmarks.costs import opened; print(opened(sys.argv[1]))"
        peak = int(usage([sys.executable, "-c", code, str(path)]).output)
    by_plan = (1 + OPENED_ID) * ids.nbytes + SLACK
    return beside("plan_identifiers", peak / 2**20, "MiB", by_plan / 2**20, "<= 1")


@measures(*(f"plan_network_{what}_{n}" for n in (2, 3) for what in ("training", "ranking", "many")))
def network() -> list[Figure]:
    """Bytes between ranks over those that the plan counts: rows and requests, without the headers
    of TCP and what ranks say to meet.
    """
    figures = []
    for number in (2, 3):
        found, of = said(number), night()
        segments = -(-SEGMENTS // number)
        counted = {
            "training": chunk(of, number).network * -(-SEGMENTS // of.chunk_segments),
            "ranking": number * catalogue(of, number, of.listed // number, segments).network,
            "many": number * bringing(of, number, FETCHED, FETCHED).network,
        }
        for what, by_plan in counted.items():
            value = statistics.median(each[what]["network"] for each in found)
            name = f"plan_network_{what}_{number}"
            figures.append(beside(name, value / 2**20, "MiB", by_plan / 2**20, "<= 1.15"))
    return figures


@measures("plan_train_2", "plan_train_3", "plan_fetch_3", "plan_rank_2", "plan_rank_3")
def times() -> list[Figure]:
    """CPU time of all steps, of a round that brings rows, and of ranking, over what the plan makes
    of the rates of fewer ranks: of one, and for bringing rows of one and two. Ranks that share a
    machine's caches cost each other some.
    """
    steps, rounds, ranking = (
        {n: total(said(n), stage, what) for n in WORLDS}
        for stage, what in (("training", "step_cpu"), ("many", "cpu"), ("ranking", "cpu"))
    )
    each = {n: 1e3 * rounds[n] / total(said(n), "many", "rounds") for n in WORLDS}
    # A round takes some of itself, and some for what crosses: 1 - 1 / W of it.
    crossing = (each[2] - each[1]) / (1 - 1 / 2)
    by_plan = each[1] + crossing * (1 - 1 / 3)
    figures = [beside("plan_fetch_3", each[3], "CPU-ms a round", by_plan, "<= 1.5")]
    for n in (2, 3):
        figures.append(beside(f"plan_train_{n}", steps[n], "CPU-s", steps[1], "<= 1.5"))
        figures.append(beside(f"plan_rank_{n}", ranking[n], "CPU-s", ranking[1], "<= 1.7"))
    return figures


@measures("plan_step_flops", "plan_rank_flops", "plan_fetch_bytes", "plan_round_ms")
def rates() -> list[Figure]:
    """What a plan is given: flops of one rank in a CPU second, bytes that cross between two ranks
    in a CPU second of one of them, and the time that a round of one row takes two ranks.
    """
    of, one, two = night(), said(1), said(2)
    trained = chunk(of, 1).flops * SEGMENTS / of.chunk_segments
    ranked = catalogue(of, 1, of.listed, SEGMENTS).flops
    crossed = bringing(of, 2, FETCHED, FETCHED).network
    longer = total(two, "many", "cpu") / 2 - total(one, "many", "cpu")
    rate_of = {
        "plan_step_flops": (
            trained / total(one, "training", "step_cpu") / 1e9,
            "GF a CPU-s",
            ">= 1",
        ),
        "plan_rank_flops": (ranked / total(one, "ranking", "cpu") / 1e9, "GF a CPU-s", ">= 15"),
        "plan_fetch_bytes": (crossed / longer / 1e6, "MB a CPU-s", ">= 50"),
        "plan_round_ms": (1e3 * most(two, "few", "seconds") / 2, "ms", "<= 100"),
    }
    return [Figure(name, value, unit, target) for name, (value, unit, target) in rate_of.items()]
