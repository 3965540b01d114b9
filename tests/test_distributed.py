"""Ranks of a process group: what they hold, train and rank is what one process does.

Run as a program this file is the ranks: one process loads TorchRec and forks groups of 2, 1 and 3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_ranks import start_ranks
from small_worlds import MIXED, fill, make_base, make_log
from torch import Tensor

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.checkpoints import Checkpoint
from reclora.configs import AdapterConfig
from reclora.distributed import (
    DistributedError,
    PartTable,
    Request,
    ShardedBase,
    divide,
    load_adapters,
    rank_sharded,
    recommend_sharded,
    rows_of_training,
    save_adapters,
    train_sharded,
)
from reclora.distributed.parts import PartRows
from reclora.distributed.training import TrainedChunk
from reclora.evaluation import EvaluationConfig, HeldOut, KeptLists, evaluate, hold_out, measure
from reclora.interactions import Interactions
from reclora.ranking import RankedLists, Scorer, UserItems, rank
from reclora.store.reading import StoreError
from reclora.tables import Table
from reclora.training import HeldOutLoss, Training, TrainingConfig, train

WORLDS = (2, 1, 3)
"""The first saves what the others load."""
DIM, NUM_USERS, NUM_ITEMS = 10, 700, 70_000
"""Vectors that FBGEMM's kernels do not take as they are; more items than pass by at once."""
SIZES = {"market 0": 400, "日本": 300, "no rows": 0, "../up": 150, "one row": 1, "e": 90, "f": 60}
CHUNK_ROWS = 300
CONFIG = TrainingConfig(
    epochs=4, patience=2, batch_rows=32, num_negatives=16, rows_lr=0.1, shrinkage=5.0
)
SEED, K = 3, 20


def config_of(name: str) -> AdapterConfig:
    return MIXED.get(name, MIXED["market 0"])


def logs(base: BaseModel) -> tuple[Interactions, Interactions]:
    """What is trained on, weighted, and what is held out: of some segments."""
    held_out = {name: size // 5 for name, size in SIZES.items()}
    return make_log(base, SIZES, seed=1, weighted=True), make_log(base, held_out, seed=2)


def taken_before(base: BaseModel) -> Interactions:
    """So much of the catalogue that it changes which negatives count."""
    return make_log(base, {name: size * 300 for name, size in SIZES.items()}, seed=6)


def parent_of(base: BaseModel) -> Adapter:
    config = AdapterConfig(rank=2)
    bank = AdapterBank.for_log(base, make_log(base, {"all": 500}, seed=4), config)
    return fill(bank).adapter("all")


def users_of(number: int) -> Tensor:
    """The users of segment `number` who want lists: many, one and none."""
    return torch.arange(number, NUM_USERS, 1)[: (200, 30, 0, 33, 1, 5, 5)[number]]


def request_of(adapter: Adapter, number: int, mine: slice) -> Request:
    """Of a segment's users those of a rank; of some segments not all items are candidates."""
    users = users_of(number)
    generator = torch.Generator().manual_seed(number)
    items = torch.randint(NUM_ITEMS, (len(users) * 50,), generator=generator)
    seen = UserItems.from_pairs(torch.arange(len(users)).repeat(50), items, len(users))
    places = torch.arange(len(users))[mine]
    candidates = torch.rand(NUM_ITEMS, generator=generator) < (1.0, 0.5, 1.0, 1e-4)[number % 4]
    return Request(adapter, users[places], seen.take(places), candidates if number % 4 else None)


# The ranks.


def be_rank(number: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world)
    base = ShardedBase.load(folder / "base")
    own = folder / f"{world}-{number}"
    own.mkdir()

    shards = {f"{name} {first}": rows.clone() for name, first, rows in base.local_rows()}
    save_file({name: rows.contiguous() for name, rows in shards.items()}, own / "shards")
    save_file(parts(base, number), own / "parts")
    by_table = ShardedBase.load(folder / "base", sharding="table_wise")
    save_file(parts(by_table, number), own / "parts-by-table")
    names = [f"{name} {first} {len(rows)}" for name, first, rows in by_table.local_rows()]
    tiny = ShardedBase.load(folder / "tiny").part(torch.tensor([1]), torch.arange(2))
    numbers = tiny.user_table.weight_ND, tiny.item_table.weight_ND, tiny.item_bias.weight_ND
    save_file(dict(zip(("user", "item", "bias"), numbers, strict=True)), own / "tiny")

    done = trained(base, folder, world, number, chunk_rows=CHUNK_ROWS)
    save_adapters(folder / f"adapters-{world}", [a for chunk in done for a in chunk.adapters])
    at_once = trained(base, folder, world, number, chunk_rows=10**6)
    save_adapters(folder / f"at-once-{world}", [a for chunk in at_once for a in chunk.adapters])
    dist.barrier()
    adapters = load_adapters(folder / f"adapters-{WORLDS[0]}", list(SIZES))
    requests = [
        request_of(adapters[name], at, slice(number, None, world)) for at, name in enumerate(SIZES)
    ]
    lists = map(both, rank_sharded(base, requests, K))
    items, scores = map(torch.cat, zip(*lists, strict=True))
    save_file({"items": items, "scores": scores}, own / "lists")
    evaluated(base, adapters, folder / f"kept-{world}").to_parquet(own / "results.parquet")
    now = {f"{name} {first}": rows for name, first, rows in base.local_rows()}
    about = {
        "unchanged": shards.keys() == now.keys()
        and all(torch.equal(shards[name], now[name]) for name in now),
        "by_table": names,
        "codes": [chunk.codes for chunk in done],
        "best": [chunk.training.best_epoch for chunk in done],
        "best_at_once": [chunk.training.best_epoch for chunk in at_once],
        "seconds": [chunk.training.seconds for chunk in done],
        "refused": [refusal(base), another_base(folder, number), two_stages(base)],
    }
    (own / "about.json").write_text(json.dumps(about))
    dist.barrier()
    dist.destroy_process_group()


def both(lists: RankedLists) -> tuple[Tensor, Tensor]:
    return lists.item_rows_UK, lists.scores_UK


def asked(number: int) -> tuple[Tensor, Tensor]:
    """The rows that a rank asks for: none, some out of order and twice, all and more."""
    nothing = torch.empty(0, dtype=torch.int64)
    if number == 1:
        return nothing, nothing
    users = torch.tensor([NUM_USERS - 1, 5, 0, 5, NUM_USERS + 4])
    return users, torch.arange(NUM_ITEMS) if number == 0 else torch.tensor([7])


def parts(base: ShardedBase, number: int) -> dict[str, Tensor]:
    part = base.part(*asked(number))
    tables = {"user": part.user_table, "item": part.item_table, "bias": part.item_bias}
    found = {}
    for name, table in tables.items():
        assert isinstance(table, PartTable)
        found |= {name: table.weight_ND, f"{name} mean": table.mean_D}
        found[f"{name} rows"] = table.here.rows_M.clone()
    return found


def trained(
    base: ShardedBase, folder: Path, world: int, number: int, chunk_rows: int
) -> list[TrainedChunk]:
    log, held_out = logs(base.without_rows)
    taken, parent = taken_before(base.without_rows), parent_of(BaseModel.load(folder / "base"))
    division = divide(np.diff(log.offsets), chunk_rows, world)
    kept = folder / "checkpoints"

    def checkpoint_of(codes: tuple[int, ...]) -> Checkpoint | None:
        # The checkpoints of the first world are gone on from by the last.
        if world == 1:
            return None
        return Checkpoint(kept / f"{codes[0]}-{len(codes)}", f"{codes}")

    def bank_of(part: BaseModel, of: Interactions, codes: tuple[int, ...]) -> AdapterBank:
        configs = [config_of(name) for name in of.segment_names]
        return AdapterBank.for_log(part, of, configs, SEED, parent)

    return train_sharded(
        base,
        division[number],
        lambda codes: (log.part(codes), held_out.part(codes), taken.part(codes)),
        bank_of,
        CONFIG,
        seed=SEED,
        checkpoint_of=checkpoint_of,
    )


def held_out_of(base: BaseModel) -> HeldOut:
    log, held_out = logs(base)
    config = EvaluationConfig(ks=(5, 20), metrics=("recall", "ndcg"), candidates="given")
    # Few enough that something is hit.
    candidates_N = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    candidates_N[torch.from_numpy(held_out.item_rows)] = True
    return hold_out(held_out, log, config, candidates_N)


def adapter_of(adapters: dict[str, Adapter]) -> Callable[[str], Adapter | None]:
    """One segment is served by the base."""
    return lambda name: None if name == "e" else adapters[name]


def evaluated(base: ShardedBase, adapters: dict[str, Adapter], kept: Path) -> pd.DataFrame:
    held_out, of = held_out_of(base.without_rows), adapter_of(adapters)
    lists = recommend_sharded(
        base, held_out, lambda name: scorer_of(base.without_rows, of(name)), KeptLists(kept, "a")
    )
    return measure(held_out, lists, model="adapters", run="r", seed=0)


def scorer_of(base: BaseModel, adapter: Adapter | None) -> Scorer:
    if adapter is None:
        return base.scorer()
    return AdapterBank.of(base, [adapter]).scorer(adapter.segment)


def refusal(base: ShardedBase) -> str:
    """A row below 0 is refused before any rank is asked."""
    with pytest.raises(IndexError) as told:
        base.part(torch.tensor([-1]), torch.tensor([0]))
    return str(told.value)


def another_base(folder: Path, number: int) -> str:
    """What the last rank is told when it opens another base than the others."""
    is_other = number == dist.get_world_size() - 1 > 0
    if dist.get_world_size() == 1:
        return ""
    with pytest.raises(DistributedError) as told:
        ShardedBase.load(folder / ("other" if is_other else "base"))
    return str(told.value)


def two_stages(base: ShardedBase) -> str:
    held_out = held_out_of(base.without_rows)
    staged = replace(held_out, config=replace(held_out.config, retrieve=50))
    with pytest.raises(ValueError) as told:
        frozen = base.without_rows.scorer()
        recommend_sharded(base, staged, lambda name: frozen, KeptLists(Path("none"), ""))
    return str(told.value)


# What the test's process knows without them.


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return make_base(NUM_USERS, NUM_ITEMS, DIM, (12,), seed=5)


@pytest.fixture(scope="module")
def folder(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ranks have left behind, in groups of each size."""
    folder = tmp_path_factory.mktemp("ranks")
    base.save(folder / "base")
    make_base(20, 10, DIM).save(folder / "other")
    make_base(2, 2, 4, ()).save(folder / "tiny")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(base: BaseModel) -> tuple[AdapterBank, Training]:
    """All segments trained by one process with the whole base."""
    log, held_out = logs(base)
    configs = [config_of(name) for name in SIZES]
    bank = AdapterBank.for_log(base, log, configs, SEED, parent_of(base))
    judge, taken = HeldOutLoss(held_out, CONFIG), taken_before(base)
    return bank, train(bank, log, CONFIG, judge=judge, seed=SEED, taken=taken)


def about(folder: Path, world: int) -> list[dict[str, Any]]:
    """What each rank of a group says."""
    return [json.loads((folder / f"{world}-{n}" / "about.json").read_text()) for n in range(world)]


@pytest.mark.parametrize("world", WORLDS)
def test_every_row_lies_on_one_rank_with_the_bytes_of_the_file(
    folder: Path, base: BaseModel, world: int
) -> None:
    saved = BaseModel.load(folder / "base")
    covered = {name: 0 for name in ("user_table", "item_table", "item_bias")}
    for number in range(world):
        for key, rows in load_file(folder / f"{world}-{number}" / "shards").items():
            name, first = key.split()
            whole: Table = getattr(saved, name)
            own = whole.weight_ND[int(first) : int(first) + len(rows)]
            assert rows.numpy().tobytes() == own.contiguous().numpy().tobytes()
            assert len(rows) <= -(-whole.num_rows // world), "no rank holds more than its share"
            covered[name] += len(rows)
    assert covered == {"user_table": NUM_USERS, "item_table": NUM_ITEMS, "item_bias": NUM_ITEMS}


@pytest.mark.parametrize("world", WORLDS)
def test_training_and_ranking_leave_the_base_as_it_is(folder: Path, world: int) -> None:
    assert all(each["unchanged"] for each in about(folder, world))


@pytest.mark.parametrize("how", ["parts", "parts-by-table"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_part_has_the_rows_of_the_base(
    folder: Path, base: BaseModel, world: int, how: str
) -> None:
    for number in range(world):
        part = load_file(folder / f"{world}-{number}" / how)
        users, items = asked(number)
        wanted = torch.unique(users[users < NUM_USERS]), torch.unique(items)
        tables = {"user": base.user_table, "item": base.item_table, "bias": base.item_bias}
        for name, table in tables.items():
            rows = wanted[name != "user"]
            assert torch.equal(part[f"{name} rows"], rows)
            assert torch.equal(part[name], table.weight_ND[rows])
            assert torch.equal(part[f"{name} mean"], table.mean_D)


@pytest.mark.parametrize("world", WORLDS)
def test_more_ranks_than_rows(folder: Path, world: int) -> None:
    tiny = make_base(2, 2, 4, ())
    for number in range(world):
        found = load_file(folder / f"{world}-{number}" / "tiny")
        assert torch.equal(found["user"], tiny.user_table.weight_ND[1:])
        assert torch.equal(found["item"], tiny.item_table.weight_ND)
        assert torch.equal(found["bias"], tiny.item_bias.weight_ND)


def test_table_wise_every_table_is_whole_on_one_rank(folder: Path) -> None:
    held = [line for each in about(folder, 3) for line in each["by_table"]]
    sizes = {"user_table": NUM_USERS, "item_table": NUM_ITEMS, "item_bias": NUM_ITEMS}
    assert sorted(held) == sorted(f"{name} 0 {rows}" for name, rows in sizes.items())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("which", ["adapters", "at-once"])
def test_ranks_train_what_one_process_trains(
    folder: Path, alone: tuple[AdapterBank, Training], world: int, which: str
) -> None:
    """To a last bit of a product where a chunk is all that the process trains at once."""
    bank, training = alone
    key = "best" if which == "adapters" else "best_at_once"
    best = [found for each in about(folder, world) for found in each[key]]
    assert {name: epoch for found in best for name, epoch in found.items()} == training.best_epoch
    assert len({*training.best_epoch.values()}) > 2, "segments must differ in when they are best"
    found = load_adapters(folder / f"{which}-{world}", [*SIZES])
    assert found.keys() == SIZES.keys()
    for name, adapter in found.items():
        own = bank.adapter(name)
        assert (adapter.config, adapter.base_fingerprint) == (own.config, own.base_fingerprint)
        assert adapter.tensors.keys() == own.tensors.keys()
        for tensor, others in ((t, adapter.tensors[key]) for key, t in own.tensors.items()):
            atol = 1e-6 if which == "adapters" else 1e-7
            torch.testing.assert_close(others, tensor, rtol=0, atol=atol)
    parents = {id(adapter.parent): adapter.parent for adapter in found.values()}
    assert len(parents) == 1 and None not in parents.values()


@pytest.mark.parametrize("which", ["adapters", "at-once"])
def test_how_many_ranks_there_are_changes_no_byte(folder: Path, which: str) -> None:
    packs = [{path.name for path in (folder / f"{which}-{n}").iterdir()} for n in WORLDS]
    segments = [load_adapters(folder / f"{which}-{n}", [*SIZES]) for n in WORLDS]
    assert packs[0] and all(names == packs[0] for names in packs) == (which == "at-once")
    for name, adapter in segments[0].items():
        for other in segments[1:]:
            for key, tensor in adapter.tensors.items():
                assert torch.equal(tensor, other[name].tensors[key])


def test_each_rank_owns_whole_segments_and_some_nothing(folder: Path) -> None:
    for world in WORLDS:
        codes = [code for each in about(folder, world) for c in each["codes"] for code in c]
        assert sorted(codes) == list(range(len(SIZES)))
    assert [len(each["best_at_once"]) for each in about(folder, 3)] == [1, 0, 0]


def test_checkpoints_of_two_ranks_are_gone_on_from_by_three(folder: Path) -> None:
    """What is done is taken as it is, the CPU time that it took included, by whichever rank."""

    def seconds(world: int) -> dict[str, float]:
        return {
            str(codes): seconds
            for each in about(folder, world)
            for codes, seconds in zip(each["codes"], each["seconds"], strict=True)
        }

    assert seconds(3) == seconds(2) != seconds(1)
    owners = [
        {str(c): n for n, e in enumerate(about(folder, w)) for c in e["codes"]} for w in (2, 3)
    ]
    assert owners[0] != owners[1]


@pytest.fixture(scope="module")
def lists(folder: Path, base: BaseModel) -> list[RankedLists]:
    """Each segment's, by one process with the whole catalogue."""
    adapters = load_adapters(folder / f"adapters-{WORLDS[0]}", [*SIZES])
    bank = AdapterBank.of(base, [*adapters.values()])
    wanted = [request_of(adapters[name], at, slice(None)) for at, name in enumerate(SIZES)]
    return [
        rank(
            bank.scorer(request.adapter.segment),
            request.user_rows_U,
            K,
            seen=request.seen,
            candidates_N=request.candidates_N,
        )
        for request in wanted
    ]


@pytest.mark.parametrize("world", WORLDS)
def test_lists_are_those_of_the_whole_catalogue(
    folder: Path, lists: list[RankedLists], world: int
) -> None:
    """Item for item, with the same scores but for a last bit; of each rank one after the other."""
    assert (lists[3].item_rows_UK < 0).any(), "some users have fewer candidates than places"
    for number in range(world):
        found = load_file(folder / f"{world}-{number}" / "lists")
        start = 0
        for whole in lists:
            items, scores = (of[number::world] for of in both(whole))
            stop = start + len(items)
            assert torch.equal(found["items"][start:stop], items)
            torch.testing.assert_close(found["scores"][start:stop], scores, rtol=1e-6, atol=1e-6)
            start = stop
        assert start == len(found["items"])


@pytest.mark.parametrize("world", WORLDS)
def test_results_are_those_of_the_whole(
    folder: Path, base: BaseModel, whole: pd.DataFrame, world: int
) -> None:
    for number in range(world):
        found = pd.read_parquet(folder / f"{world}-{number}" / "results.parquet")
        pd.testing.assert_frame_equal(found, whole, check_categorical=False)
    assert whole["value"].max() > 0


@pytest.fixture(scope="module")
def whole(folder: Path, base: BaseModel) -> pd.DataFrame:
    """What `evaluate` finds in one process."""
    of = adapter_of(load_adapters(folder / f"adapters-{WORLDS[0]}", [*SIZES]))
    held_out = held_out_of(base)
    return evaluate(
        held_out, lambda name: scorer_of(base, of(name)), model="adapters", run="r", seed=0
    )


def test_what_ranks_refuse(folder: Path) -> None:
    for world in WORLDS:
        for each in about(folder, world):
            below, other, stages = each["refused"]
            assert "retrieve is 50, but ranks rank exactly" in stages
            assert below == "rows must be at least 0, got -1"
            assert (other == "") == (world == 1)
            if world > 1:
                assert "the ranks have different bases" in other


# In one process.


def test_without_a_process_group_it_says_what_to_do(folder: Path) -> None:
    with pytest.raises(DistributedError, match="start the program with torchrun"):
        ShardedBase.load(folder / "base")


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 2000), st.integers(1, 6))
def test_a_division_is_whole_even_and_the_same_on_any_number_of_ranks(
    sizes: list[int], chunk_rows: int, num_ranks: int
) -> None:
    sizes_S = np.array(sizes, dtype=np.int64)
    ranks = divide(sizes_S, chunk_rows, num_ranks)
    chunks = [chunk for rank_ in ranks for chunk in rank_]
    assert sorted(code for chunk in chunks for code in chunk) == list(range(len(sizes)))
    assert sorted(chunks) == sorted(divide(sizes_S, chunk_rows, 1)[0])
    assert all(len(c) == 1 or sizes_S[list(c)].sum() <= chunk_rows for c in chunks)
    loads = [sum(int(sizes_S[list(chunk)].sum()) for chunk in rank_) for rank_ in ranks]
    largest = max((int(sizes_S[list(chunk)].sum()) for chunk in chunks), default=0)
    assert max(loads) <= sum(sizes) / num_ranks + largest
    assert len(ranks) == num_ranks


def test_training_looks_up_the_rows_that_were_said(base: BaseModel) -> None:
    """No row is missing, and of the drawn items none is asked for in vain."""
    log, held_out = logs(base)
    bank = AdapterBank.for_log(base, log, AdapterConfig(rank=2), SEED)
    users, items = rows_of_training(log, held_out, CONFIG, SEED)
    looked_up = {"users": set[int](), "items": set[int]()}

    class Watched(PartTable):
        def lookup(self, rows: Tensor) -> Tensor:
            side = "users" if self.num_own_rows == NUM_USERS else "items"
            looked_up[side].update(rows.flatten().tolist())
            return super().lookup(rows)

    def watched(table: Table, rows: Tensor) -> PartTable:
        here = PartRows(rows, table.num_rows)
        return Watched(table.weight_ND[rows], table.mean_D, table.num_rows, here)

    tables = watched(base.user_table, users), watched(base.item_table, items)
    part = BaseModel(
        base.users,
        base.items,
        *tables,
        watched(base.item_bias, items),
        base.tower,
        base.fingerprint,
    )
    bank.base = part
    train(bank, log, CONFIG, judge=None, seed=SEED)
    HeldOutLoss(held_out, CONFIG)(bank, np.arange(len(SIZES)))
    assert looked_up == {"users": {*users.tolist()}, "items": {*items.tolist()}}


@pytest.mark.parametrize("num_whole", [6, 100])
def test_a_part_looks_up_what_is_here_and_refuses_what_is_not(num_whole: int) -> None:
    """Whether not few of the rows are here, or few."""
    table = Table.of(torch.arange(2.0 * num_whole).view(num_whole, 2))
    rows, end = torch.tensor([1, 4]), num_whole + 2
    part = PartTable(table.weight_ND[rows], table.mean_D, end, PartRows(rows, num_whole))
    grown = Table(table.weight_ND, table.mean_D, end)
    for asked_for in (
        torch.tensor([[4, 1], [1, 1]]),
        torch.tensor([num_whole + 1, 4, num_whole]),
        rows[:0],
    ):
        assert torch.equal(part.lookup(asked_for), grown.lookup(asked_for))
    assert (part.num_own_rows, part.num_rows, part.embedding_dim) == (num_whole, end, 2)
    for row in (0, 5, end, end + 7, -1, -9):
        told = f"row {row} was asked of a table with rows 0 to {end - 1}, of which 2 are here"
        with pytest.raises(IndexError, match=told):
            part.lookup(torch.tensor([1, row]))
    with pytest.raises(IndexError, match=f"all {end} rows of a table were asked for, of which 2"):
        part.materialised()


def test_a_part_without_rows() -> None:
    """What a rank has that asks for nothing."""
    table = Table.of(torch.ones(3, 2))
    part = PartTable(torch.empty(0, 2), table.mean_D, 4, PartRows(torch.empty(0).long(), 3))
    assert torch.equal(part.lookup(torch.tensor([3])), table.mean_D.unsqueeze(0))
    with pytest.raises(IndexError, match="row 0 was asked"):
        part.lookup(torch.tensor([0]))


def test_saved_adapters_come_back_whoever_wrote_them(tmp_path: Path) -> None:
    base = make_base()
    log = make_log(base)
    parent = fill(AdapterBank.for_log(base, log.pooled(), AdapterConfig(rank=2))).adapters()[0]
    configs = [MIXED[name] for name in log.segment_names]
    adapters = fill(AdapterBank.for_log(base, log, configs, 0, parent)).adapters()
    for own in (adapters[:2], adapters[2:3], adapters[3:], []):
        save_adapters(tmp_path, own)
    found = load_adapters(tmp_path, [a.segment for a in adapters[1:]])
    assert [*found] and found.keys() == {a.segment for a in adapters[1:]}
    for adapter in adapters[1:]:
        back = found[adapter.segment]
        assert back.config == adapter.config
        assert all(torch.equal(back.tensors[n], t) for n, t in adapter.tensors.items())
        assert back.parent is not None
        assert all(torch.equal(back.parent.tensors[n], t) for n, t in parent.tensors.items())
    AdapterBank.of(base, [*found.values()])
    save_adapters(tmp_path, adapters[:1])  # the same bytes, under the same name
    load_adapters(tmp_path, [adapters[0].segment])
    changed = {n: t + 1 if t.is_floating_point() else t for n, t in adapters[0].tensors.items()}
    save_adapters(tmp_path, [replace(adapters[0], tensors=changed)])
    load_adapters(tmp_path, [adapters[1].segment])
    with pytest.raises(DistributedError, match="'market 0' stands in two packs"):
        load_adapters(tmp_path, [adapters[0].segment])
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError):
        load_adapters(tmp_path, [])


if __name__ == "__main__":
    start_ranks(WORLDS, be_rank, Path(sys.argv[1]))
