"""Five ways to the exact top 100 with a seen filter, for the benchmarks of ranking.

Each takes U = 4,000 users of D = 64 and N items, and returns process-CPU seconds on one thread for
all lists. Ours ranks a base model's scorer, item bias included; the peers rank the bare product.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.ranking import UserItems, rank
from reclora.scoring import CatalogueScorer

from .engine_worlds import DIM, cpu_seconds, peak_bytes

USERS: Final = 4_000
K: Final = 100
SEEN: Final = 40
"""Items that each user has seen, drawn with replacement."""
RUNS: Final = 3


@dataclass(frozen=True)
class World:
    """What is ranked."""

    users_UD: Tensor
    items_ND: Tensor
    seen: UserItems

    @classmethod
    def of(cls, num_items: int) -> World:
        generator = torch.Generator().manual_seed(num_items)
        positions = torch.arange(USERS).repeat_interleave(SEEN)
        item_rows = torch.randint(num_items, (USERS * SEEN,), generator=generator)
        return cls(
            torch.randn(USERS, DIM, generator=generator),
            torch.randn(num_items, DIM, generator=generator),
            UserItems.from_pairs(positions, item_rows, USERS),
        )

    def scorer(self) -> CatalogueScorer:
        """The scores as a base model gives them."""
        bias_N = torch.zeros(len(self.items_ND))
        return CatalogueScorer(lambda rows: self.users_UD[rows], self.items_ND, bias_N, [])

    def seen_matrix(self) -> scipy.sparse.csr_matrix:
        """What was seen, users x items."""
        ones = np.ones(len(self.seen.item_rows), np.float32)
        parts = (ones, self.seen.item_rows.numpy(), self.seen.offsets_U1.numpy())
        return scipy.sparse.csr_matrix(parts, shape=(USERS, len(self.items_ND)))


def ours(num_items: int) -> float:
    world = World.of(num_items)
    scorer, users = world.scorer(), torch.arange(USERS)
    return _seconds(lambda: rank(scorer, users, K, seen=world.seen))


def product_alone(num_items: int) -> float:
    """Nothing but the product of all users and items, in the same tiles."""
    world = World.of(num_items)
    out = torch.empty(512, 2048)

    def multiply() -> None:
        for users_BD in world.users_UD.split(512):
            for items_CD in world.items_ND.split(2048):
                part = out[: len(users_BD), : len(items_CD)]
                torch.mm(users_BD, items_CD.T, out=part)

    return _seconds(multiply)


def torch_blocked(num_items: int) -> float:
    """A product, the seen items at -inf and `torch.topk`, 256 users at a time."""
    world = World.of(num_items)

    def blocks() -> None:
        for start in range(0, USERS, 256):
            scores_BN = world.users_UD[start : start + 256] @ world.items_ND.T
            offsets = world.seen.offsets_U1[start : start + len(scores_BN) + 1]
            positions = torch.arange(len(scores_BN)).repeat_interleave(offsets.diff())
            scores_BN[positions, world.seen.item_rows[offsets[0] : offsets[-1]]] = -torch.inf
            scores_BN.topk(K)

    return _seconds(blocks)


def implicit(num_items: int) -> float:
    from implicit.cpu.topk import topk

    world = World.of(num_items)
    users, items = world.users_UD.numpy(), world.items_ND.numpy()
    seen = world.seen_matrix()
    return _seconds(lambda: topk(items, users, K, filter_query_items=seen, num_threads=1))


def faiss_flat(num_items: int) -> float:
    """A flat index asked for as many more as anybody has seen; the seen are then left out."""
    import faiss

    world = World.of(num_items)
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(DIM)
    index.add(world.items_ND.numpy())
    users, all_users = world.users_UD.numpy(), torch.arange(USERS)
    more = int(world.seen.sizes_U.max())

    def search() -> NDArray[np.int64]:
        _, found = index.search(users, K + more)
        is_seen = world.seen.contains(all_users, torch.from_numpy(found)).numpy()
        first = np.argsort(is_seen, axis=1, kind="stable")[:, :K]
        return np.take_along_axis(found, first, 1)

    return _seconds(search)


def rectools(num_items: int) -> float:
    from rectools.models.rank import Distance, ImplicitRanker

    world = World.of(num_items)
    ranker = ImplicitRanker(
        Distance.DOT, world.users_UD.numpy(), world.items_ND.numpy(), num_threads=1
    )
    users, seen = np.arange(USERS), world.seen_matrix()
    return _seconds(lambda: ranker.rank(users, K, filter_pairs_csr=seen))


def extra_memory(num_items: int) -> float:
    """Bytes that ranking adds to the peak, lists included."""
    world = World.of(num_items)
    scorer, users = world.scorer(), torch.arange(USERS)
    few = torch.arange(10)
    rank(scorer, few, K, seen=world.seen.take(few))
    return float(peak_bytes(lambda: rank(scorer, users, K, seen=world.seen)))


def _seconds(work: Callable[[], object]) -> float:
    torch.set_num_threads(1)
    work()
    return statistics.median(cpu_seconds(work) for _ in range(RUNS))
