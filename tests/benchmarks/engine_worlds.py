"""What the engine's benchmarks have in common for us and for the peers: models, data, measures."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reclora.losses import softmax_loss

from .harness import usage

RANK: Final = 8
DIM: Final = 64
BATCH: Final = 4096


class Ranker(nn.Module):
    """Two tables and a tower on the pair of rows: score = w relu(W [u, v] + b) + c.

    Args:
        num_users, num_items: rows of the tables.
        dim: D, the tables' width; the tower is 2 D - D - 1.
        sparse: whether the tables' gradients are sparse.
    """

    def __init__(
        self, num_users: int, num_items: int = 100_000, dim: int = DIM, sparse: bool = False
    ) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, dim, sparse=sparse)
        self.items = nn.Embedding(num_items, dim, sparse=sparse)
        self.hidden = nn.Linear(2 * dim, dim)
        self.output = nn.Linear(dim, 1)

    def forward(self, users_B: Tensor, items_B: Tensor) -> Tensor:
        """Scores, shape (B,)."""
        pairs_B2D = torch.cat([self.users(users_B), self.items(items_B)], 1)
        scores_B1: Tensor = self.output(self.hidden(pairs_B2D).relu())
        return scores_B1.squeeze(1)


@dataclass(frozen=True)
class Batch:
    """B pairs with labels 0 and 1."""

    users_B: Tensor
    items_B: Tensor
    labels_B: Tensor


def batches(
    num_users: int,
    num_items: int = 100_000,
    *,
    distinct_users: int | None = None,
    count: int = 25,
    seed: int = 0,
) -> list[Batch]:
    """Batches of `BATCH` uniform pairs for `Ranker`.

    Args:
        distinct_users: draw from so many users, spread over the table, and not from all; so the
            rows touched stay the same while the table grows.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randperm(num_users, generator=generator)[:distinct_users]

    def draw(high: int) -> Tensor:
        return torch.randint(high, (BATCH,), generator=generator)

    return [Batch(pool[draw(len(pool))], draw(num_items), draw(2).float()) for _ in range(count)]


def logistic_loss(model: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Tensor:
    """The mean binary cross-entropy of a model's scores of a batch."""
    scores_B = model(batch.users_B, batch.items_B)
    return F.binary_cross_entropy_with_logits(scores_B, batch.labels_B)


SEGMENT_USERS: Final = 100_000
SEGMENT_ITEMS: Final = 20_000
SEGMENT_ROWS: Final = 2_000
NEGATIVES: Final = 64


class TwoTables(nn.Module):
    """The base of the run over many segments: score = u . v."""

    def __init__(self, num_users: int = SEGMENT_USERS, num_items: int = SEGMENT_ITEMS) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, DIM)
        self.items = nn.Embedding(num_items, DIM)

    def forward(self, users_B: Tensor, items_B: Tensor, negatives_J: Tensor) -> Tensor:
        """The sampled softmax loss of pairs against J negatives, meaned over B."""
        u_BD, v_BD, n_JD = self.users(users_B), self.items(items_B), self.items(negatives_J)
        return softmax_loss((u_BD * v_BD).sum(1), u_BD @ n_JD.T).mean()


def segment_pairs(segment: int) -> tuple[Tensor, Tensor]:
    """The user rows and the item rows of a segment's `SEGMENT_ROWS` interactions, uniform."""
    generator = torch.Generator().manual_seed(segment)
    users = torch.randint(SEGMENT_USERS, (SEGMENT_ROWS,), generator=generator)
    return users, torch.randint(SEGMENT_ITEMS, (SEGMENT_ROWS,), generator=generator)


def segment_batches(
    segment: int, batch_rows: int, epochs: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Users, items and negatives of each step: every epoch all of a segment's rows, shuffled."""
    users, items = segment_pairs(segment)
    generator = torch.Generator().manual_seed(segment)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(SEGMENT_ROWS, generator=generator), batch_rows):
            negatives_J = torch.randint(SEGMENT_ITEMS, (NEGATIVES,), generator=generator)
            yield users[rows], items[rows], negatives_J


class FourLayers(nn.Sequential):
    """Four linear layers of `DIM` to `DIM` with ReLU between; their names are `LAYERS`."""

    def __init__(self) -> None:
        layers = [(nn.Linear(DIM, DIM), nn.ReLU()) for _ in range(4)]
        super().__init__(*itertools.chain.from_iterable(layers))


LAYERS: Final = ("0", "2", "4", "6")


def mixed_rows(num_adapters: int) -> tuple[Tensor, Tensor]:
    """`BATCH` rows for `FourLayers`, and the adapter of each, uniform over so many."""
    generator = torch.Generator().manual_seed(num_adapters)
    rows_BD = torch.randn(BATCH, DIM, generator=generator)
    return rows_BD, torch.randint(num_adapters, (BATCH,), generator=generator)


P = ParamSpec("P")


def alone(measure: Callable[P, float], *args: P.args, **kwargs: P.kwargs) -> float:
    """What a measure returns in a process of its own, where no other has shaped the heap.

    The heap starts as in a process that has loaded something large: until a block near 32 MiB has
    been freed, glibc gives blocks of megabytes back to the kernel and faults them in at every step.

    Args:
        measure: a function of a module beside this one.
        args, kwargs: its arguments, as JSON has them.
    """
    call = json.dumps([measure.__module__, measure.__name__, args, kwargs])
    return float(usage([sys.executable, "-m", "tests.benchmarks.engine_worlds", call]).output)


def cpu_ms(step: Callable[[], object]) -> float:
    """The median process-CPU time of a step on one thread after 3 to warm up, in milliseconds.

    Of 15 steps at least, and of as many as take 2 seconds together: neighbours on a shared machine
    come and go in less.
    """
    torch.set_num_threads(1)
    for _ in range(3):
        step()
    taken: list[float] = []
    while len(taken) < 15 or sum(taken) < 2:
        taken.append(cpu_seconds(step))
    return 1e3 * statistics.median(taken)


def cpu_seconds(work: Callable[[], object]) -> float:
    """The process-CPU time of some work, done once."""
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_bytes(work: Callable[[], object]) -> int:
    """The peak of the resident set while some work is done, over what was resident before it.

    For a process of its own (`alone`) that has done the like before, so that the code is in memory.
    Memory that was freed before goes back to the kernel first, or the work would seem to need none.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    torch.empty(33_000_000, dtype=torch.uint8)  # freed at once, see `alone`
    module, name, args, kwargs = json.loads(sys.argv[1])
    print(getattr(importlib.import_module(module), name)(*args, **kwargs))
