"""This file is what a night on many hosts takes, counted before anything starts: bytes of memory,
flops and bytes on the network.

W ranks train S segments of n rows each on a base of U users and N items of D numbers, and rank the
catalogue for Q users. What a rank holds, does and asks for is

    memory     its rows of the tables, every identifier, and the larger of: a chunk that trains;
               its users, their lists and a block of items
    training   E epochs of its chunks' steps; the network brings a chunk's rows, once
    ranking    2 D Q N / W flops; the network brings the whole catalogue to every rank, once

and a stage takes at least as long as the slower of its computing and its network; where nothing
is brought ahead of the steps that need it, as long as both. Counts follow from sizes alone; rates
are measured, or assumed: nothing here knows a machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from reclora.distributed.parts import DENSE
from reclora.distributed.placement import (
    FETCH_ROWS,
    GB,
    DistributedError,
    Placement,
    Sharding,
    TableSizes,
    place,
)
from reclora.distributed.ranking import BLOCK_ITEMS
from reclora.training import TrainingConfig

HASHED_ROW = 32
"""Bytes of a row among few that are looked up by hashing, see `reclora.distributed.parts`."""
OPENED_ID = 1.5
"""What a map takes while it is opened, beside itself and in its own bytes, where its identifiers
ascend: .5 to 1.4 were measured of 1e7 and 5e7 integers (the wider their gaps, the more), 1.3 to 1.5
of 1e7 strings. That is for reading Parquet; to see that none is there twice takes nothing.
Identifiers in another order are sorted for it: up to 2.4 of integers, 1.7 of strings."""
BATCH_COPIES = 12
"""Of a batch's vectors and scores that are alive at once: rows, adapted rows, changes, products,
gradients."""
BLOCK_COPIES = 7
"""Of a block of items: as it came, looked up, changed, adapted."""
PAGE = 4096
"""A mark in an array of all items takes a page of memory."""


@dataclass(frozen=True)
class Night:
    """The sizes of a nightly pass.

    Raises:
        ValueError: a number out of its range, named with the range.
    """

    tables: TableSizes
    """U, N and D; at least 1 each."""
    segments: int
    """S; at least 1."""
    segment_rows: int
    """n, rows of the log of each segment; at least 1."""
    rank: int
    """R of the row factors of users and items, item biases beside them; at least 1."""
    chunk_rows: int
    """Rows of the log that a rank trains at once; at least 1."""
    listed: int = 0
    """Q, users who get lists, of all segments; 0 to U."""
    judged: int = 0
    """Users for whom the catalogue is ranked after every epoch of every chunk, of all segments;
    0 to U; 0 where held-out loss judges, as in `train_sharded`."""
    distinct: float = 1.0
    """Share of a chunk's rows whose user (and whose item) is of no row before; 0 < share <= 1."""
    held_out: float = 0.1
    """Rows that judge, over those that train; 0 or more."""
    k: int = 100
    """Length of a list; at least 1."""
    id_bytes: float = 8.0
    """Of an identifier as it lies in memory: 8 of an integer, of a string 8 and its letters."""
    config: TrainingConfig = field(default_factory=TrainingConfig)
    """E epochs, B rows and J negatives of a segment in a step; all epochs are trained."""

    def __post_init__(self) -> None:
        for side in ("users", "items", "embedding_dim"):
            if getattr(self.tables, side) < 1:
                raise ValueError(f"{side} must be at least 1, got {getattr(self.tables, side)}")
        for name in ("segments", "segment_rows", "rank", "chunk_rows", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("listed", "judged"):
            if not 0 <= getattr(self, name) <= self.tables.users:
                raise ValueError(
                    f"{name} must be from 0 to the {self.tables.users:,} users, "
                    f"got {getattr(self, name):,}"
                )
        if not 0 < self.distinct <= 1:
            raise ValueError(f"distinct must be above 0 and at most 1, got {self.distinct}")
        if not 0 <= self.held_out < math.inf or not 0 < self.id_bytes < math.inf:
            raise ValueError(
                "held_out must be 0 or more and id_bytes above 0, got "
                f"{self.held_out} and {self.id_bytes}"
            )

    # A chunk: c segments, and c n rows.

    @property
    def chunk_segments(self) -> int:
        """c, the segments of a chunk: max(1, chunk_rows / n), and no more than S."""
        return min(self.segments, max(1, self.chunk_rows // self.segment_rows))

    def chunks(self, num_ranks: int) -> int:
        """Of the rank that has most: ceil(ceil(S / c) / W)."""
        number = -(-self.segments // self.chunk_segments)
        return -(-number // num_ranks)

    @property
    def step_segments(self) -> int:
        """G, the segments in a step: step_rows / B, and no more than a chunk has."""
        return min(self.chunk_segments, max(1, self.config.step_rows // self.config.batch_rows))

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk, all epochs: E ceil(c / G) ceil(n / B)."""
        each = -(-self.segment_rows // self.config.batch_rows)
        return self.config.epochs * -(-self.chunk_segments // self.step_segments) * each

    @property
    def chunk_users(self) -> int:
        """Rows of the user table that a chunk looks up: min(U, distinct c n)."""
        return min(self.tables.users, math.ceil(self.distinct * self._chunk_rows))

    @property
    def chunk_items(self) -> int:
        """Rows of the item table that a chunk looks up: those of its log, distinct c n, and what m
        uniform negatives hit, N (1 - exp(-m / N)), together no more than N.

        m = c ceil(J / 2) (E ceil(n / B) + ceil(held_out n / B)); J for `bpr`, whose negatives are
        all uniform.
        """
        B, J, items = self.config.batch_rows, self.config.num_negatives, self.tables.items
        uniform = -(-J // 2) if self.config.loss == "softmax" else J
        steps = self.config.epochs * -(-self.segment_rows // B)
        steps += math.ceil(self.held_out * self.segment_rows / B)
        hit = -items * math.expm1(-self.chunk_segments * uniform * steps / items)
        return min(items, math.ceil(self.distinct * self._chunk_rows + hit))

    @property
    def _chunk_rows(self) -> int:
        return self.chunk_segments * self.segment_rows

    @property
    def _touched(self) -> int:
        """(segment, row) pairs of a chunk's log, of users as of items."""
        return math.ceil(self.distinct * self._chunk_rows)


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that holds most. `opening` is past before the others are there, and of
    `trains` and `ranks` one is there at a time."""

    identifiers: int
    """(U + N) id_bytes: the id maps are whole on every rank."""
    opening: int
    """OPENED_ID id_bytes max(U, N): one map is opened after the other. So much where identifiers
    ascend, as `prepare_log` and `IdMap.of` write them; a map that has grown since, or was made in
    another order, takes more, see `OPENED_ID`."""
    tables: int
    """By TorchRec's planner, rows on their way included, see `place`."""
    adapters: int
    """Of all segments of the rank, the best of each kept until the end: a segment touches T users
    and T items, and has 4 (R T + R T + T + 2 R D) of numbers and 8 x 2 T of rows."""
    trains: int
    """A chunk with u users and i items of the base, T pairs of each, and G segments in a step:

        part      4 (u D + i (D + 1)), and what finds a row: 8 and HASHED_ROW each, or 4 of every
                  row of a table of which many are here
        touched   2 T (4 (2 R + 1) + 24) + 12 T + 16 c R D: trained, kept and Adagrad's numbers
        log       80 c n (1 + held_out): rows, an epoch's keys and order
        batch     4 BATCH_COPIES G ((2 B + J) D + B J)
        marks     min(4 N, PAGE G (J + B)): which negatives a user has taken, in an array of all
                  items
    """
    ranks: int
    """q = ceil(Q / W) users, their lists, and a block of C items:

        users     4 q D, and what finds a row
        lists     12 q k
        block     4 BLOCK_COPIES C (D + 1)
    """

    @property
    def beside_tables(self) -> int:
        """identifiers + adapters + max(trains, ranks)."""
        return self.identifiers + self.adapters + max(self.trains, self.ranks)

    @property
    def peak(self) -> int:
        """max(identifiers + opening, tables + beside_tables)."""
        return max(self.identifiers + self.opening, self.tables + self.beside_tables)


def memory(night: Night, placement: Placement) -> Memory:
    """What the fullest rank of a placement holds."""
    ranks, dim, R = placement.num_ranks, night.tables.embedding_dim, night.rank
    users, items, c = night.tables.users, night.tables.items, night.chunk_segments
    config, G, T = night.config, night.step_segments, night._touched
    B, J = config.batch_rows, config.num_negatives
    part = 4 * (night.chunk_users * dim + night.chunk_items * (dim + 1))
    part += _found_by(night.chunk_users, users) + _found_by(night.chunk_items, items)
    touched = 2 * T * (4 * (2 * R + 1) + 24) + 12 * T + 16 * c * R * dim
    log = 80 * night._chunk_rows * (1 + night.held_out)
    batch = 4 * BATCH_COPIES * G * ((2 * B + J) * dim + B * J)
    marks = min(4 * items, PAGE * G * (J + B))
    q = -(-max(night.listed, night.judged) // ranks)
    lists = 12 * q * night.k
    block = 4 * BLOCK_COPIES * min(items, BLOCK_ITEMS) * (dim + 1) if q else 0
    adapters = 4 * ((2 * R + 1) * T + 2 * c * R * dim) + 16 * T
    return Memory(
        identifiers=math.ceil((users + items) * night.id_bytes),
        opening=math.ceil(OPENED_ID * night.id_bytes * max(users, items)),
        tables=sum(placement.bytes_of(placement.fullest).values()),
        adapters=night.chunks(ranks) * adapters,
        trains=part + touched + math.ceil(log) + batch + marks,
        ranks=4 * q * dim + _found_by(q, users) + lists + block,
    )


def _found_by(rows: int, whole: int) -> int:
    """Bytes of what finds M rows of a table of N in a part."""
    dense = whole <= DENSE * rows
    return 8 * rows + (4 * whole if dense else HASHED_ROW * rows)


@dataclass(frozen=True)
class Cluster:
    """Hosts that are alike, and what they do in a second.

    Raises:
        ValueError: a number that is not positive.
    """

    hosts: int
    ranks_per_host: int
    memory: float
    """Bytes of a host."""
    network: float
    """Bytes a second into a host, and as many out of it."""
    step_flops: float
    """Flops a second of a rank as it trains: far below what a matrix product reaches, for most of
    a step moves rows."""
    rank_flops: float
    """Flops a second of a rank as it ranks."""
    round_seconds: float
    """What bringing a round of rows takes beside its bytes."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 < getattr(self, each.name) < math.inf:
                raise ValueError(f"{each.name} must be positive, got {getattr(self, each.name)}")

    @property
    def num_ranks(self) -> int:
        """W."""
        return self.hosts * self.ranks_per_host


@dataclass(frozen=True)
class Work:
    """What the busiest rank does in a stage."""

    flops: float
    network: float
    """Bytes that come to it from other hosts, or that it sends there, whichever are more."""
    rounds: int
    """How often ranks meet."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops, self.network + other.network, self.rounds + other.rounds
        )

    def times(self, number: int) -> Work:
        """The same, so often."""
        return Work(self.flops * number, self.network * number, self.rounds * number)

    def seconds(self, cluster: Cluster, flops_rate: float) -> float:
        """At least max(flops / rate, network x ranks of a host / its rate + rounds x theirs)."""
        of_network = self.network * cluster.ranks_per_host / cluster.network
        return max(self.flops / flops_rate, of_network + self.rounds * cluster.round_seconds)


def step(night: Night) -> Work:
    """A step of training: 6 G D (B (J + 1) + R (2 B + J)) flops, and nothing on the network.

    2 D of each score and 2 R D of each adapted row forward, and twice as much backward; a tower
    comes on top.
    """
    B, J = night.config.batch_rows, night.config.num_negatives
    of_segment = B * (J + 1) + night.rank * (2 * B + J)
    return Work(6.0 * night.step_segments * night.tables.embedding_dim * of_segment, 0.0, 0)


def bringing(night: Night, hosts: int, users: int, items: int) -> Work:
    """Rows of the tables for a rank: (1 - 1 / hosts) (X + 8) bytes a row of X padded bytes, which
    come, while every other rank is sent as many and asks for them by 8 bytes each; in rounds of
    FETCH_ROWS.
    """
    widths = {name: width for name, (_, width) in night.tables.shapes.items()}
    size = users * (4 * widths["user"] + 8) + items * (4 * widths["item"] + 8)
    rounds = -(-users // FETCH_ROWS) + -(-items // FETCH_ROWS)
    return Work(0.0, (1 - 1 / hosts) * size, rounds)


def chunk(night: Night, hosts: int) -> Work:
    """A chunk: its rows once, and its steps, the last ones of which may hold fewer segments."""
    per_segment = step(night).flops / night.step_segments
    segment_steps = night.config.epochs * -(-night.segment_rows // night.config.batch_rows)
    flops = night.chunk_segments * segment_steps * per_segment
    return Work(flops, 0.0, 0) + bringing(night, hosts, night.chunk_users, night.chunk_items)


def catalogue(night: Night, hosts: int, users: int, segments: int) -> Work:
    """Exact ranking for so many users of so many segments by a rank, while the others rank theirs:
    2 D N flops a user and 2 R D N a segment, whose catalogue is adapted; and the whole catalogue
    comes to the rank, block by block.
    """
    if not users:
        return Work(0.0, 0.0, 0)
    dim, items = night.tables.embedding_dim, night.tables.items
    flops = 2.0 * dim * items * (users + night.rank * segments)
    network = bringing(night, hosts, users, items).network
    # Every block is brought in rounds of its own.
    full, rest = divmod(items, BLOCK_ITEMS)
    rounds = full * (BLOCK_ITEMS // FETCH_ROWS) - (-rest // FETCH_ROWS) - (-users // FETCH_ROWS)
    return Work(flops, network, rounds)


@dataclass(frozen=True)
class Plan:
    """What a night takes on a cluster."""

    placement: Placement
    memory: Memory
    training: Work
    judging: Work
    ranking: Work
    seconds: dict[str, float]
    """Of `training`, `judging` and `ranking`, one after the other."""

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def plan(night: Night, cluster: Cluster, sharding: Sharding = "row_wise") -> Plan:
    """Count a night, and check that every rank has the memory for it; nothing is started.

        training = chunks x chunk        judging = E x chunks x catalogue of a chunk's users
        ranking  = catalogue of Q / W users

    Raises:
        DistributedError: a rank's memory is too small, for the tables or for what is there beside
            them; the message says what needs how much and what to change.
    """
    ranks, hosts = cluster.num_ranks, cluster.hosts
    left = _left_for_tables(memory(night, Placement((), ranks)), cluster)
    placement = place(night.tables, ranks, left, sharding, cluster.ranks_per_host)
    chunks = night.chunks(ranks)
    judged = -(-night.judged // (ranks * chunks))
    listed, segments = -(-night.listed // ranks), -(-night.segments // ranks)
    training = chunk(night, hosts).times(chunks)
    judging = catalogue(night, hosts, judged, min(judged, night.chunk_segments))
    judging = judging.times(night.config.epochs * chunks)
    ranking = catalogue(night, hosts, listed, min(listed, segments))
    seconds = {
        "training": training.seconds(cluster, cluster.step_flops),
        "judging": judging.seconds(cluster, cluster.rank_flops),
        "ranking": ranking.seconds(cluster, cluster.rank_flops),
    }
    return Plan(placement, memory(night, placement), training, judging, ranking, seconds)


def _left_for_tables(beside: Memory, cluster: Cluster) -> int:
    """What a rank's share of a host leaves for tables."""
    own = int(cluster.memory // cluster.ranks_per_host)
    where = f"each of {cluster.ranks_per_host} ranks of a host has {own / GB:,.4g} GB"
    opening = beside.identifiers + beside.opening
    if opening > own:
        raise DistributedError(
            f"{where}, but opening the id maps takes {opening / GB:,.4g} GB, of every rank: take "
            "fewer ranks a host, or hosts of more memory"
        )
    parts = {
        "the id maps": (beside.identifiers, "fewer ranks a host"),
        "the adapters of its segments": (beside.adapters, "more hosts, or a smaller rank"),
        "training a chunk": (beside.trains, "smaller chunks"),
        "users and their lists": (
            beside.ranks,
            "more hosts, fewer users at once, or shorter lists",
        ),
    }
    left = own - beside.beside_tables
    if left <= 0:
        most, (size, change) = max(parts.items(), key=lambda part: part[1][0])
        raise DistributedError(
            f"{where}, but what is there beside the tables takes {(own - left) / GB:,.4g} GB, most "
            f"of it {most}, {size / GB:,.4g} GB: take {change}, or hosts of more memory"
        )
    return left
