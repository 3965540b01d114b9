"""This file is the base with its tables sharded over the ranks of a process group by TorchRec.

Two tables are sharded, the users' rows and the items', each item's bias behind its vector:

    user   [u, 0 ...]          item   [v, b, 0 ...]       padded: FBGEMM wants multiples of 4

Frozen by how they are used: TorchRec un-freezes what it shards, so a lookup and its waiting run
without a graph, and nothing ever gives the tables a gradient. Each rank reads its own rows from the
saved base, and no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from reclora.base import BaseModel
from reclora.distributed.parts import PartRows, PartTable
from reclora.distributed.placement import (
    FETCH_ROWS,
    DistributedError,
    Sharding,
    TableSizes,
    free_memory,
    place,
    planner_of,
    sharders,
    tables_of,
)
from reclora.interactions import IdMap

READ_ROWS = 1 << 16
"""Rows that are read from the file at once: its pages are let go in between."""


class ShardedBase:
    """A frozen base whose tables lie, row by row, on the ranks of a process group.

    Everything that fetches rows is collective: every rank calls it, with as many rows as it likes,
    also none. Id maps and tower are whole on every rank. Make one with `load`.

    Attributes:
        rank, num_ranks: this process and how many there are.
    """

    def __init__(self, base: BaseModel, tables: torch.nn.Module, group: dist.ProcessGroup) -> None:
        self._base, self._tables, self._group = base, tables, group
        self.rank, self.num_ranks = dist.get_rank(group), dist.get_world_size(group)

    @classmethod
    def load(
        cls,
        folder: Path,
        group: dist.ProcessGroup | None = None,
        sharding: Sharding = "row_wise",
    ) -> ShardedBase:
        """Open a saved base; collective. Of its tables this rank reads its own rows alone.

        Args:
            folder: a saved base, the same bytes on every rank.
            group: of processes; if not given, all of them.
            sharding: `row_wise`: every rank has a run of each table's rows; `table_wise`: every
                table is whole on one rank. Nothing is ever on all ranks.

        Raises:
            BaseError: as `BaseModel.load`.
            DistributedError: there is no process group; ranks opened different bases; or a rank
                has not the memory for its share of the tables, and nothing is started.
        """
        if not dist.is_initialized():
            raise DistributedError(
                "there is no process group; start the program with torchrun and call "
                'torch.distributed.init_process_group("gloo") first'
            )
        group = dist.group.WORLD if group is None else group
        assert group is not None
        base = BaseModel.load(folder)
        check_same("bases", base.fingerprint, group)
        sizes = TableSizes(
            base.user_table.num_own_rows, base.item_table.num_own_rows, base.embedding_dim
        )
        tables = _sharded(sizes, sharding, group)
        for name, rows_NX, first in _local(tables, base):
            _read(folder / "tables.safetensors", name, base.embedding_dim, rows_NX, first)
        # What stays of the tables is their size and mean: the mapped file is let go.
        none = torch.empty(0, dtype=torch.int64)
        empty = torch.empty(0, base.embedding_dim), torch.empty(0, base.embedding_dim)
        base = _with_rows(base, (none, none), (*empty, torch.empty(0, 1)))
        return cls(base, tables, group)

    @property
    def embedding_dim(self) -> int:
        return self._base.embedding_dim

    @property
    def num_items(self) -> int:
        """N of the items, grown ones included."""
        return self._base.item_table.num_rows

    def grown(self, users: IdMap, items: IdMap) -> ShardedBase:
        """The same shards over id maps that extend the base's; for errors see `BaseModel.grown`."""
        return ShardedBase(self._base.grown(users, items), self._tables, self._group)

    @property
    def without_rows(self) -> BaseModel:
        """The base without a row of its tables: id maps, tower, fingerprint."""
        return self._base

    def __repr__(self) -> str:
        return f"ShardedBase(rank {self.rank} of {self.num_ranks}, {self._base!r})"

    def part(self, user_rows: Tensor, item_rows: Tensor) -> BaseModel:
        """The base with only these rows of its tables, fetched from whoever has them; collective.

        Args:
            user_rows, item_rows: int64, in any order and number, also none; those beyond the
                base's own, of identifiers that it does not know, need no fetching.

        Raises:
            IndexError: a row below 0.
        """
        users, items = self._base.user_table.num_own_rows, self._base.item_table.num_own_rows
        user_rows, item_rows = _own_rows(user_rows, users), _own_rows(item_rows, items)
        user_MD = torch.empty(len(user_rows), self.embedding_dim)
        item_MD = torch.empty(len(item_rows), self.embedding_dim)
        bias_M1 = torch.empty(len(item_rows), 1)
        self._fetch("user", user_rows, [user_MD])
        self._fetch("item", item_rows, [item_MD, bias_M1])
        return _with_rows(self._base, (user_rows, item_rows), (user_MD, item_MD, bias_M1))

    def most(self, number: int) -> int:
        """The largest of the numbers that the ranks bring; collective."""
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return int(largest)

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks."""
        return self._group

    def local_rows(self) -> Iterator[tuple[str, int, Tensor]]:
        """What lies on this rank: `user_table`, `item_table` or `item_bias`, the first of its rows,
        and the rows themselves, not to be written into.
        """
        dim = self.embedding_dim
        for name, rows_NX, first in _local(self._tables, self._base):
            yield f"{name}_table", first, rows_NX[:, :dim]
            if name == "item":
                yield "item_bias", first, rows_NX[:, dim : dim + 1]

    @torch.no_grad()
    def _fetch(self, name: str, rows_M: Tensor, into: Sequence[Tensor]) -> None:
        """Put rows of a sharded table into tensors that side by side are as wide, but for the
        padding.
        """
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        widths = [tensor.shape[1] for tensor in into]
        rounds = self.most(-(-len(rows_M) // FETCH_ROWS))
        for first in range(0, rounds * FETCH_ROWS, FETCH_ROWS):
            now = slice(first, first + FETCH_ROWS)
            # To TorchRec it is one sample with a sequence of rows.
            rows_C = rows_M[now]
            wanted = KeyedJaggedTensor([name], rows_C, lengths=torch.tensor([len(rows_C)]))
            # Whoever reads the answer waits for it: here too, without a graph.
            found_CX: Tensor = self._tables(name, wanted)[name].values()
            columns = found_CX[:, : sum(widths)].split(widths, 1)
            for tensor, part_CW in zip(into, columns, strict=True):
                tensor[now] = part_CW


def _own_rows(rows: Tensor, num_own: int) -> Tensor:
    """Each of the base's own rows once, ascending. FBGEMM would make row 0 of what is none."""
    if len(rows) and int(rows.min()) < 0:
        raise IndexError(f"rows must be at least 0, got {int(rows.min())}")
    own: Tensor = torch.unique(rows[rows < num_own])
    return own


def _with_rows(
    base: BaseModel, rows: tuple[Tensor, Tensor], numbers: tuple[Tensor, Tensor, Tensor]
) -> BaseModel:
    """The base with these rows of users and of items alone: the users' and items' vectors, and the
    items' biases.
    """
    users, items = base.user_table, base.item_table
    here = PartRows(rows[0], users.num_own_rows), PartRows(rows[1], items.num_own_rows)
    user_MD, item_MD, bias_M1 = numbers
    return replace(
        base,
        user_table=PartTable(user_MD, users.mean_D, users.num_rows, here[0]),
        item_table=PartTable(item_MD, items.mean_D, items.num_rows, here[1]),
        item_bias=PartTable(bias_M1, base.item_bias.mean_D, items.num_rows, here[1]),
    )


def check_same(what: str, name: str, group: dist.ProcessGroup | None = None) -> None:
    """Refuse to go on where ranks have different things; collective.

    Args:
        what: the things, in the plural.
        name: of this rank's thing: the things are the same where their names are.

    Raises:
        DistributedError: on every rank; with the names of its own thing and of rank 0's.
    """
    first = said_by_first(name, group)
    differs = torch.tensor(int(first != name))
    dist.all_reduce(differs, dist.ReduceOp.MAX, group=group)
    if int(differs):
        raise DistributedError(
            f"the ranks have different {what}: this one has {name}, rank 0 {first}: give all of "
            "them one"
        )


def said_by_first(text: str, group: dist.ProcessGroup | None = None) -> str:
    """The text of rank 0, on every rank; collective. What the others bring counts for nothing."""
    own = np.frombuffer(text.encode(), np.uint8)
    length = torch.tensor([len(own)])
    dist.broadcast(length, group=group, group_src=0)
    first = torch.zeros(int(length), dtype=torch.uint8)
    if dist.get_rank(group) == 0:
        first.numpy()[:] = own
    dist.broadcast(first, group=group, group_src=0)
    return first.numpy().tobytes().decode()


def _sharded(sizes: TableSizes, sharding: Sharding, group: dist.ProcessGroup) -> torch.nn.Module:
    """TorchRec's tables, each rank's share of them, with no numbers put in yet.

    Raises:
        DistributedError: they do not fit, see `place`.
    """
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv

    ranks = dist.get_world_size(group)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    # The least, so that all ranks are refused or none.
    memory = torch.tensor(free_memory(ranks_here))
    dist.all_reduce(memory, dist.ReduceOp.MIN, group=group)
    place(sizes, ranks, int(memory), sharding, ranks_here)
    whole, how = tables_of(sizes, ranks), sharders()
    planner = planner_of(ranks, int(memory), sharding, ranks_here)
    tables: torch.nn.Module = DistributedModelParallel(
        whole,
        env=ShardingEnv.from_process_group(group),
        device=torch.device("cpu"),
        plan=planner.collective_plan(whole, how, group),
        sharders=how,
        init_data_parallel=False,
    )
    return tables


def _local(tables: torch.nn.Module, base: BaseModel) -> Iterator[tuple[str, Tensor, int]]:
    """Table, those of its rows that lie here, and the number of the first of them."""
    sizes = {"user": base.user_table.num_own_rows, "item": base.item_table.num_own_rows}
    for key, tensor in tables.state_dict().items():
        name = key.split(".")[-2]
        for shard in tensor.local_shards():
            first = shard.metadata.shard_offsets[0]
            yield name, shard.tensor.detach()[: max(0, sizes[name] - first)], first


def _read(path: Path, name: str, dim: int, rows_NX: Tensor, first: int) -> None:
    """Put the rows of a saved table from `first` on into a shard."""
    rows_NX[:, dim:] = 0
    for start in range(0, len(rows_NX), READ_ROWS):
        stop = min(start + READ_ROWS, len(rows_NX))
        # Opened anew each time: pages of a mapped file count as this process's memory.
        with safe_open(path, framework="pt") as file:
            own = slice(first + start, first + stop)
            rows_NX[start:stop, :dim] = file.get_slice(f"{name}_table")[own]
            if name == "item":
                rows_NX[start:stop, dim : dim + 1] = file.get_slice("item_bias_table")[own]
